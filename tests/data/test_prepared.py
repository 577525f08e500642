import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from nucleus_unet.data import prepared
from nucleus_unet.data.prepared import (
    damaged_entries,
    load_image,
    load_labels,
    originals,
    prepare_images,
    prepare_labels,
    read_images,
    read_labels,
    write_index,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def write_png(path: Path, pixels: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def dot(y: int, x: int) -> NDArray[np.uint8]:
    mask = np.zeros((4, 6), np.uint8)
    mask[y, x] = 255
    return mask


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two images: b with two masks and an empty one, a of 16 bits with a label image."""
    folder = tmp_path / "raw"
    write_png(folder / "b/images/b.png", IMAGE)
    for name, mask in (("1", dot(0, 1)), ("2", dot(2, 5)), ("3", 0 * dot(0, 0))):
        write_png(folder / f"b/masks/{name}.png", mask)
    write_png(folder / "a/images/a.png", np.array([[0, 300, 600]], np.uint16))
    write_png(folder / "a/labels.png", np.array([[0, 300, 7]], np.uint16))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are decoded."""
    names: list[str] = []
    original = prepared.decode_image

    def decode(content: bytes, name: str, plane: Plane) -> object:
        names.append(name.rpartition("/")[2])
        return original(content, name, plane)

    monkeypatch.setattr(prepared, "decode_image", decode)
    return names


def as_zip(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, Path("top") / file.relative_to(folder))
    return path


def test_what_is_stored(raw: Path, store: Path) -> None:
    images = prepare_images([raw], store, "code")
    labels = prepare_labels([raw], images, store, "code")
    a, b = images.entries
    assert (a.id, a.height, a.width) == ("a", 1, 3)
    assert (b.id, b.height, b.width) == ("b", 4, 6)
    assert b.source == str(raw / "b/images/b.png")
    np.testing.assert_array_equal(load_image(store, b), IMAGE)
    assert b.pixel_size_um is None
    assert [entry.nuclei for entry in labels.entries] == [2, 2]
    assert load_labels(store, labels.entries[0]).tolist() == [[0, 2, 1]]
    np.testing.assert_array_equal(
        load_labels(store, labels.entries[1]), (dot(0, 1) > 0) + 2 * (dot(2, 5) > 0)
    )
    assert load_labels(store, labels.entries[1]).dtype == np.uint16
    assert [(p.file, p.kind) for p in labels.problems] == [("b/masks/3.png", "empty")]


def test_arrays_are_mapped(raw: Path, store: Path) -> None:
    entry = prepare_images([raw], store, "code").entries[1]
    assert isinstance(load_image(store, entry), np.memmap)


def test_only_new_images_are_decoded(raw: Path, store: Path, decoded: list[str]) -> None:
    first = prepare_images([raw], store, "code")
    assert sorted(decoded) == ["a.png", "b.png"]
    decoded.clear()
    assert prepare_images([raw], store, "code") == first
    assert prepare_labels([raw], first, store, "code") == prepare_labels(
        [raw], first, store, "code"
    )
    write_png(raw / "c/images/c.png", IMAGE + 1)
    assert [entry.id for entry in prepare_images([raw], store, "code").entries] == ["a", "b", "c"]
    assert decoded == ["c.png"]


def test_other_code_makes_other_entries(raw: Path, store: Path, decoded: list[str]) -> None:
    old, new = (prepare_images([raw], store, code) for code in ("old", "new"))
    assert len(decoded) == 4
    assert old.entries[0].digest != new.entries[0].digest
    assert old.entries[0].source_sha256 == new.entries[0].source_sha256


@pytest.mark.parametrize("damage", ["cut", "array gone", "record gone", "record cut"])
def test_damaged_entry_is_made_again(
    raw: Path, store: Path, decoded: list[str], damage: str
) -> None:
    images = prepare_images([raw], store, "code")
    array = images.entries[1].path(store)
    record = array.with_suffix(".json")
    target = record if "record" in damage else array
    decoded.clear()
    if damage.endswith("gone"):
        target.unlink()
    else:
        os.truncate(target, target.stat().st_size - 1)
    assert damaged_entries(store, images.entries) == (["b"] if target == array else [])
    assert prepare_images([raw], store, "code") == images
    assert decoded == ["b.png"]
    assert damaged_entries(store, images.entries) == []


def test_damaged_entry_is_not_loaded(raw: Path, store: Path) -> None:
    entry = prepare_images([raw], store, "code").entries[0]
    os.truncate(entry.path(store), 130)
    with pytest.raises(NucleusError, match="prepared images of a are missing or damaged"):
        load_image(store, entry)
    entry.path(store).unlink()
    with pytest.raises(NucleusError, match="missing or damaged"):
        load_image(store, entry)


def test_a_list_of_entries_is_read_as_it_was_written(
    raw: Path, store: Path, tmp_path: Path
) -> None:
    images = prepare_images([raw], store, "code")
    labels = prepare_labels([raw], images, store, "code")
    write_index(tmp_path, images)
    write_index(tmp_path, labels)
    assert {path.name for path in tmp_path.iterdir()} >= {"images.json", "labels.json"}
    assert read_images(tmp_path) == images
    assert read_labels(tmp_path) == labels


@pytest.mark.parametrize("content", [None, "", "{}", '{"entries": [{"id": "a"}]}'])
@pytest.mark.parametrize(
    ("read", "name"), [(read_images, "images.json"), (read_labels, "labels.json")]
)
def test_a_list_that_is_missing_or_damaged(
    tmp_path: Path, read: Callable[[Path], object], name: str, content: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(NucleusError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / name} is missing or is not a list of prepared data. Delete its folder and run "
        "again."
    )


def test_progress(raw: Path, store: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare_images([raw], store, "code", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_same_id_in_two_sets(raw: Path, store: Path, tmp_path: Path) -> None:
    images = prepare_images([raw, as_zip(raw)], store, "code")
    assert [entry.id for entry in images.entries] == ["a", "b"]
    assert len(prepare_labels([raw, as_zip(raw)], images, store, "code").entries) == 2

    write_png(tmp_path / "more/b/images/b.png", IMAGE)
    write_png(tmp_path / "more/b/masks/1.png", dot(0, 0))
    with pytest.raises(
        NucleusError, match="b: two data sets contain this id with different labels"
    ):
        prepare_labels([raw, tmp_path / "more"], images, store, "code")
    write_png(tmp_path / "more/b/images/b.png", IMAGE + 1)
    with pytest.raises(
        NucleusError, match="b: two data sets contain this id with different images"
    ):
        prepare_images([raw, tmp_path / "more"], store, "code")


def test_image_without_nuclei(store: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "raw/x/images/x.png", IMAGE)
    (tmp_path / "raw/x/masks").mkdir()
    images = prepare_images([tmp_path / "raw"], store, "code", annotated=True)
    [entry] = prepare_labels([tmp_path / "raw"], images, store, "code").entries
    assert (entry.nuclei, entry.problems) == (0, ())
    assert not load_labels(store, entry).any()


def test_image_without_annotation(store: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "raw/x.png", IMAGE)
    with pytest.raises(NucleusError, match="image x has no masks folder"):
        prepare_images([tmp_path / "raw"], store, "code", annotated=True)
    images = prepare_images([tmp_path / "raw"], store, "code")
    with pytest.raises(NucleusError, match="image x has no masks folder"):
        prepare_labels([tmp_path / "raw"], images, store, "code")


def test_image_that_came_in_between(raw: Path, store: Path) -> None:
    images = prepare_images([raw], store, "code")
    write_png(raw / "c/images/c.png", IMAGE)
    write_png(raw / "c/masks/1.png", dot(0, 0))
    with pytest.raises(NucleusError, match="image c was added while the data were being read"):
        prepare_labels([raw], images, store, "code")


def test_label_image_of_another_size(raw: Path, store: Path) -> None:
    images = prepare_images([raw], store, "code")
    write_png(raw / "a/labels.png", dot(0, 0))
    with pytest.raises(NucleusError, match=r"a/labels\.png: 4x6, but the image is 1x3"):
        prepare_labels([raw], images, store, "code")
    [skipped] = prepare_labels([raw], images, store, "code", on_bad="skip").skipped
    [problem] = skipped.problems
    assert (skipped.id, problem.file, problem.kind) == ("a", "labels.png", "unreadable")
    assert problem.detail.startswith("4x6, but the image is 1x3. Save the labels")


def test_files_that_are_not_label_images(store: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for id_ in "abc":
        write_png(raw / f"{id_}/images/{id_}.png", IMAGE)
        write_png(raw / f"{id_}/labels.png", dot(0, 0) | (dot(0, 2) if id_ != "a" else 0))
    images = prepare_images([raw], store, "code")
    said = (
        r"2 of 3 annotations cannot be right, for example b/labels\.png: 1 of 1 numbers lie in several "
        r"pieces, 2 in all\. Give"
    )
    with pytest.raises(NucleusError, match=said):
        prepare_labels([raw], images, store, "code")
    skipping = prepare_labels([raw], images, store, "code", on_bad="skip")
    assert [entry.id for entry in skipping.entries] == ["a"]
    assert [entry.id for entry in skipping.skipped] == ["b", "c"]
    accepting = prepare_labels([raw], images, store, "code", on_bad="accept")
    assert [entry.nuclei for entry in accepting.entries] == [1, 1, 1]
    assert skipping.problems == accepting.problems
    assert [problem.file for problem in skipping.problems] == ["b/labels.png", "c/labels.png"]


@pytest.mark.parametrize("name", ["b/images/b.png", "b/masks/2.png"])
def test_truncated_file_is_named_and_nothing_half_written(
    raw: Path, store: Path, name: str
) -> None:
    os.truncate(raw / name, 60)
    with pytest.raises(NucleusError, match=f"{name}: the file is truncated"):
        prepare_labels([raw], prepare_images([raw], store, "code"), store, "code")
    assert {path.suffix for path in store.rglob("*") if path.is_file()} == {".npy", ".json"}
    assert not list(store.rglob(".*"))


def test_pixels_that_nobody_annotated_are_marked(raw: Path, store: Path) -> None:
    mask = dot(0, 1) | dot(3, 3)
    write_png(raw / "b/ignore.png", mask)
    images = prepare_images([raw], store, "code")
    a, b = prepare_labels([raw], images, store, "code", ignore_value=7).entries
    assert load_labels(store, a).tolist() == [[0, 1, -1]]  # 7 of the values 0, 300 and 7
    labels = load_labels(store, b)
    assert labels.dtype == np.int32
    assert (labels == -1).nonzero() == (pytest.approx([0, 3]), pytest.approx([1, 3]))
    # The nucleus at (0, 1) is gone, and the other one has its number.
    assert (b.nuclei, labels[2, 5]) == (1, 1)
    write_png(raw / "b/ignore.png", dot(3, 3))
    changed = prepare_labels([raw], images, store, "code").entries
    assert len({a.digest, b.digest, *(entry.digest for entry in changed)}) == 4


def test_a_mask_of_pixels_to_ignore_has_the_size_of_its_image(raw: Path, store: Path) -> None:
    write_png(raw / "b/ignore.png", dot(0, 1)[:2])
    images = prepare_images([raw], store, "code")
    with pytest.raises(NucleusError, match=r"b, ignore: 2x6, but the image is 4x6\. Save"):
        prepare_labels([raw], images, store, "code")


def test_images_that_cannot_be_read_are_skipped_by_choice(raw: Path, store: Path) -> None:
    os.truncate(raw / "b/images/b.png", 60)
    images = prepare_images([raw], store, "code", on_bad="skip")
    [skipped] = images.skipped
    assert (skipped.id, skipped.source) == ("b", str(raw / "b/images/b.png"))
    assert skipped.reason == "the file is truncated. Download or save it again."
    assert "b" not in {entry.id for entry in images.entries}
    with pytest.raises(NucleusError, match=r"b\.png: the file is truncated"):
        prepare_images([raw], store, "code")


def test_a_full_disk_is_not_an_image_that_cannot_be_read(raw: Path, store: Path) -> None:
    store.write_text("a file in the way")
    with pytest.raises(NucleusError, match="cannot be written"):
        prepare_images([raw], store, "code", on_bad="skip")


def test_if_no_image_can_be_read_nothing_is_skipped(store: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    with pytest.raises(
        NucleusError, match=r"none of the 2 images can be read\. .*png: the file is empty\. "
    ):
        prepare_images([tmp_path / "a.png", tmp_path / "b.png"], store, "code", on_bad="skip")


def test_originals_have_the_values_of_the_files(raw: Path, store: Path) -> None:
    images = prepare_images([raw], store, "code")
    found = {entry.id: channels.planes for entry, channels in originals([raw], images.entries)}
    assert found["a"]["gray"].tolist() == [[0, 300, 600]]
    np.testing.assert_array_equal(np.dstack([*found["b"].values()]), IMAGE)


@pytest.mark.parametrize("gone", [True, False])
def test_originals_that_changed_are_refused(raw: Path, store: Path, gone: bool) -> None:
    images = prepare_images([raw], store, "code")
    file = raw / "b/images/b.png"
    if gone:
        file.rename(raw / "b/images/c.png")
    write_png(file.with_name("c.png") if gone else file, IMAGE + 1)
    with pytest.raises(
        NucleusError, match=r"b/images/b\.png: the file has changed since it was read"
    ):
        list(originals([raw], images.entries))


def test_store_that_cannot_be_written(raw: Path, store: Path) -> None:
    store.write_text("a file in the way")
    said = (
        r"\.npy cannot be written \(Not a directory\)\. Free some disk space, or set NUCLEUS_HOME to a "
        r"folder on another disk\.$"
    )
    with pytest.raises(NucleusError, match=said):
        prepare_images([raw], store, "code")


def test_another_plane_is_another_entry(store: Path, tmp_path: Path) -> None:
    planes = np.arange(2 * 12, dtype=np.uint8).reshape(2, 3, 4)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack")
    found = []
    for z in (1, 2):
        images = prepare_images([tmp_path / "a.tif"], store, "code", plane=Plane(z=z))
        np.testing.assert_array_equal(load_image(store, images.entries[0])[..., 0], planes[z - 1])
        [(_, channels)] = originals([tmp_path / "a.tif"], images.entries)
        np.testing.assert_array_equal(channels.planes["gray"], planes[z - 1])
        found.append(images.entries[0].digest)
    assert found[0] != found[1]
