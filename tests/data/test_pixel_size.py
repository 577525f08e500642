"""The side of a pixel in µm, as OME and ImageJ write it."""

from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_unet.data.images import decode_image
from nucleus_unet.data.pixel_size import LARGEST_UM, SMALLEST_UM, ome_pixel_size_um, square_side_um
from nucleus_unet.recipe import Plane

PIXELS = np.zeros((4, 6), np.uint8)


def tiff(pixels: Any = PIXELS, **options: Any) -> bytes:
    tifffile.imwrite(file := BytesIO(), pixels, **options)
    return file.getvalue()


def imagej(unit: str, x: Any = 2, y: Any = 2) -> bytes:
    written = tiff(imagej=True, resolution=(x, y), metadata={"unit": unit.replace("µ", "?")})
    return written.replace(b"unit=?", "unit=µ".encode("latin-1"))  # as old versions of ImageJ


def ome(**sizes: Any) -> bytes:
    return tiff(ome=True, metadata={"axes": "YX", **sizes})


def size(content: bytes, plane: Plane | None = None) -> float | None:
    return decode_image(content, "cells.tif", plane or Plane()).pixel_size_um


@pytest.mark.parametrize(
    ("x", "y", "unit", "expected"),
    [
        (0.325, 0.325, "µm", 0.325),
        ("0.325", "0.325", "um", 0.325),
        (0.325, 0.325, "μm", 0.325),  # the Greek letter
        (0.325, 0.325, r"\u00B5m", 0.325),
        (0.325, 0.325, "Micron", 0.325),
        (500, 500, "nm", 0.5),
        (0.002, 0.002, "mm", 2),
        (5e-7, 5e-7, "m", 0.5),
        (5000, 5000, "Å", 0.5),
        (1, 1, "nm", 0.001),
        (1, 1, "mm", 1000),
        (1.0, 1.008, "µm", 1.004),
        (1.0, 1.012, "µm", None),
        (0.5, None, "µm", None),
        (0, 0, "µm", None),
        (-1, -1, "µm", None),
        ("nan", "nan", "µm", None),
        ("inf", "inf", "µm", None),
        (0.99, 0.99, "nm", None),
        (1.01, 1.01, "mm", None),
        ("wide", "wide", "µm", None),
        (1, 1, "pixel", None),
        (1, 1, "inch", None),
        (1, 1, None, None),
    ],
)
def test_the_side_of_a_square_pixel(x: Any, y: Any, unit: str, expected: float | None) -> None:
    assert square_side_um(x, y, unit, unit) == (expected and pytest.approx(expected))


@given(st.floats(), st.floats())
@example(1 / 3, 1 / 3)
def test_a_side_is_between_both_and_in_the_limits(x: float, y: float) -> None:
    side = square_side_um(x, y)
    rounding = 1e-11  # to 12 digits
    assert side is None or (
        max(SMALLEST_UM, min(x, y)) * (1 - rounding)
        <= side
        <= min(LARGEST_UM, max(x, y)) * (1 + rounding)
    )


@pytest.mark.parametrize("unit", ["micron", "um", "µm", r"\u00B5m"])
def test_imagej(unit: str) -> None:
    assert size(imagej(unit)) == 0.5


def test_imagej_with_other_units() -> None:
    assert size(imagej("nm", (1, 250), (1, 250))) == 0.25
    assert size(imagej("mm", 500, 500)) == 2
    assert size(imagej("inch", 72, 72)) is None
    assert size(imagej("pixel", 1, 1)) is None


def test_imagej_with_pixels_that_are_not_square_or_have_no_size() -> None:
    assert size(imagej("um", 2, 3)) is None
    assert size(imagej("um", (0, 1), (0, 1))) is None


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, 0.25),
        (
            {
                **{"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"},
                **{"PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"},
            },
            0.25,
        ),
        ({"PhysicalSizeX": 0.25}, None),
        ({}, None),
    ],
)
def test_ome(sizes: dict[str, Any], expected: float | None) -> None:
    assert size(ome(**sizes)) == expected


def test_a_plane_of_a_stack_has_the_size_of_its_file() -> None:
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    content = tiff(np.zeros((3, 4, 6), np.uint8), ome=True, metadata={"axes": "ZYX", **sizes})
    assert size(content, Plane(z=2)) == 0.25


def test_metadata_that_are_damaged_name_no_size() -> None:
    assert ome_pixel_size_um("<OME") is None
    assert ome_pixel_size_um("<OME><Image/></OME>") is None
    assert ome_pixel_size_um("<OME><Image><Pixels/></Image></OME>") is None


def test_a_resolution_per_inch_or_cm_is_no_pixel_size() -> None:
    for unit in ("INCH", "CENTIMETER"):
        assert size(tiff(resolution=(72, 72), resolutionunit=unit)) is None
    assert size(cv2.imencode(".png", PIXELS)[1].tobytes()) is None
