import doctest
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nucleus_unet.data import layouts, ome_zarr
from nucleus_unet.data.raw import (
    RawSample,
    dataset_name,
    open_raw,
    reads,
    require_outside,
    walk,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file

FILES = {
    "b/images/b.png": b"image b",
    "b/masks/2.png": b"mask 2",
    "b/masks/1.png": b"mask 1",
    "a/images/a.tif": b"image a",
    "a/labels.tiff": b"labels a",
}
SAMPLES = (
    RawSample("a", "a/images/a.tif", (), "a/labels.tiff", True),
    RawSample("b", "b/images/b.png", ("b/masks/1.png", "b/masks/2.png"), None, True),
)


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = path / name
        if name.endswith("/"):
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write(path: Path, files: dict[str, bytes], container: str) -> Path:
    return {"folder": write_folder, "zip": write_zip}[container](path / f"set.{container}", files)


def test_doctests() -> None:
    assert doctest.testmod(layouts).failed == 0
    assert doctest.testmod(ome_zarr).failed == 0


def assert_error(path: Path, *, match: str, annotated: bool = False) -> None:
    with pytest.raises(NucleusError, match=match), open_raw(path, annotated=annotated):
        pass


@pytest.fixture(params=["folder", "zip"])
def container(request: pytest.FixtureRequest) -> str:
    return request.param


def test_kaggle_layout(tmp_path: Path, container: str) -> None:
    with open_raw(write(tmp_path, FILES, container), annotated=True) as raw:
        assert raw.samples == SAMPLES
        assert raw.read("b/masks/2.png") == b"mask 2"
    assert raw.samples[0].annotation == (("labels.tiff", "a/labels.tiff"),)
    assert raw.samples[1].annotation[0] == ("masks/1.png", "b/masks/1.png")


@pytest.mark.parametrize(
    ("layout", "image", "label_image"),
    [
        ("images in images/, label images in masks/", "images/{}.tif", "masks/{}.png"),
        ("images in Images/, label images in labels/", "Images/{}.png", "labels/{}.png"),
        (
            "images in set/images/, label images in set/masks/",
            "set/images/{}.png",
            "set/masks/{}.tif",
        ),
        (
            "images in Training_source/, label images in Training_target/",
            "Training_source/{}.tif",
            "Training_target/{}.tif",
        ),
        (
            "images in imagesTr/, label images in labelsTr/",
            "imagesTr/{}_0000.png",
            "labelsTr/{}.png",
        ),
        ("images with label images next to them", "{}.tif", "{}_masks.tif"),
        ("images with label images next to them", "set/{}.png", "set/{}_cp_masks.png"),
    ],
)
def test_layouts_of_other_programs(
    tmp_path: Path, container: str, layout: str, image: str, label_image: str
) -> None:
    ids = ("cell 1", "cell_2", "n_masks_3")
    files = {name.format(id_): id_.encode() for id_ in ids for name in (image, label_image)}
    files |= {image.format("new"): b"", "dataset.json": b"", "cell 1_seg.npy": b""}
    files |= {"imagesTs/x_0000.png": b""} if "Tr" in image and "_0000" in image else {}
    with open_raw(write(tmp_path, files, container)) as raw:
        assert raw.layout == layout
        assert raw.samples == (
            *(RawSample(id_, image.format(id_), (), label_image.format(id_), True) for id_ in ids),
            RawSample("new", image.format("new")),
        )
    assert "dataset.json" in raw.unread


def test_masks_of_pixels_to_ignore(tmp_path: Path, container: str) -> None:
    kaggle = {"a/images/a.png": b"", "a/masks/1.png": b"", "a/ignore.png": b"1"}
    folders = {"set/images/a.png": b"", "set/labels/a.png": b"", "set/ignore/a.tif": b"2"}
    digests = set()
    for name, files in (("kaggle", kaggle), ("folders", folders)):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, files, container)
        with open_raw(path) as raw:
            [sample] = raw.samples
            assert sample.ignore in ("a/ignore.png", "set/ignore/a.tif")
            assert raw.read(sample.ignore) in (b"1", b"2")
            assert (set(sample.files), raw.unread) == (set(files), ())
            digests.add(raw.digest())
    (tmp_path / "changed").mkdir()
    files = kaggle | {"a/ignore.png": b"3"}
    with open_raw(write(tmp_path / "changed", files, container)) as raw:
        assert raw.digest() not in digests


def test_one_image_with_a_folder_of_labels(tmp_path: Path, container: str) -> None:
    files = {"x/images/a.png": b"", "x/labels/a.png": b""}
    with open_raw(write(tmp_path, files, container)) as raw:
        assert raw.samples == (RawSample("a", "x/images/a.png", (), "x/labels/a.png", True),)
    assert raw.samples[0].annotation == (("x/labels/a.png", "x/labels/a.png"),)


def test_other_results_of_cellpose_are_not_read(tmp_path: Path) -> None:
    names = ("a.png", "a_cp_masks.png", "a_flows.tif", "a_cp_output.png", "river_flows.png")
    with open_raw(write_folder(tmp_path, dict.fromkeys(names, b""))) as raw:
        assert [sample.id for sample in raw.samples] == ["a", "river_flows"]
    assert raw.unread == ("a_cp_output.png", "a_flows.tif")


def test_the_name_of_an_image_may_end_in_masks(tmp_path: Path) -> None:
    with open_raw(write_folder(tmp_path, {"a_masks.png": b"", "b_flows.png": b""})) as raw:
        assert [sample.id for sample in raw.samples] == ["a_masks", "b_flows"]


def test_a_top_folder_is_skipped_and_other_files_are_ignored(
    tmp_path: Path, container: str
) -> None:
    files = {f"stage1_train/{name}": content for name, content in FILES.items()}
    files |= {
        "__MACOSX/stage1_train/b/images/._b.png": b"",
        "stage1_train/.DS_Store": b"",
        "stage1_train/b/images/.hidden.png": b"",
        "stage1_train/b/masks/thumbs.db": b"",
        "stage1_train/b/masks/Desktop.ini": b"",
        "stage1_train/b/readme.txt": b"",
        "readme.txt": b"",
    }
    with open_raw(write(tmp_path, files, container)) as raw:
        assert [sample.image for sample in raw.samples] == [
            "stage1_train/a/images/a.tif",
            "stage1_train/b/images/b.png",
        ]
        assert raw.unread == ("readme.txt", "stage1_train/b/readme.txt")


def test_nothing_is_unpacked_to_the_disk(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", FILES)
    with open_raw(path) as raw:
        for sample in raw.samples:
            raw.read(sample.image)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("written", [lambda name: name.replace("/", "\\"), "./{}".format])
def test_a_zip_with_backslashes_or_a_leading_dot_in_its_names(
    tmp_path: Path, written: Callable[[str], str]
) -> None:
    files = {written(f"top/{name}"): content for name, content in FILES.items()}
    with open_raw(write_zip(tmp_path / "set.zip", files), annotated=True) as raw:
        assert [sample.id for sample in raw.samples] == ["a", "b"]
        assert raw.read("top/b/masks/1.png") == b"mask 1"


def test_an_empty_masks_folder_is_an_annotation(tmp_path: Path, container: str) -> None:
    files = {"x/images/x.png": b"", "y/images/y.png": b"", "y/masks/": b""}
    with open_raw(write(tmp_path, files, container)) as raw:
        x, y = raw.samples
    assert (x.masks, x.label_image, x.annotated) == ((), None, False)
    assert (y.masks, y.label_image, y.annotated) == ((), None, True)


def test_a_folder_of_plain_images(tmp_path: Path, container: str) -> None:
    files = {"slides/b.JPG": b"", "slides/a.tif": b"", "slides/c.gif": b"", "slides/\x1bd": b""}
    with open_raw(write(tmp_path, files, container)) as raw:
        assert raw.unread == ("slides/?d", "slides/c.gif")
        assert raw.samples == (RawSample("a", "slides/a.tif"), RawSample("b", "slides/b.JPG"))


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("a.png", "x/y/z/b.png"), ("a", "x/y/z/b")),
        (("s/a.png", "t/a.png"), ("s/a", "t/a")),
        (("plate/s/a.b.png", "plate/t/a.png"), ("s/a.b", "t/a")),
        (("plate/s/a.png", "plate/s/b.png"), ("a", "b")),
        (("s/a.png", "s/a_masks.png", "t/a.png"), ("s/a", "t/a")),
    ],
)
def test_images_in_folders_keep_them_in_their_ids(
    tmp_path: Path, container: str, names: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    with open_raw(write(tmp_path, dict.fromkeys(names, b""), container)) as raw:
        assert tuple(sample.id for sample in raw.samples) == ids
        assert raw.samples[0].annotated == ("s/a_masks.png" in names)


def test_the_id_has_no_ending_of_ome(tmp_path: Path) -> None:
    files = dict.fromkeys(("a.ome.tif", "b.ome.tiff", "c.ome.png", "d.e.tif"), b"")
    with open_raw(write_folder(tmp_path / "set", files)) as raw:
        assert [sample.id for sample in raw.samples] == ["a", "b", "c.ome", "d.e"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    write_folder(tmp_path, {os.fsdecode(b"caf\xe9.png"): b""})
    assert_error(
        tmp_path, match=r"the name 'caf.udce9\.png' has characters that cannot be printed\. Rename"
    )


@pytest.mark.parametrize(
    ("place", "read"),
    [("images", True), ("images/out/labels", True), ("images/.out", False), ("out", False)],
)
def test_reads_finds_files_that_would_belong_to_the_data_set(
    tmp_path: Path, place: str, read: bool
) -> None:
    (tmp_path / "images").mkdir()
    assert reads(tmp_path / "images", tmp_path / "images" / ".." / place) is read
    assert not reads(tmp_path / "images.zip", tmp_path / "images.zip" / "out")


@pytest.mark.parametrize(
    ("images", "out"),
    [
        ("set", "set"),
        ("set", "set/out"),
        ("out/labels", "out"),
        ("out/overlays", "out"),
        ("out/labels/../outlines", "out"),
        ("out/labels/a.png", "out"),
    ],
)
def test_results_must_not_mix_with_their_images(tmp_path: Path, images: str, out: str) -> None:
    for name in ("set", "out/labels", "out/overlays", "out/outlines"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "out" / "labels" / "a.png").touch()
    with pytest.raises(NucleusError) as caught:
        require_outside([tmp_path / "set" / "a.png", tmp_path / images], tmp_path / out)
    assert str(caught.value) == (
        f"The results in {tmp_path / out} would mix with the images in {tmp_path / images}. Choose a "
        "folder outside of it with --out."
    )


def test_results_outside_of_their_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "out" / "more").mkdir(parents=True)
    images = [tmp_path / "set", tmp_path / "set.zip", tmp_path / "out" / "more" / "a.png"]
    require_outside(images, tmp_path / "out")
    require_outside([tmp_path / "set"], tmp_path / "set" / ".out")


def test_one_image_file(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cell.png": b"pixels"})
    with open_raw(tmp_path / "cell.png") as raw:
        assert raw.samples == (RawSample("cell", "cell.png"),)
        assert raw.read("cell.png") == b"pixels"


def test_digest(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", FILES)
    with open_raw(path) as raw:
        assert raw.digest() == sha256_file(path)
    one, two = (write_folder(tmp_path / name, FILES) for name in ("one", "two"))
    with open_raw(one) as first, open_raw(two) as second:
        assert first.digest() == second.digest()
        (two / "b/masks/1.png").write_bytes(b"other")
        assert first.digest() != second.digest()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b""}, "no images found.*<id>/images"),
        ({"a/images/a.png": b"", "a/a.png": b""}, "a/a.png does not fit the layout"),
        ({"a/images/a.png": b"", "a/masks/1.jpg": b""}, "a/masks/1.jpg does not fit"),
        ({"a/images/a.png": b"", "a/masks/1.webp": b""}, "a/masks/1.webp does not fit"),
        ({"a/images/a.png": b"", "a/masks/": b"", "a/masks/b/1": b""}, "a/masks/b/.* does not fit"),
        ({"a/images/a.png": b"", "a/masks/1.png": b"", "a/masks/2.npy": b""}, "2.npy does not fit"),
        ({"s/a/images/a.png": b"", "s/a/masks/1/1.png": b""}, "s/a/masks/1/.* does not fit"),
        ({"a\nb.png": b""}, "'a.nb.png' has characters that cannot"),
        (
            {"a/images/a.png": b"", "a/masks/\r.png": b""},
            "masks/.r.png' has characters that cannot",
        ),
        ({"a/images/a.png": b"", "a/images/a.tif": b""}, "a has 2 images"),
        (
            {"a/images/a.png": b"", "b/images/b.png": b"", "b/images/c.png": b""},
            "b has 2 images",
        ),
        (
            {
                "a/images/1.png": b"",
                "a/images/2.png": b"",
                "b/images/3.png": b"",
                "b/images/4.png": b"",
            },
            "contains several data sets, below a/images/ and b/images/",
        ),
        (
            {"x/images/a.png": b"", "x/masks/a.png": b""},
            "x/masks/a.png may be the mask of one nucleus or a label image. If it is a mask, rename it "
            "to x/masks/1.png. If it is a label image, rename its folder to labels",
        ),
        (
            {"images/a.png": b"", "labels/a.png": b"", "masks/a.png": b""},
            "has both labels/ and masks/. Remove one of them",
        ),
        ({"images/a.png": b"", "labels/b.png": b""}, "labels/b.png has no image images/b. Name"),
        ({"images/a.png": b"", "more/b.png": b""}, "more/b.png does not fit the layout"),
        ({"images/a.png": b"", "images/a.tif": b"", "labels/a.png": b""}, "a has 2 images"),
        ({"images/a.png": b"", "labels/a.png": b"", "labels/a.tif": b""}, "a has 2 label images"),
        (
            {"imagesTr/a_0000.png": b"", "imagesTr/a_0001.png": b"", "labelsTr/a.png": b""},
            "imagesTr/a_0001.png is a further channel of a. Keep only",
        ),
        ({"a.png": b"", "a_masks.png": b"", "b_masks.png": b""}, "b_masks.png has no image b"),
        ({"a.png": b"", "a_masks.png": b"", "a_cp_masks.png": b""}, "a has 2 label images"),
        ({"images/\x1b.png": b""}, "has characters that cannot be printed"),
        ({"a/images/a.png": b"", "b/masks/1.png": b""}, "b has no image"),
        ({"a/images/a.png": b"", "b/images/": b""}, "b has no image"),
        (
            {"a/images/a.png": b"", "a/labels.png": b"", "a/masks.png": b""},
            "a has 2 label images",
        ),
        (
            {"a/images/a.png": b"", "a/labels.png": b"", "a/masks/1.png": b""},
            "a has both a masks folder and the label image a/labels.png",
        ),
        (
            {"s/a/images/a.png": b"", "t/b/images/b.png": b""},
            "contains several data sets, below s and t",
        ),
        ({"a.png": b"", "a.tif": b""}, "a has 2 images"),
        ({"raw/a.png": b"", "gt/a.tif": b""}, "gt/a.tif may be the label image of raw/a.png. In a"),
        ({"s/a.png": b"", "s/Ground_Truth/a.png": b""}, "may be the label image of s/a.png. In a"),
        (
            {"a.png": b"", "a_label.png": b"", "b.png": b""},
            "a_label.png may be the label image of a.p",
        ),
        (
            {"p/a.png": b"", "p/a-seg.tif": b""},
            "p/a-seg.tif may be the label image of p/a.png. In a",
        ),
        ({"a\x1b]0;b.png": b""}, "'a.x1b.0;b.png' has characters that cannot be printed"),
        ({f"{'ж' * 121}/images/a.png": b""}, "is longer than 240 bytes"),
    ],
)
def test_layouts_that_are_an_error(
    tmp_path: Path, container: str, files: dict[str, bytes], message: str
) -> None:
    assert_error(write(tmp_path, files, container), match=message)


@pytest.mark.parametrize("files", [{"labels/a.png": b"", "x/b.png": b""}, {"a_label.png": b""}])
def test_names_alone_make_no_label_image(tmp_path: Path, files: dict[str, bytes]) -> None:
    with open_raw(write_folder(tmp_path, files)) as raw:
        assert len(raw.samples) == len(files)


@pytest.mark.parametrize("files", [{"a.png": b""}, {"a/images/a.png": b""}])
def test_training_data_without_masks_are_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = write_folder(tmp_path / "set", files)
    assert_error(path, match="image a has no masks folder and no label image", annotated=True)


def test_a_path_that_cannot_be_accessed() -> None:
    assert_error(Path("a" * 300), match=r"cannot be accessed \(File name too long\)")


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    assert_error(tmp_path / "absent.zip", match=r"absent\.zip: no such file or folder.*<id>/images")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    assert_error(tmp_path, match=r"cannot be listed \(Permission denied\)")


def test_a_truncated_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    assert_error(path, match="not a folder, a complete zip file or an image")


@pytest.mark.parametrize(
    ("place", "value"),
    [(6, b"\x63\x00"), (46, b"\xff")],  # the version needed to unpack, and the name
)
def test_a_zip_with_a_damaged_directory(tmp_path: Path, place: int, value: bytes) -> None:
    path = write_zip(tmp_path / "set.zip", {"\u00e9.png": b""})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + place
    content[at : at + len(value)] = value
    path.write_bytes(content)
    assert_error(path, match="not a folder, a complete zip file or an image")


def test_a_link_to_itself_is_not_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, FILES)
    (folder / "again").symlink_to("again")
    assert "again" in walk(folder)
    with open_raw(folder) as raw:
        assert raw.samples == SAMPLES


@pytest.mark.parametrize("name", ["a.png", "a.zip"])
@pytest.mark.fault(
    "Security",
    "a pipe or device instead of a file",
    "refused in one line",
)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert_error(tmp_path / name, match="it is a pipe or a device and not a file")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with open_raw(tmp_path) as raw, pytest.raises(NucleusError, match="it is a pipe or a device"):
        raw.read("a.png")


@pytest.mark.fault(
    "Security",
    "links in a circle",
    "read once",
)
def test_links_in_a_circle(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, FILES)
    (folder / "again").symlink_to(folder)
    (folder / "a" / "up").symlink_to(folder)
    with open_raw(folder) as raw:
        assert raw.samples == SAMPLES


def test_folders_that_are_too_deep(tmp_path: Path) -> None:
    (tmp_path / "/".join("abcdefghijklmnopqr")).mkdir(parents=True)
    assert_error(tmp_path, match="more than 16 folders deep. Give the folder that holds the images")


@pytest.mark.parametrize("name", ["../a/images/a.png", "/a/images/a.png", "a\\..\\b.png"])
@pytest.mark.fault(
    "Security",
    "a zip whose names point outside of it",
    "refused in one line; nothing is unpacked",
)
def test_a_name_that_points_outside_the_zip(tmp_path: Path, name: str) -> None:
    assert_error(write_zip(tmp_path / "set.zip", {name: b""}), match="points outside the zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.fault(
    "Security",
    "a name that a zip has twice",
    "refused in one line",
)
def test_a_name_that_is_in_a_zip_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a.png", "./a.png"):
            archive.writestr(name, b"")
    assert_error(tmp_path / "set.zip", match="'a.png' is in the zip file twice")


def test_an_encrypted_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"a.png": b"x"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert_error(path, match=r"a\.png is encrypted")


@pytest.mark.fault(
    "Security",
    "a zip that unpacks to more than memory",
    "refused in one line",
)
def test_a_file_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"a.png": b"x"})
    content = bytearray(path.read_bytes())
    size = content.index(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    content[size : size + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with open_raw(path) as raw:
        assert [sample.id for sample in raw.samples] == ["a"]
    content[size : size + 4] = (3 * 2**30).to_bytes(4, "little")
    path.write_bytes(content)
    assert_error(path, match=r"a\.png is 3\.0 GiB when unpacked, and the limit is 2 GiB\. ")


def test_a_damaged_file_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"stored pixels")
    path.write_bytes(path.read_bytes().replace(b"stored pixels", b"stored pixelz"))
    with open_raw(path) as raw, pytest.raises(NucleusError, match=r"a\.png cannot be read"):
        raw.read("a.png")


@pytest.mark.parametrize("method", [9, zipfile.ZIP_LZMA], ids=["Deflate64", "damaged LZMA"])
def test_a_file_that_cannot_be_unpacked(tmp_path: Path, method: int) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"\x09\x04\x05\x00 no such stream")
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[8] = content[directory + 10] = method
    path.write_bytes(content)
    with open_raw(path) as raw, pytest.raises(NucleusError, match=r"a\.png cannot be read"):
        raw.read("a.png")


def test_a_file_that_was_deleted(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", FILES)
    with open_raw(path) as raw:
        (path / "b/images/b.png").unlink()
        with pytest.raises(NucleusError, match=r"b/images/b\.png cannot be read"):
            raw.read("b/images/b.png")


def test_real_zips(dsb2018: Path) -> None:
    with open_raw(dsb2018 / "stage1_train.zip", annotated=True) as train:
        assert len(train.samples) == 664
        assert sum(len(sample.masks) for sample in train.samples) == 28_986
    with open_raw(dsb2018 / "stage1_test.zip") as test:
        assert len(test.samples) == 65
        assert not any(sample.annotated for sample in test.samples)


@pytest.mark.parametrize(
    ("count", "name"), [(1, "0.png"), (2, "0.png and 1 more"), (900, "0.png and 899 more")]
)
def test_the_name_of_a_data_set_of_many_files(count: int, name: str) -> None:
    assert dataset_name([Path(f"/images/{index}.png") for index in range(count)]) == name


def test_the_name_of_a_data_set_is_short_enough_for_mlflow() -> None:
    assert len(dataset_name([Path("x" * 600), Path("y")])) < 500
