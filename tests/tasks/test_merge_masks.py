from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleus_unet.data import prepared
from nucleus_unet.data.truth import read_truth
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from tasks.ingest import ingest_stage
from tasks.merge_masks import dataset_of, labels_of, merge_masks
from tasks.publish import files_of


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


def test_masks_that_change_while_they_are_read_are_not_kept(
    home: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ingest_stage([raw], annotated=True)
    merge = prepared.prepare_labels

    def overwritten(*arguments: Any) -> prepared.Labels:
        (raw / "id3" / "masks" / "0.png").unlink()
        return merge(*arguments)

    monkeypatch.setattr(prepared, "prepare_labels", overwritten)
    with pytest.raises(NucleusError, match="changed while it was read: start again"):
        merge_masks.fn([raw], images)
    assert list((home / "stages" / "merge_masks").iterdir()) == []
