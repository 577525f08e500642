import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nucleus_unet.data.prepared import Labels, prepare_labels, read_labels
from nucleus_unet.data.split import read_split
from nucleus_unet.data.truth import read_truth
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Data
from tasks import merge_masks as module
from tasks.ingest import ingest_stage
from tasks.merge_masks import merge_masks
from tasks.split import split


def test_masks_are_merged_to_labels(home: Path, stages: tuple[Stage, Stage]) -> None:
    entries = read_labels(stages[1].folder).entries
    assert [(entry.id, entry.nuclei) for entry in entries] == [(f"id{i}", i) for i in range(4)]
    np.testing.assert_array_equal(np.load(entries[2].path(home)), [[1, 2, 0], [0, 0, 0]])


def test_what_is_prepared_to_score_is_not_prepared_again(
    home: Path, stages: tuple[Stage, Stage], raw: Path
) -> None:
    before = {*home.rglob("*.npy")}
    assert len(dict(read_truth(raw, home, lambda *_: None))) == 4
    assert {*home.rglob("*.npy")} == before


def test_masks_that_change_while_they_are_read_are_not_kept(
    home: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ingest_stage(home, [raw], annotated=True)

    def overwritten(*arguments: Any) -> Labels:
        (raw / "id3" / "masks" / "0.png").unlink()
        return prepare_labels(*arguments)

    monkeypatch.setattr(module, "prepare_labels", overwritten)
    with pytest.raises(NucleusError, match=r"raw changed while it was being read\. Start again"):
        merge_masks.fn([raw], images, Data())
    assert list((home / "stages" / "merge_masks").iterdir()) == []


def test_problems_of_masks_are_counted_and_listed_by_file(
    home: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.zeros((2, 3), np.uint8)
    mask[0] = 255  # over the nuclei of one pixel
    cv2.imwrite(str(raw / "id3" / "masks" / "9.png"), mask)
    tables: list[list[dict[str, str]]] = []
    monkeypatch.setattr(module, "create_table_artifact", lambda rows, **_: tables.append(rows))
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("masks"))
    merge_masks.fn([raw], ingest_stage(home, [raw], annotated=True), Data())
    [message] = caplog.messages
    assert message == "1 problems in the masks (1 covered): see the table mask-problems of this run"
    [[row]] = tables
    assert (row["problem"], row["file"]) == ("covered", "id3/masks/9.png")


def test_images_whose_files_are_not_label_images_are_left_out(
    home: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cv2.imwrite(str(raw / "id0" / "labels.png"), np.array([[1, 0, 1], [1, 0, 1]], np.uint8))
    (raw / "id0" / "masks").rmdir()
    images = ingest_stage(home, [raw], annotated=True)
    said = r"1 of 4 annotations cannot be right, for example id0/labels\.png"
    with pytest.raises(NucleusError, match=said):
        merge_masks.fn([raw], images, Data())
    monkeypatch.setattr(module, "create_table_artifact", lambda *_, **__: None)
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("masks"))
    labels = merge_masks.fn([raw], images, Data(on_bad="skip"))
    assert isinstance(labels, Stage)
    said = "1 images are left out, because their annotation cannot be right: id0"
    assert caplog.messages[-1] == said
    done = split.fn(images, labels, Data())
    assert isinstance(done, Stage)
    made = read_split(done.folder)
    assert {image.id for image in (*made.training, *made.validation)} == {"id1", "id2", "id3"}
