import json
import logging
from pathlib import Path

import numpy as np
import pytest

from nucleus_unet.engine.stages import Stage
from nucleus_unet.recipe import Data
from tasks import split as module
from tasks.split import samples, split


def test_the_split_is_over_all_ids_and_is_made_once(stages: tuple[Stage, Stage]) -> None:
    data = Data(validation_fraction=0.25, split_seed=7)
    made = split.fn(stages[0], data)
    sides = json.loads((made.folder / "split.json").read_text())
    ids = [row["id"] for side in ("training", "validation") for row in sides[side]]
    assert sorted(ids) == [f"id{i}" for i in range(4)]
    [row] = sides["validation"]
    assert row["kind"] == "fluorescence"
    assert len(row["slide"]) == 64
    assert split.fn(stages[0], data).name == "Cached"
    assert split.fn(stages[0], data.model_copy(update={"split_seed": 8})).digest != made.digest


@pytest.mark.parametrize(
    ("lone", "told"),
    [
        (0, ["no bright-field image is validated, its score will not be known"]),
        (
            2,
            [
                "no bright-field image is trained on",
                "no fluorescence image is validated, its score will not be known",
            ],
        ),
    ],
)
def test_a_kind_on_one_side_alone_is_told(
    stages: tuple[Stage, Stage],
    lone: int,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kinds = {True: "bright-field", False: "fluorescence"}
    monkeypatch.setattr(module, "imaging_kind", lambda image: kinds[image.max() == lone])
    monkeypatch.setattr(module, "get_run_logger", logging.getLogger)
    split.fn(stages[0], Data(validation_fraction=0.25, split_seed=7))
    assert [m.partition(":")[0] for m in caplog.messages] == told


def test_a_split_by_slide(stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "group_by_slide",
        lambda images: dict(zip([i for i, *_ in images], "abba", strict=True)),
    )
    for seed in range(4):
        made = split.fn(stages[0], Data(split="slide", validation_fraction=0.5, split_seed=seed))
        sides = json.loads((made.folder / "split.json").read_text())
        ids = [{row["id"] for row in sides[side]} for side in ("training", "validation")]
        assert sorted(ids, key=min) == [{"id0", "id3"}, {"id1", "id2"}]


def test_a_side_as_samples(home: Path, stages: tuple[Stage, Stage]) -> None:
    images, labels = stages
    made = split.fn(images, Data(validation_fraction=0.25))
    training, validation = (samples(made, images, labels, s) for s in ("training", "validation"))
    assert (len(training), len(validation)) == (3, 1)
    for sample in training + validation:
        assert sample.kind == "fluorescence"
        index = int(sample.id[2:])
        assert (np.load(sample.image) == index).all()
        assert np.load(sample.labels).max() == index
