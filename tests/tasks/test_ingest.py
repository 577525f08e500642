from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nucleus_unet.data import prepared
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from tasks.ingest import digests, identities, images_of, ingest_stage
from tasks.merge_masks import dataset_of
from tasks.predict import SHARD, images_in, shards


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = np.full((2, 3, 3), index, np.uint8)
        cv2.imwrite(str(folder / f"{index:03}.png"), image)
    return folder


def test_an_index_over_images_at_their_own_size(home: Path, tmp_path: Path) -> None:
    stage = ingest_stage([write_images(tmp_path / "raw", 3)], annotated=False)
    entries = images_of(stage.folder)
    assert [entry.id for entry in entries] == ["000", "001", "002"]
    assert [(entry.height, entry.width) for entry in entries] == [(2, 3)] * 3
    assert (np.load(entries[2].path(home)) == 2).all()


def test_it_is_made_once_and_anew_where_an_array_is_damaged(home: Path, tmp_path: Path) -> None:
    raw = write_images(tmp_path / "raw", 2)
    first = ingest_stage([raw], annotated=False)
    assert not first.cached
    assert ingest_stage([raw], annotated=False).cached
    array, whole = (entry.path(home) for entry in images_of(first.folder))
    content, written = array.read_bytes(), whole.stat().st_mtime_ns
    array.write_bytes(content[:-1])
    again = ingest_stage([raw], annotated=False)
    assert not again.cached
    assert again.digest == first.digest
    assert (array.read_bytes(), whole.stat().st_mtime_ns) == (content, written)


def test_where_an_image_is_truncated_no_stage_is_left(home: Path, tmp_path: Path) -> None:
    raw = write_images(tmp_path / "raw", 2)
    (raw / "001.png").write_bytes((raw / "001.png").read_bytes()[:-20])
    with pytest.raises(NucleusError, match=r"001\.png: the file is truncated"):
        ingest_stage([raw], annotated=False)
    assert list((home / "stages" / "ingest").iterdir()) == []


def test_digests_of_a_file_and_of_a_folder(home: Path, tmp_path: Path) -> None:
    raw = write_images(tmp_path / "raw", 1)
    file, folder = digests([raw / "000.png", raw])
    renamed = tmp_path / "renamed.png"
    renamed.write_bytes((raw / "000.png").read_bytes())
    assert digests([renamed]) != [file]  # its id is its name
    moved = raw.rename(tmp_path / "moved")
    assert digests([moved]) == [folder]
    write_images(moved, 2)
    assert digests([moved]) != [folder]


def test_the_digest_of_a_folder_sees_that_an_annotation_is_gone(home: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "raw" / "a" / "images", 1)
    (tmp_path / "raw" / "a" / "masks").mkdir()  # empty: no nucleus
    before = digests([tmp_path / "raw"])
    (tmp_path / "raw" / "a" / "masks").rmdir()
    assert digests([tmp_path / "raw"]) != before


def test_an_image_under_another_name_is_another_image(home: Path, tmp_path: Path) -> None:
    [first] = write_images(tmp_path / "raw", 1).iterdir()
    ingest_stage([first], annotated=False)
    second = first.rename(first.with_name("second.png"))
    [entry] = images_of(ingest_stage([second], annotated=False).folder)
    assert (entry.id, entry.source) == ("second", str(second))


def test_the_digest_of_a_data_set_is_of_its_contents(home: Path, tmp_path: Path) -> None:
    def digest(folder: str, count: int) -> str:
        return dataset_of(ingest_stage([write_images(tmp_path / folder, count)], False), None)

    assert digest("a", 2) == digest("b", 2) != digest("c", 3)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [range(0, 1)]),
        (SHARD, [range(0, SHARD)]),
        (SHARD + 1, [range(0, SHARD), range(SHARD, SHARD + 1)]),
        (2 * SHARD, [range(0, SHARD), range(SHARD, 2 * SHARD)]),
    ],
)
def test_shards_cover_the_index_in_its_order(
    home: Path, tmp_path: Path, count: int, expected: list[range]
) -> None:
    images = ingest_stage([write_images(tmp_path / "raw", count)], annotated=False)
    assert shards(images) == expected
    found = [entry.id for shard in shards(images) for entry in images_in(images, shard)]
    assert found == [f"{index:03}" for index in range(count)]


def test_images_are_identified_by_id_and_content(home: Path, tmp_path: Path) -> None:
    images: Stage = ingest_stage([write_images(tmp_path / "raw", 2)], annotated=False)
    first, second = identities(images_in(images, range(2)))
    assert (first[0], second[0]) == ("000", "001")
    assert first[1] != second[1]


def test_data_that_change_while_they_are_read_are_not_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_images(tmp_path / "raw", 1)
    content = (raw / "000.png").read_bytes()
    decode = prepared.prepare_images

    def overwritten(*arguments: Any, **settings: Any) -> prepared.Images:
        cv2.imwrite(str(raw / "000.png"), np.full((2, 3, 3), 200, np.uint8))
        return decode(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "prepare_images", overwritten)
        with pytest.raises(NucleusError, match="changed while it was read: start again"):
            ingest_stage([raw], annotated=False)
    (raw / "000.png").write_bytes(content)
    [entry] = images_of(ingest_stage([raw], annotated=False).folder)
    assert (np.load(entry.path(home)) == 0).all()
