"""OME-Zarr, as zarr writes it."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data.identity import fingerprint
from nucleus_unet.data.images import decode_channels, decode_image
from nucleus_unet.data.ome_zarr import join_zarr, pack_folder, pack_zarr
from nucleus_unet.data.prepared import prepare_images
from nucleus_unet.data.raw import open_raw
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

zarr = pytest.importorskip("zarr")

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
STACKED = np.stack([np.full((3, 4, 6), 10 * c, np.uint16) for c in range(2)]) + np.arange(
    3, dtype=np.uint16
).reshape(3, 1, 1)
each_version = pytest.mark.parametrize("version", ["0.4", "0.5"])


def axes_of(names: str, unit: str | None = "micrometer") -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": name, "type": kinds.get(name, "space")}
        | ({"unit": unit} if unit and name in "yx" else {})
        for name in names
    ]


def multiscale(axes: list[dict[str, str]], step: float = 0.25) -> dict[str, Any]:
    scale = [step if axis["name"] in "yx" else 1.0 for axis in axes]
    steps = [{"type": "scale", "scale": scale}]
    return {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}


def write(
    folder: Path,
    pixels: NDArray[Any] = PIXELS,
    names: str = "yx",
    version: str = "0.4",
    *,
    channels: tuple[str, ...] = (),
    **changes: Any,
) -> Path:
    """Writes an image; the changes are those of its metadata."""
    image = multiscale(axes_of(names)) | changes
    omero = {"omero": {"channels": [{"label": label} for label in channels]}} if channels else {}
    found = {"multiscales": [image], **omero}
    number = 2 if version == "0.4" else 3
    group = zarr.open_group(str(folder), mode="a", zarr_format=number)
    group.attrs.update(found if number == 2 else {"ome": {"version": version, **found}})
    chunks = (1,) * (pixels.ndim - 2) + (3, 4)
    array = group.create_array("0", shape=pixels.shape, dtype=pixels.dtype, chunks=chunks)
    array[...] = pixels
    return folder


def read(folder: Path, **chosen: Any) -> NDArray[Any]:
    found = decode_channels(pack_folder(folder), "cells.zarr", Plane(**chosen))
    return found.planes[found.segmented[0]]


@each_version
def test_one_plane_with_its_pixel_size(tmp_path: Path, version: str) -> None:
    content = pack_folder(write(tmp_path / "a.zarr", version=version))
    decoded = decode_image(content, "cells.zarr")
    np.testing.assert_array_equal(decoded.image[..., 0], PIXELS)
    assert (decoded.mode, decoded.pixel_size_um) == ("gray", 0.25)


@each_version
def test_a_plane_is_chosen(tmp_path: Path, version: str) -> None:
    write(tmp_path / "a.zarr", STACKED, "czyx", version, channels=("DAPI", "GFP"))
    assert np.unique(read(tmp_path / "a.zarr", channel="GFP", z=3)) == [12]
    assert np.unique(read(tmp_path / "a.zarr", channel="1", z="max")) == [2]
    with pytest.raises(NucleusError) as caught:
        read(tmp_path / "a.zarr")
    assert str(caught.value) == (
        "cells.zarr: holds 2 channels (DAPI, GFP), 3 z planes. Choose what to segment with "
        "--channel DAPI or a number and --z max, middle or a number."
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": axes_of("yx", "nanometer")}, None),
        ({"axes": axes_of("yx", "millimeter")}, 250),
        ({"axes": axes_of("yx", None)}, None),
        ({"coordinateTransformations": [{"type": "scale", "scale": [2.0, 2.0]}]}, 0.5),
        ({"coordinateTransformations": [{"type": "scale", "scale": [2.0, 1.0]}]}, None),
        ({"datasets": [{"path": "0"}]}, None),
    ],
)
def test_pixel_sizes(tmp_path: Path, changes: dict[str, Any], expected: float | None) -> None:
    content = pack_folder(write(tmp_path / "a.zarr", **changes))
    assert decode_image(content, "cells.zarr").pixel_size_um == expected


@each_version
def test_an_image_of_a_plate_is_chosen(tmp_path: Path, version: str) -> None:
    zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=2 if version == "0.4" else 3)
    for place, more in (("A/10/0", 10), ("A/2/0", 2), ("A/2/0/labels/nuclei", 0)):
        write(tmp_path / "p.zarr" / place, PIXELS + more, version=version)
    np.testing.assert_array_equal(read(tmp_path / "p.zarr", scene="A/10/0"), PIXELS + 10)
    np.testing.assert_array_equal(read(tmp_path / "p.zarr", scene="1"), PIXELS + 2)
    with pytest.raises(NucleusError) as caught:
        read(tmp_path / "p.zarr")
    assert str(caught.value) == (
        "cells.zarr: holds 2 images (A/2/0, A/10/0). Choose one with --scene A/2/0 or a number."
    )


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.zarr")
    content = pack_folder(folder)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert pack_folder(folder) == content
    files = {"b": lambda: b"1", "a/": lambda: b"", "a": lambda: b"2"}
    with zipfile.ZipFile(io.BytesIO(pack_zarr(files))) as archive:
        assert archive.namelist() == ["a", "b"]


def test_the_files_of_an_image_in_a_zip_are_joined() -> None:
    members = dict.fromkeys(
        ("x.png", "d/a.zarr/", "d/a.zarr/.zattrs", "d/a.zarr/0/b.zarr/0"), bytes
    )
    assert sorted(join_zarr(members)) == ["d/a.zarr", "x.png"]


@pytest.mark.parametrize("name", ["cell.ome.zarr", "cell.zarr", "cell"])
def test_a_folder_is_one_image(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set" / name)
    for path in (tmp_path / "set", tmp_path / "set" / name):
        [entry] = prepare_images([path], tmp_path / "store", "code").entries
        assert (entry.id, entry.height, entry.width) == ("cell", 4, 6)


def test_a_zip_holds_images(tmp_path: Path) -> None:
    write(tmp_path / "cell.ome.zarr")
    files = [path for path in (tmp_path / "cell.ome.zarr").rglob("*") if path.is_file()]
    for name, root in (("set.zip", tmp_path), ("cell.ome.zarr.zip", tmp_path / "cell.ome.zarr")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(root))
        [entry] = prepare_images([tmp_path / name], tmp_path / "store", "code").entries
        assert (entry.id, entry.height, entry.width) == ("cell", 4, 6)


def test_a_changed_chunk_changes_fingerprint_and_digest(tmp_path: Path) -> None:
    folder = write(tmp_path / "set/cell.ome.zarr")
    for path in (tmp_path / "set", folder):
        with open_raw(path) as raw:
            before = (fingerprint([path]), raw.digest())
        chunk = folder / "0" / "0.0"
        chunk = chunk if chunk.is_file() else folder / "0" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes() + b"x")
        with open_raw(path) as raw:
            after = (fingerprint([path]), raw.digest())
        assert before[0] != after[0]
        assert before[1] != after[1]


def changed(folder: Path, file: str, **changes: Any) -> Path:
    """Changes values in a file of metadata."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": axes_of("xy")}, "the axes XY and the shape"),
        ({"axes": axes_of("zyx")}, "the axes ZYX and the shape"),
        ({"datasets": []}, "file cannot be read"),
        ({"datasets": [{"path": "7"}]}, "file cannot be read"),
        ({"axes": ["y", "x"]}, "file cannot be read"),
    ],
)
def test_metadata_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NucleusError, match=f"^cells.zarr: .*{message}"):
        read(write(tmp_path / "a.zarr", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2**20, 2**20]}, "has 1048576×1048576 pixels, and the limit is 2³⁰"),
        ({"chunks": [2**20, 2**20]}, "a chunk has the shape"),
        ({"dtype": "<c8", "fill_value": None}, "it contains complex64 values"),
        ({"dtype": "|O"}, "file cannot be read"),
        ({"compressor": {"id": "pickle"}}, "file cannot be read"),
        ({"compressor": {"id": "nothing"}}, "file cannot be read"),
    ],
)
def test_arrays_that_are_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = changed(write(tmp_path / "a.zarr"), "0/.zarray", **changes)
    with pytest.raises(NucleusError, match=f"^cells.zarr: .*{message}") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    folder = changed(
        write(tmp_path / "a.zarr"), "0/.zarray", filters=[{"id": "pickle"}], compressor=None
    )
    for chunk in (folder / "0").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith("."):
            chunk.write_bytes(pickle.dumps(Runs(tmp_path / "made")))
    with pytest.raises(NucleusError, match=r"file cannot be read .*pickle"):
        read(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"PK\3\4", pack_zarr({}), pack_zarr({"a": lambda: b"b"})])
def test_a_zip_without_an_image(content: bytes) -> None:
    with pytest.raises(
        NucleusError, match=r"^cells.zarr: (this OME-Zarr file cannot be read|the file is )"
    ):
        decode_image(content, "cells.zarr")


def test_a_damaged_chunk(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.zarr")
    for chunk in (folder / "0").rglob("0*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    with pytest.raises(NucleusError, match=r"^cells.zarr: this OME-Zarr file cannot be read"):
        read(folder)
