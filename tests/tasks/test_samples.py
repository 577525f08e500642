import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from nucleus_unet.dataset.truth import read_truth
from nucleus_unet.recipe import Data
from nucleus_unet.stages import Stage
from tasks import split as module
from tasks.ingest import ingest_stage
from tasks.merge_masks import dataset_of, labels_of, merge_masks
from tasks.publish import files_of
from tasks.split import samples, split


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four images of 2×3 pixels, the k-th with k nuclei of one pixel each, from none to three."""
    for index in range(4):
        folder = tmp_path / "raw" / f"id{index}"
        (folder / "masks").mkdir(parents=True)
        (folder / "images").mkdir()
        cv2.imwrite(str(folder / "images" / f"id{index}.png"), np.full((2, 3), index, np.uint8))
        for nucleus in range(index):
            mask = np.zeros((2, 3), np.uint8)
            mask[0, nucleus] = 255
            cv2.imwrite(str(folder / "masks" / f"{nucleus}.png"), mask)
    return tmp_path / "raw"


@pytest.fixture
def stages(home: Path, raw: Path) -> tuple[Stage, Stage]:
    images = ingest_stage([raw], annotated=True)
    return images, merge_masks.fn([raw], images)


def test_masks_are_merged_to_labels(home: Path, stages: tuple[Stage, Stage]) -> None:
    entries = labels_of(stages[1].folder)
    assert [(entry.id, entry.nuclei) for entry in entries] == [(f"id{i}", i) for i in range(4)]
    np.testing.assert_array_equal(np.load(entries[2].path(home)), [[1, 2, 0], [0, 0, 0]])


def test_what_is_prepared_to_score_is_not_prepared_again(
    home: Path, stages: tuple[Stage, Stage], raw: Path
) -> None:
    before = {*home.rglob("*.npy")}
    assert len(dict(read_truth(raw, home, lambda *_: None))) == 4
    assert {*home.rglob("*.npy")} == before


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


def test_a_split_by_slide(stages: tuple[Stage, Stage]) -> None:
    made = split.fn(stages[0], Data(split="slide", validation_fraction=0.5, split_seed=1))
    sides = json.loads((made.folder / "split.json").read_text())
    assert sides["training"]
    assert sides["validation"]


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


def test_the_file_list_and_the_digest_see_every_mask(
    stages: tuple[Stage, Stage], raw: Path
) -> None:
    images, labels = stages
    before = files_of(images, labels)
    (raw / "id3" / "masks" / "0.png").unlink()
    after = merge_masks.fn([raw], images)
    changed = [b["id"] for b, a in zip(before, files_of(images, after), strict=True) if a != b]
    assert changed == ["id3"]
    assert (before[3]["id"], before[3]["height"], before[3]["width"]) == ("id3", 2, 3)
    assert {*files_of(images, None)[3]} == {"id", "height", "width", "image_sha256"}
    assert dataset_of(images, labels) != dataset_of(images, after)
