"""The plane of a TIFF that is segmented: which channel, which depth and which time."""

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
    sizes = dict(zip(axes, series.shape, strict=True))
    names = _channel_names(tiff, sizes.get("C", 1))
    choices = {"C": plane.channel, "Z": plane.z, "T": plane.time}
    if unknown := [axis for axis in axes if axis not in "YXS" and axis not in _AXES]:
        raise NucleusError(f"{name}: has the axes {axes}, of which {unknown[0]} is not known.")
    if any(sizes.get(axis, 1) > 1 and choices[axis] is None for axis in _AXES):
        held = ", ".join(
            f"{sizes[axis]} {what}" + (f" ({', '.join(names)})" if axis == "C" and names else "")
            for axis, what in _AXES.items()
            if sizes.get(axis, 1) > 1
        )
        options = _OPTIONS | ({"C": f"--channel {names[0]} or a number"} if names else {})
        needed = " and ".join(options[axis] for axis in _AXES if sizes.get(axis, 1) > 1)
        raise NucleusError(f"{name}: holds {held}. Choose what to segment with {needed}.")
    pixels = series.asarray()
    for axis in _AXES:
        if axis not in axes:
            continue
        at, count = axes.index(axis), sizes[axis]
        axes = axes.replace(axis, "")
        if axis == "Z" and plane.z == "max" and count > 1:
            pixels = pixels.max(axis=at)
        else:
            pixels = pixels.take(_position(name, axis, choices[axis], count, names), axis=at)
    return np.moveaxis(pixels, axes.index("S"), -1) if "S" in axes else pixels


def _position(name: str, axis: str, choice: str | int | None, count: int, names: list[str]) -> int:
    """The position of a choice along an axis, from 0."""
    if count == 1:
        return 0
    if axis == "Z" and choice == "middle":
        return count // 2
    lower = [channel.lower() for channel in names] if axis == "C" else []
    if str(choice).lower() in lower:
        return lower.index(str(choice).lower())
    if str(choice).isdecimal() and 1 <= int(str(choice)) <= count:
        return int(str(choice)) - 1
    held = f"{count} {_AXES[axis]}" + (f" ({', '.join(names)})" if lower else "")
    raise NucleusError(f"{name}: holds {held}, and {choice} is none of them.")


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
