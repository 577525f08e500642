"""The side of a pixel in µm, from the metadata of microscope images."""

from typing import Any
from xml.etree import ElementTree

import tifffile

SMALLEST_UM, LARGEST_UM = 1e-3, 1e3
"""Sides outside of this range, 1 nm to 1 mm, are mistakes in the metadata."""
_TOLERANCE = 0.01  # how much the sides of a square pixel may differ
_IN_UM = {
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("µm", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
}


def square_side_um(
    x: Any, y: Any, unit_x: str | None = "µm", unit_y: str | None = "µm"
) -> float | None:
    """The side of a square pixel in µm.

    Parameters
    ----------
    x, y : number, str or None
        Width and height of a pixel.
    unit_x, unit_y : str or None
        Units of length, as a symbol or a word.

    Returns
    -------
    float or None
        The mean of both sides. None if one of them is missing, is no number, has an unknown unit or is
        outside of `SMALLEST_UM` to `LARGEST_UM`, or if they differ by more than 1 %.

    Examples
    --------
    >>> square_side_um(325, 325, "nm", "nm")
    0.325
    >>> square_side_um(0.5, 0.6) is None
    True
    """
    width, height = _side_um(x, unit_x), _side_um(y, unit_y)
    if width is None or height is None or abs(width - height) > _TOLERANCE * min(width, height):
        return None
    return float(f"{(width + height) / 2:.12g}")  # 0.4 and not 0.39999999999999997


def tiff_pixel_size_um(tiff: tifffile.TiffFile, image: int = 0) -> float | None:
    """The side of a pixel of a TIFF in µm, from the metadata of OME or ImageJ.

    Parameters
    ----------
    tiff : tifffile.TiffFile
    image : int
        Position of the image in the metadata of OME, from 0.

    Returns
    -------
    float or None
        As `square_side_um`.

    Notes
    -----
    The resolution per inch or cm of a plain TIFF is not read: many programs write 72 dpi there, whatever
    the size of a pixel is.
    """
    if tiff.ome_metadata:
        return ome_pixel_size_um(tiff.ome_metadata, image)
    if not tiff.is_imagej:
        return None
    unit, tags = str((tiff.imagej_metadata or {}).get("unit")), tiff.pages.first.tags
    densities = [tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY"]
    if not all(isinstance(density, tuple) and density[0] for density in densities):
        return None
    x, y = (below / above for above, below in densities)
    return square_side_um(x, y, unit, unit)


def ome_pixel_size_um(xml: str, image: int = 0) -> float | None:
    """The side of a pixel of an image in µm, from OME-XML; None as for `square_side_um`."""
    try:
        pixels = ElementTree.fromstring(xml).findall("{*}Image/{*}Pixels")[image]
    except (ElementTree.ParseError, IndexError):
        return None
    x, y = (pixels.get(f"PhysicalSize{axis}") for axis in "XY")
    unit_x, unit_y = (pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XY")
    return square_side_um(x, y, unit_x, unit_y)


def _side_um(size: Any, unit: str | None) -> float | None:
    # ImageJ escapes the sign, which Unicode has twice.
    name = (unit or "").replace(r"\u00B5", "µ").replace("μ", "µ").strip().lower()
    try:
        side = float(size) * _IN_UM[name]
    except (TypeError, ValueError, KeyError):
        return None
    return side if SMALLEST_UM <= side <= LARGEST_UM else None
