"""Read the planes of a CZI, which are stored as tiles."""

from collections import defaultdict
from collections.abc import Mapping
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.pixel_size import square_side_um
from nucleus_unet.data.stacks import Scenes, Stack

_JPEG, _LZW, _JPEG_XR, _ZSTD, _ZSTD_WITH_HEADER = 1, 2, 4, 5, 6
_IN_PLANE = ("X", "Y", "M", "S")
"""Dimensions that place a tile: in the plane, in the order of tiles, and in a scene."""


def czi_scenes(czifile: Any, content: bytes) -> Scenes:
    """The scenes of a CZI.

    Parameters
    ----------
    czifile : module
    content : bytes

    Raises
    ------
    ValueError
        If parts of the image are in other files or have no place in it.
    """
    file = czifile.CziFile(BytesIO(content))
    tiles = defaultdict(list)
    for entry in file.subblock_directory:
        dimensions = {found.dimension: found for found in entry.dimension_entries}
        if entry.file_part:
            raise ValueError("parts of it are in other files")
        if entry.shape == entry.stored_shape:  # if they differ, it is a smaller copy for viewers
            scene = dimensions["S"].start if "S" in dimensions else 0
            tiles[scene].append((dimensions, entry))
    if not tiles:
        raise ValueError("it holds no pixels")
    found = ElementTree.fromstring(file.metadata() or "<nothing/>")
    names = {scene.get("Index"): scene.get("Name", "") for scene in found.iterfind(".//Scene")}
    numbers = sorted(tiles)
    scenes = [names.get(str(number), "") for number in numbers]
    return scenes, lambda scene: _stack(tiles[numbers[scene]], found)


def _stack(tiles: list[tuple[dict[str, Any], Any]], found: ElementTree.Element) -> Stack:
    """One scene, from its tiles and the metadata."""
    starts = defaultdict(set)
    for dimensions, _ in tiles:
        for axis, dimension in dimensions.items():
            if axis not in _IN_PLANE:
                starts[axis].add(dimension.start)
                if dimension.size != 1:
                    raise ValueError(f"a tile has several positions along the axis {axis}")
    positions = {axis: sorted(values) for axis, values in starts.items()}
    top, bottom = _extent(tiles, "Y")
    left, right = _extent(tiles, "X")

    def read(at: Mapping[str, int]) -> NDArray[Any]:
        wanted = {axis: positions[axis][position] for axis, position in at.items()}
        chosen = [
            (dimensions, entry)
            for dimensions, entry in tiles
            if all(dimensions[axis].start == start for axis, start in wanted.items())
        ]
        if not chosen:
            raise ValueError("a plane is missing")
        chosen.sort(key=lambda tile: tile[0]["M"].start if "M" in tile[0] else 0)
        dtype = np.dtype(chosen[0][1].dtype)
        plane = np.zeros((bottom - top, right - left, *dtype.shape), dtype.base)
        for dimensions, entry in chosen:
            y, x = dimensions["Y"].start - top, dimensions["X"].start - left
            height, width = dimensions["Y"].size, dimensions["X"].size
            plane[y : y + height, x : x + width] = _tile(entry, height, width)
        return plane

    channels = _names(found, "Information/Image/Dimensions") or _names(found, "DisplaySetting")
    counts = {axis: len(values) for axis, values in positions.items()}
    x, y = (found.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value") for axis in "XY")
    size = square_side_um(x, y, "m", "m")
    return Stack((bottom - top, right - left), counts, channels, size, read)


def _names(found: ElementTree.Element, where: str) -> list[str]:
    """Names of the channels in one part of the metadata; none if all are blank."""
    names = [channel.get("Name", "") for channel in found.iterfind(f".//{where}/Channels/Channel")]
    return names if any(names) else []


def _extent(tiles: list[tuple[dict[str, Any], Any]], axis: str) -> tuple[int, int]:
    """The first position of all tiles along an axis, and the one after the last."""
    edges = [dimensions[axis] for dimensions, _ in tiles]
    return min(edge.start for edge in edges), max(edge.start + edge.size for edge in edges)


def _tile(entry: Any, height: int, width: int) -> NDArray[Any]:
    """Pixels (H, W) or (H, W, S), with colours in the order RGB."""
    segment = entry.data_segment()
    stored = segment.data(raw=True)
    if len(stored) != segment.data_size:
        raise ValueError("it is truncated")
    dtype = np.dtype(entry.dtype)
    shape = (height, width, *dtype.shape)
    # The decoders check that the result fits, so that no file unpacks to more than it claims.
    pixels = np.empty(shape, dtype.base)
    if entry.compression == _JPEG:
        return imagecodecs.jpeg8_decode(stored, out=pixels)
    if entry.compression == _JPEG_XR:
        return imagecodecs.jpegxr_decode(stored, out=pixels)
    pixels = np.frombuffer(_unpacked(stored, entry.compression, pixels.nbytes), dtype.base)
    pixels = pixels.reshape(shape)
    return pixels[..., [2, 1, 0, 3][: shape[2]]] if dtype.shape else pixels


def _unpacked(stored: bytes, compression: int, length: int) -> bytes | bytearray:
    """The bytes of a tile."""
    if compression == 0:
        return stored
    if compression == _LZW:
        return imagecodecs.lzw_decode(stored, out=length)
    if compression == _ZSTD:
        return imagecodecs.zstd_decode(stored, out=length)
    if compression == _ZSTD_WITH_HEADER:
        header = stored[0]  # its length; a longer one says in its last bit if the bytes are parted
        unpacked = imagecodecs.zstd_decode(stored[header:], out=length)
        is_parted = header > 1 and stored[2] & 1
        # All low bytes, then all high bytes.
        return (
            np.frombuffer(unpacked, np.uint8).reshape(2, -1).T.tobytes() if is_parted else unpacked
        )
    raise ValueError(f"compression {compression} is not known")
