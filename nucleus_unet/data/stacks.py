"""Which plane of a TIFF stack is the image: its channel, depth and time."""

from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

_AXES = {"C": "channels", "Z": "z planes", "T": "times"}
_OPTIONS = {"C": "--channel NUMBER", "Z": "--z max, middle or a number", "T": "--time NUMBER"}
_PAGES = "IQR"
"""Axes of pages that say nothing about themselves; they count as z planes."""


def choose_plane(tiff: tifffile.TiffFile, name: str, plane: Plane) -> NDArray[Any]:
    """Read one plane of a TIFF with several pages or channels.

    Parameters
    ----------
    tiff : tifffile.TiffFile
    name : str
        Name of the file, for messages.
    plane : Plane
        What to choose. Choices along an axis that has only one plane are ignored.

    Returns
    -------
    ndarray
        (H, W) or (H, W, C) with C colours, with the values of the file.

    Raises
    ------
    NucleusError
        If a choice is missing or is not in the file, or if the file holds several images.
    """
    if len(tiff.series) != 1:
        raise NucleusError(
            f"{name}: holds {len(tiff.series)} images of different sizes. Save the one to be segmented "
            "as a file of its own."
        )
    [series] = tiff.series
    axes = series.axes
    if "Z" not in axes and (pages := [axis for axis in axes if axis in _PAGES]):
        axes = axes.replace(pages[0], "Z")
    if "C" not in axes and tiff.pages.first.photometric != tifffile.PHOTOMETRIC.RGB:
        axes = axes.replace("S", "C")
    if unknown := [axis for axis in axes if axis not in "YXSCZT"]:
        raise NucleusError(f"{name}: has the axes {axes}, of which {unknown[0]} is not known.")
    counts = dict(zip(axes, series.shape, strict=True))
    names = _channel_names(tiff, counts.get("C", 1))
    held = {
        axis: f"{counts[axis]} {what}" + (f" ({', '.join(names)})" if axis == "C" and names else "")
        for axis, what in _AXES.items()
        if counts.get(axis, 1) > 1
    }
    choices = {"C": plane.channel, "Z": plane.z, "T": plane.time}
    if any(choices[axis] is None for axis in held):
        options = _OPTIONS | ({"C": f"--channel {names[0]} or a number"} if names else {})
        needed = " and ".join(options[axis] for axis in held)
        raise NucleusError(
            f"{name}: holds {', '.join(held.values())}. Choose what to segment with {needed}."
        )
    pixels = series.asarray()
    for axis in [axis for axis in _AXES if axis in axes]:
        at, choice = axes.index(axis), choices[axis]
        axes = axes.replace(axis, "")
        if axis == "Z" and choice == "max":
            pixels = pixels.max(axis=at)
            continue
        position = (
            _position(choice, counts[axis], names if axis == "C" else []) if axis in held else 0
        )
        if position is None:
            raise NucleusError(f"{name}: holds {held[axis]}, and {choice} is none of them.")
        pixels = pixels.take(position, axis=at)
    return np.moveaxis(pixels, axes.index("S"), -1) if "S" in axes else pixels


def _position(choice: str | int | None, count: int, names: list[str]) -> int | None:
    """The position of a choice along an axis, from 0; None if it is not there."""
    text = str(choice).lower()
    if text == "middle":
        return count // 2
    if text in (lower := [name.lower() for name in names]):
        return lower.index(text)
    return int(text) - 1 if text.isdecimal() and 1 <= int(text) <= count else None


def _channel_names(tiff: tifffile.TiffFile, count: int) -> list[str]:
    """Names of the channels in OME's metadata, if each has one."""
    if not tiff.ome_metadata:
        return []
    found = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    image = found[0] if isinstance(found, list) else found
    channels = image["Pixels"].get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [str(channel["Name"]) for channel in channels if channel.get("Name")]
    return names if len(names) == count else []
