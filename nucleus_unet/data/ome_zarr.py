"""Read OME-Zarr (NGFF 0.4 and 0.5): a folder of chunks, which is handled as a zip file in memory."""

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.pixel_size import square_side_um
from nucleus_unet.data.stacks import MOST_PIXELS, Scenes, Stack

LARGEST_UNPACKED_BYTES = 2**33
"""Limit for a compressed zip file of an OME-Zarr."""

_METADATA = (".zattrs", "zarr.json")
_IN_ZARR = re.compile(r"(?P<image>(?:.*?/)?[^/]+?\.zarr)/(?P<file>.+)", re.IGNORECASE | re.DOTALL)
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can hold

Files = Mapping[str, Callable[[], bytes]]
"""For each file by name, a function that reads it."""


def is_zarr(folder: Path) -> bool:
    """Whether a folder is an OME-Zarr, from its name or from the files at its root."""
    return folder.suffix.lower() == ".zarr" or any((folder / name).is_file() for name in _METADATA)


def zarr_files(folder: Path) -> dict[str, Callable[[], bytes]]:
    """The files of an OME-Zarr."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes
        for path in folder.rglob("*")
        if path.is_file()
    }


def join_zarr(members: Files) -> dict[str, Callable[[], bytes]]:
    """The files of a data set, with one file for each OME-Zarr among them, packed by `pack_zarr`.

    Examples
    --------
    >>> sorted(join_zarr({"a.png": bytes, "b.zarr/.zattrs": bytes, "b.zarr/0/0/0": bytes}))
    ['a.png', 'b.zarr']
    """
    joined: dict[str, Callable[[], bytes]] = {}
    parts: defaultdict[str, dict[str, Callable[[], bytes]]] = defaultdict(dict)
    for name, read in members.items():
        if match := _IN_ZARR.fullmatch(name):
            parts[match["image"]][match["file"]] = read
        else:
            joined[name] = read
    packed = {image: partial(pack_zarr, files) for image, files in parts.items()}
    return {name: read for name, read in joined.items() if name.rstrip("/") not in packed} | packed


def pack_folder(folder: Path) -> bytes:
    """A folder with an OME-Zarr as `pack_zarr` gives it."""
    return pack_zarr(zarr_files(folder))


def pack_zarr(files: Files) -> bytes:
    """An OME-Zarr as the bytes of a zip file without compression, the same for the same files."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            if not name.endswith("/"):
                archive.writestr(zipfile.ZipInfo(name, _DATE), files[name]())
    return buffer.getvalue()


def zarr_scenes(zarr: Any, content: bytes) -> Scenes:
    """The images of an OME-Zarr: one, or those of a plate or of a list of series.

    Parameters
    ----------
    zarr : module
    content : bytes
        A zip file of the folder.

    Raises
    ------
    ValueError
        If it holds no image, or metadata and arrays do not fit.
    """
    from zarr.buffer import cpu

    archive = zipfile.ZipFile(BytesIO(content))
    files = {i.filename: i for i in archive.infolist() if not i.filename.endswith("/")}
    if sum(info.file_size for info in files.values()) > max(LARGEST_UNPACKED_BYTES, len(content)):
        raise ValueError("it unpacks to more than 8 GiB")
    images = [
        (group, multiscale, metadata)
        for group, metadata in sorted(_groups(archive), key=lambda found: _in_order(found[0]))
        for multiscale in metadata.get("multiscales", ())
    ]
    if not images:
        raise ValueError("its metadata name no image")

    def stack(scene: int) -> Stack:
        group, multiscale, metadata = images[scene]
        full = multiscale["datasets"][0]
        folder = f"{group}{full['path']}/"
        buffers = {
            name.removeprefix(folder): cpu.Buffer.from_bytes(archive.read(info))
            for name, info in files.items()
            if name.startswith(folder)
        }
        array = zarr.open_array(zarr.storage.MemoryStore(buffers), mode="r")
        channels = metadata.get("omero", {}).get("channels", ())
        return _stack(array, multiscale, [channel.get("label", "") for channel in channels])

    names = [group.rstrip("/") or multiscale.get("name", "") for group, multiscale, _ in images]
    return names, stack


def _groups(archive: zipfile.ZipFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each folder of an OME-Zarr that has metadata of NGFF, but for label images."""
    for path in archive.namelist():
        group, slash, name = path.rpartition("/")
        if name not in _METADATA or "labels" in group.split("/"):
            continue
        found = json.loads(archive.read(path))
        yield group + slash, found if name == ".zattrs" else found["attributes"].get("ome", {})


def _in_order(group: str) -> list[str]:
    """A key that sorts numbers as numbers."""
    return [part.zfill(8) for part in group.split("/")]


def _stack(array: Any, multiscale: dict[str, Any], channels: list[str]) -> Stack:
    axes = [axis["name"].upper() for axis in multiscale["axes"]]
    if axes[-2:] != ["Y", "X"] or len(axes) != len(array.shape):
        raise ValueError(f"the axes {''.join(axes)} and the shape {array.shape} do not fit")
    if prod(array.chunks) > MOST_PIXELS:
        raise ValueError(f"a chunk has the shape {array.chunks}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"it contains {array.dtype} values")
    counts = dict(zip(axes[:-2], array.shape, strict=False))

    def read(at: Mapping[str, int]) -> NDArray[Any]:
        return np.asarray(array[tuple(at[axis] for axis in axes[:-2])])

    full = multiscale["datasets"][0]
    steps = [*full.get("coordinateTransformations", ())]
    steps += multiscale.get("coordinateTransformations", ())
    scales = [step["scale"] for step in steps if step["type"] == "scale"]
    y, x = (prod(scale[at] for scale in scales) if scales else None for at in (-2, -1))
    unit_y, unit_x = (axis.get("unit") for axis in multiscale["axes"][-2:])
    size = square_side_um(x, y, unit_x, unit_y)
    return Stack(tuple(array.shape[-2:]), counts, channels, size, read)
