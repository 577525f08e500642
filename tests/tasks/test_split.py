import logging

import pytest
from prefect.states import State

from nucleus_unet.data.split import read_split
from nucleus_unet.engine.stages import Stage
from nucleus_unet.recipe import Data
from tasks import split as module
from tasks.split import split

UNKNOWN = "so its score stays unknown; try another data.split_seed"


def split_of(stages: tuple[Stage, Stage], data: Data) -> Stage:
    made = split.fn(*stages, data)
    assert isinstance(made, Stage)
    return made


def test_the_split_covers_all_ids_and_is_made_once(stages: tuple[Stage, Stage]) -> None:
    data = Data(validation_fraction=0.25, split_seed=7)
    made = split_of(stages, data)
    found = read_split(made.folder)
    assert sorted(image.id for image in (*found.training, *found.validation)) == [
        f"id{i}" for i in range(4)
    ]
    [image] = found.validation
    assert image.kind == "fluorescence"
    assert len(image.slide) == 64
    again = split.fn(*stages, data)
    assert isinstance(again, State)
    assert again.name == "Cached"
    assert split_of(stages, data.model_copy(update={"split_seed": 8})).digest != made.digest


@pytest.mark.parametrize(
    ("lone", "warnings"),
    [
        (
            0,
            [
                f"no bright-field image is validated, {UNKNOWN}",
            ],
        ),
        (
            2,
            [
                f"no fluorescence image is validated, {UNKNOWN}",
                "no bright-field image is trained on; try another data.split_seed",
            ],
        ),
    ],
)
def test_a_kind_on_only_one_side_is_reported(
    stages: tuple[Stage, Stage],
    lone: int,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kinds = {True: "bright-field", False: "fluorescence"}
    monkeypatch.setattr(module, "imaging_kind", lambda image: kinds[image.max() == lone])
    monkeypatch.setattr(module, "get_run_logger", logging.getLogger)
    split.fn(*stages, Data(validation_fraction=0.25, split_seed=7))
    assert caplog.messages == warnings


def test_a_split_by_slide(stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "slides_of_entries",
        lambda _, entries: dict(zip([entry.id for entry in entries], "abba", strict=True)),
    )
    for seed in range(4):
        data = Data(split="slide", validation_fraction=0.5, split_seed=seed)
        found = read_split(split_of(stages, data).folder)
        ids = [{image.id for image in side} for side in (found.training, found.validation)]
        assert sorted(ids, key=min) == [{"id0", "id3"}, {"id1", "id2"}]
