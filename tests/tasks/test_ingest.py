from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nucleus_unet.data.prepared import Images, prepare_images, read_images
from nucleus_unet.errors import NucleusError
from tasks import ingest as module
from tasks.ingest import ingest_stage
from tasks.predict import SHARD, images_in, shards


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = np.full((2, 3, 3), index, np.uint8)
        cv2.imwrite(str(folder / f"{index:03}.png"), image)
    return folder


def test_images_are_listed_at_their_own_size(home: Path, tmp_path: Path) -> None:
    stage = ingest_stage(home, [write_images(tmp_path / "raw", 3)], annotated=False)
    entries = read_images(stage.folder).entries
    assert [entry.id for entry in entries] == ["000", "001", "002"]
    assert [(entry.height, entry.width) for entry in entries] == [(2, 3)] * 3
    assert (np.load(entries[2].path(home)) == 2).all()


def test_images_are_decoded_once_and_again_if_an_array_is_damaged(
    home: Path, tmp_path: Path
) -> None:
    raw = write_images(tmp_path / "raw", 2)
    first = ingest_stage(home, [raw], annotated=False)
    assert not first.cached
    assert ingest_stage(home, [raw], annotated=False).cached
    array, whole = (entry.path(home) for entry in read_images(first.folder).entries)
    content, written = array.read_bytes(), whole.stat().st_mtime_ns
    array.write_bytes(content[:-1])
    again = ingest_stage(home, [raw], annotated=False)
    assert not again.cached
    assert again.digest == first.digest
    assert (array.read_bytes(), whole.stat().st_mtime_ns) == (content, written)


def test_a_truncated_image_leaves_no_stage(home: Path, tmp_path: Path) -> None:
    raw = write_images(tmp_path / "raw", 2)
    (raw / "001.png").write_bytes((raw / "001.png").read_bytes()[:-20])
    with pytest.raises(NucleusError, match=r"001\.png: the file is truncated"):
        ingest_stage(home, [raw], annotated=False)
    assert list((home / "stages" / "ingest").iterdir()) == []


def test_an_image_under_another_name_is_another_image(home: Path, tmp_path: Path) -> None:
    [first] = write_images(tmp_path / "raw", 1).iterdir()
    ingest_stage(home, [first], annotated=False)
    second = first.rename(first.with_name("second.png"))
    [entry] = read_images(ingest_stage(home, [second], annotated=False).folder).entries
    assert (entry.id, entry.source) == ("second", str(second))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["images 1-1"]),
        (SHARD, [f"images 1-{SHARD}"]),
        (SHARD + 1, [f"images 1-{SHARD}", f"images {SHARD + 1}-{SHARD + 1}"]),
        (2 * SHARD, [f"images 1-{SHARD}", f"images {SHARD + 1}-{2 * SHARD}"]),
    ],
)
def test_shards_cover_the_index_in_its_order(
    home: Path, tmp_path: Path, count: int, expected: list[str]
) -> None:
    images = ingest_stage(home, [write_images(tmp_path / "raw", count)], annotated=False)
    assert [str(shard) for shard in shards(images)] == expected
    found = [entry.id for shard in shards(images) for entry in images_in(images, shard)]
    assert found == [f"{index:03}" for index in range(count)]


def test_images_of_the_same_scale_are_in_one_shard(home: Path, tmp_path: Path) -> None:
    images = ingest_stage(home, [write_images(tmp_path / "raw", 4)], annotated=False)
    scales = {"000": 1.0, "001": 0.5, "002": 1.0, "003": 0.5}
    half, whole = shards(images, scales)
    assert (half.positions, half.scale) == ((1, 3), 0.5)
    assert (whole.positions, whole.scale) == ((0, 2), 1.0)
    assert str(half) == "2 images at 0.5 times the size"
    assert [entry.id for entry in images_in(images, half)] == ["001", "003"]


def test_data_that_change_while_they_are_read_are_not_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_images(tmp_path / "raw", 1)
    content = (raw / "000.png").read_bytes()

    def overwritten(*arguments: Any, **settings: Any) -> Images:
        cv2.imwrite(str(raw / "000.png"), np.full((2, 3, 3), 200, np.uint8))
        return prepare_images(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare_images", overwritten)
        with pytest.raises(
            NucleusError, match=r"raw changed while it was being read\. Start again"
        ):
            ingest_stage(home, [raw], annotated=False)
    (raw / "000.png").write_bytes(content)
    [entry] = read_images(ingest_stage(home, [raw], annotated=False).folder).entries
    assert (np.load(entry.path(home)) == 0).all()
