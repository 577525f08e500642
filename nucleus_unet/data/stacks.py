"""Which plane of a file is the image: its scene, channel, depth and time."""

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from nucleus_unet.data.pixel_size import tiff_pixel_size_um
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import first_names
from nucleus_unet.recipe import Plane

MOST_PIXELS = 2**30
"""Limit of OpenCV for files other than TIFF; it holds for those too that OpenCV does not read."""

_AXES = {"C": "channels", "Z": "z planes", "T": "times"}
_OPTIONS = {"C": "--channel NUMBER", "Z": "--z max, middle or a number", "T": "--time NUMBER"}
_PAGES = "IQR"
"""Axes of pages that say nothing about themselves; they count as z planes."""


@dataclass(frozen=True)
class Stack:
    """The planes of one image of a file. None of them has been read."""

    size: tuple[int, int]
    """Height and width in pixels."""
    counts: Mapping[str, int]
    """Number of positions along each axis other than height and width: C channels, Z planes, T times.

    Other axes can only be read if they have one position.
    """
    channels: Sequence[str]
    """Names of the channels. They only count if each channel has a name of its own."""
    pixel_size_um: float | None
    """As `square_side_um`."""
    read: Callable[[Mapping[str, int]], NDArray[Any]]
    """Reads the plane at a position, from 0, along every axis: (H, W), or (H, W, S) with S colours."""


Scenes = tuple[Sequence[str], Callable[[int], Stack]]
"""Names of the images in a file, and a function that opens one of them by its position."""


@dataclass(frozen=True)
class Channels:
    """The channels of an image, with the values of its file."""

    planes: Mapping[str, NDArray[Any]]
    """Values (H, W) by name: ``gray``; ``red``, ``green`` and ``blue``; or the channels of a stack, by
    name or number."""
    segmented: tuple[str, ...]
    """The channels that the image is made from."""


class Chosen(NamedTuple):
    """What `choose_plane` reads."""

    pixels: NDArray[Any]
    """(H, W) or (H, W, S) with S colours, with the values of the file."""
    pixel_size_um: float | None = None
    """Side of a pixel."""
    channels: Channels | None = None
    """The same plane of every channel; None if it was not asked for, or if there is only one."""


def choose_plane(scenes: Scenes, name: str, plane: Plane, *, every_channel: bool = False) -> Chosen:
    """Read one plane of a file with several images, channels, depths or times.

    Parameters
    ----------
    scenes : Scenes
    name : str
        Name of the file, for messages.
    plane : Plane
        What to choose. If there is only one channel, another one cannot be chosen. If there is only one
        z plane, time or scene, it is read whatever is chosen.
    every_channel : bool
        Read the other channels too.

    Raises
    ------
    NucleusError
        If a choice is missing or is not in the file, or if there are several positions along an axis
        that is not known.
    """
    stack = _scene(scenes, name, plane.scene)
    at = _chosen(stack, name, plane)
    pixels, count = _read(stack, at, plane), stack.counts.get("C", 1)
    if count == 1:
        only = stack.channels[0] if len(stack.channels) == 1 else ""
        require_channel(plane.channel, name, pixels, only)
    if not every_channel or count == 1 or pixels.ndim > 2:
        return Chosen(pixels, stack.pixel_size_um)
    names = _distinct(stack.channels, count) or [str(number) for number in range(1, count + 1)]
    others = {
        name: _read(stack, at | {"C": position}, plane) for position, name in enumerate(names)
    }
    return Chosen(pixels, stack.pixel_size_um, Channels(others, (names[at["C"]],)))


def require_channel(choice: str | None, name: str, pixels: NDArray[Any], only: str = "") -> None:
    """Make sure that a chosen channel is the only one of an image.

    Parameters
    ----------
    choice : str, optional
        Name or number of the channel. Any name will do if that of the image is not known.
    name : str
        Name of the file, for messages.
    pixels : (H, W) or (H, W, S)
        The image.
    only : str
        Name of its channel, or nothing if it is not known.

    Raises
    ------
    NucleusError
        If it is another channel, or if the image has colours.
    """
    if choice is None:
        return
    if pixels.ndim > 2 and pixels.shape[2] > 2:
        raise NucleusError(f"{name}: is a colour image without channels. Leave --channel out.")
    is_number, known = choice.isdecimal(), {"1", only.lower()}
    if choice.lower() not in known and (is_number or only):
        called = f" ({only})" if only else ""
        raise NucleusError(f"{name}: holds 1 channel{called}, and {choice} is none of them.")


def _read(stack: Stack, at: Mapping[str, int], plane: Plane) -> NDArray[Any]:
    if plane.z == "max" and stack.counts.get("Z", 1) > 1:
        return functools.reduce(
            np.maximum, (stack.read({**at, "Z": z}) for z in range(stack.counts["Z"]))
        )
    return stack.read(at)


def tiff_scenes(
    tiff: tifffile.TiffFile, name: str, opened: Callable[[tifffile.TiffPage], None]
) -> Scenes:
    """The images of a TIFF.

    Parameters
    ----------
    tiff : tifffile.TiffFile
    name : str
        Name of the file, for messages.
    opened : callable
        Gets the first page of an image that is opened, and raises if it cannot be read.
    """

    def stack(scene: int) -> Stack:
        series = tiff.series[scene]
        if None in series.pages:  # tifffile would read zeros
            raise NucleusError(
                f"{name}: parts of the image are in other files, as its metadata say. Save it as one "
                "file."
            )
        opened(series.keyframe)
        axes = series.axes
        if "Z" not in axes and (pages := [axis for axis in axes if axis in _PAGES]):
            axes = axes.replace(pages[0], "Z")
        if "C" not in axes and series.keyframe.photometric != tifffile.PHOTOMETRIC.RGB:
            axes = axes.replace("S", "C")
        counts = {n: c for n, c in zip(axes, series.shape, strict=True) if n not in "YXS"}
        values = functools.cache(series.asarray)

        def read(at: Mapping[str, int]) -> NDArray[Any]:
            pixels = values()[tuple(at.get(axis, slice(None)) for axis in axes)]
            left = [axis for axis in axes if axis not in at]
            return np.moveaxis(pixels, left.index("S"), -1) if "S" in left else pixels

        image = _ome_image(tiff, scene)
        channels = _listed(image["Pixels"].get("Channel", [])) if image else []
        names = [str(channel.get("Name", "")) for channel in channels]
        height, width = (series.shape[axes.index(axis)] for axis in "YX")
        return Stack((height, width), counts, names, tiff_pixel_size_um(tiff, scene), read)

    names = [series.name for series in tiff.series]
    return names, stack


def _scene(scenes: Scenes, name: str, choice: str | None) -> Stack:
    """The chosen image of a file."""
    found, stack = scenes
    names = _distinct(found, len(found))
    held = f"{len(found)} images" + (f" ({first_names(names, 5)})" if names else "")
    if len(found) > 1 and choice is None:
        option = f"{shlex.quote(names[0])} or a number" if names else "NUMBER"
        raise NucleusError(f"{name}: holds {held}. Choose one with --scene {option}.")
    position = _position(choice, len(found), names) if len(found) > 1 else 0
    if position is None:
        raise NucleusError(f"{name}: holds {held}, and {choice} is none of them.")
    return stack(position)


def _chosen(stack: Stack, name: str, plane: Plane) -> dict[str, int]:
    """The chosen position along every axis."""
    names = _distinct(stack.channels, stack.counts.get("C", 1))
    counts = {axis: count for axis, count in stack.counts.items() if count > 1}
    if unknown := [axis for axis in counts if axis not in _AXES]:
        raise NucleusError(
            f"{name}: has {counts[unknown[0]]} positions along the axis {unknown[0]}, which is not "
            "known. Save the plane to be segmented as a file of its own."
        )
    held = {axis: f"{counts[axis]} {what}" for axis, what in _AXES.items() if axis in counts}
    options = dict(_OPTIONS)
    if "C" in held and names:
        held["C"] += f" ({', '.join(names)})"
        options["C"] = f"--channel {shlex.quote(names[0])} or a number"
    choices = {"C": plane.channel, "Z": plane.z, "T": plane.time}
    if any(choices[axis] is None for axis in held):
        needed = " and ".join(options[axis] for axis in held)
        raise NucleusError(
            f"{name}: holds {', '.join(held.values())}. Choose what to segment with {needed}."
        )
    at = dict.fromkeys(stack.counts, 0)
    for axis, what in held.items():
        choice = choices[axis]
        if axis == "Z" and choice in ("max", "middle"):
            at[axis] = counts[axis] // 2
            continue
        position = _position(choice, counts[axis], names if axis == "C" else [])
        if position is None:
            raise NucleusError(f"{name}: holds {what}, and {choice} is none of them.")
        at[axis] = position
    return at


def _position(choice: str | int | None, count: int, names: Sequence[str]) -> int | None:
    """The position of a choice along an axis, from 0; None if it is not there."""
    text = str(choice).lower()
    if text in (lower := [name.lower() for name in names]):
        return lower.index(text)
    return int(text) - 1 if text.isdecimal() and 1 <= int(text) <= count else None


def _distinct(names: Sequence[str], count: int) -> Sequence[str]:
    """The names, if each position has a name of its own; an empty list if not."""
    return names if len({name.lower() for name in names if name}) == len(names) == count else []


def _ome_image(tiff: tifffile.TiffFile, scene: int) -> dict[str, Any] | None:
    """What OME's metadata say about an image, if they describe every image of the file."""
    if not tiff.ome_metadata:
        return None
    images = _listed(tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"])
    return images[scene] if len(images) == len(tiff.series) else None


def _listed(found: Any) -> list[Any]:
    """What an element occurs as in XML: once, or several times."""
    return found if isinstance(found, list) else [found]
