import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from nucleus_unet.data.annotations import imagej as module
from nucleus_unet.data.annotations.imagej import is_rois, read_rois
from nucleus_unet.data.masks import DataProblem, Region
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

SQUARE = [[1, 1], [3, 1], [3, 3], [1, 3]]


def zipped(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, file in files.items():
            archive.writestr(name.replace("_", "."), file)
    return content.getvalue()


def outlined(points: Any = SQUARE, **fields: Any) -> ImagejRoi:
    roi = ImagejRoi.frompoints(np.array(points))
    for name, value in fields.items():
        setattr(roi, name, value)
    return roi


def boxed(kind: ROI_TYPE, **fields: Any) -> ImagejRoi:
    roi = ImagejRoi(roitype=kind, left=0, top=1, right=3, bottom=4)
    for name, value in fields.items():
        setattr(roi, name, value)
    return roi


def read(roi: ImagejRoi) -> Region | DataProblem:
    [found] = read_rois(roi.tobytes(), "a.roi", (4, 5))
    return found


def rows(found: Region | DataProblem) -> list[str]:
    assert isinstance(found, Region)
    image = np.zeros((4, 5), int)
    image[found.box] = found.pixels
    return ["".join(".#"[pixel] for pixel in row) for row in image]


@pytest.mark.parametrize("kind", [ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED])
def test_outlines(kind: ROI_TYPE) -> None:
    assert rows(read(outlined(roitype=kind))) == [".....", ".##..", ".##..", "....."]


def test_outlines_between_pixels() -> None:
    shifted = np.array(SQUARE, np.float32) + np.float32(0.6)
    assert rows(read(outlined(shifted))) == [".....", ".....", "..##.", "..##."]


def test_a_rectangle_and_an_oval() -> None:
    assert rows(read(boxed(ROI_TYPE.RECT))) == [".....", "###..", "###..", "###.."]
    oval = boxed(ROI_TYPE.OVAL, right=5, top=0)
    assert rows(read(oval)) == [".###.", "#####", "#####", ".###."]


def test_a_rectangle_between_pixels() -> None:
    exact = {"xd": 0.6, "yd": 1.0, "widthd": 1.0, "heightd": 2.0}
    roi = boxed(ROI_TYPE.RECT, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, **exact)
    assert rows(read(roi)) == [".....", ".#...", ".#...", "....."]


def path(*rings: list[list[int]]) -> list[float]:
    """A composite: 0 moves to a point, 1 draws a line to a point, 4 closes the ring."""
    numbers: list[float] = []
    for points in rings:
        for index, point in enumerate(points):
            numbers += [min(index, 1), *point]
        numbers.append(4)
    return numbers


def composite(numbers: list[float]) -> ImagejRoi:
    coordinates = np.array(numbers, np.float32)
    return boxed(ROI_TYPE.RECT, shape_roi_size=len(numbers), multi_coordinates=coordinates)


def test_a_composite_with_a_hole() -> None:
    outer = [[0, 0], [5, 0], [5, 3], [0, 3]]
    assert rows(read(composite(path(outer, SQUARE)))) == ["#####", "#..##", "#..##", "....."]


@pytest.mark.parametrize(
    ("roi", "detail"),
    [
        (boxed(ROI_TYPE.LINE), "line, not a plain area"),
        (outlined(roitype=ROI_TYPE.POINT), "point, not a plain area"),
        (outlined(roitype=ROI_TYPE.POLYLINE), "polyline, not a plain area"),
        (outlined(roitype=ROI_TYPE.FREELINE), "freeline, not a plain area"),
        (outlined(roitype=ROI_TYPE.ANGLE), "angle, not a plain area"),
        (outlined(options=ROI_OPTIONS.SPLINE_FIT), "freehand, not a plain area"),
        (boxed(ROI_TYPE.RECT, rounded_rect_arc_size=3), "rect, not a plain area"),
        (boxed(ROI_TYPE.RECT, subtype=ROI_SUBTYPE.TEXT), "rect text, not a plain area"),
        (composite([0, 1, 1, 2, 1, 1, 2, 2, 4]), "has curves"),
    ],
)
def test_other_rois_are_reported(roi: ImagejRoi, detail: str) -> None:
    assert read(roi) == DataProblem("a.roi", "not read", f"{detail}: skipped")


def test_a_zip_and_what_else_is_in_it() -> None:
    roi = outlined().tobytes()
    one, other, two = read_rois(zipped(b_roi=roi, notes_txt=b"x", a_roi=roi), "a.zip", (4, 5))
    assert isinstance(one, Region)
    assert isinstance(two, Region)
    assert (one.name, two.name) == ("a.zip, b.roi", "a.zip, a.roi")
    assert other == DataProblem("a.zip, notes.txt", "not read", "not a ROI: skipped")
    assert list(read_rois(zipped(), "a.zip", (4, 5))) == []


def test_what_is_a_roi_or_a_zip() -> None:
    assert is_rois(outlined().tobytes())
    assert is_rois(zipped())
    assert is_rois(zipped(a=b""))
    assert not is_rois(b"{}")


def refused(content: bytes) -> str:
    with pytest.raises(NucleusError) as caught:
        list(read_rois(content, "a.zip", (4, 5)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_zip_without_rois() -> None:
    assert refused(zipped(a_txt=b"x")).startswith("a.zip: holds no ROI. Save the ROIs")


def test_a_damaged_zip() -> None:
    content = zipped(a_roi=outlined().tobytes())
    assert refused(content[:-30]).startswith("a.zip: not a complete zip file (")
    assert refused(content[:70] + b"\xff" + content[71:]).startswith("a.zip: not a complete zip")


def test_a_roi_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_ROI_BYTES", 2**20)
    line = refused(zipped(a_roi=bytes(2**20 + 1)))
    assert line.startswith("a.zip: 'a.roi' is larger than 1 MiB when unpacked")


@pytest.mark.parametrize("cut", [10, 70])
def test_a_damaged_roi(cut: int) -> None:
    content = zipped(a_roi=outlined().tobytes()[:cut])
    assert refused(content).startswith("a.zip, a.roi: damaged (")


def test_a_roi_with_a_huge_number_of_points() -> None:
    content = bytearray(outlined().tobytes())
    struct.pack_into(">H", content, 16, 0)
    struct.pack_into(">i", content, 18, 2**31 - 1)
    assert refused(zipped(a_roi=bytes(content))).startswith("a.zip, a.roi: damaged (")


def test_coordinates_that_are_not_in_pixels() -> None:
    points = np.array(SQUARE, np.float32)
    roi = outlined(points)
    assert roi.subpixel_coordinates is not None
    roi.subpixel_coordinates[2, 1] = np.nan
    line = refused(zipped(a_roi=roi.tobytes()))
    assert line.startswith("a.zip, a.roi: the coordinate nan is not in pixels")
    exact = {"xd": 0.6, "yd": np.inf, "widthd": 1.0, "heightd": 2.0}
    oval = boxed(ROI_TYPE.OVAL, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, **exact)
    assert "the coordinate inf is not in pixels" in refused(zipped(a_roi=oval.tobytes()))


def stacked(*places: dict[str, int]) -> bytes:
    return zipped(**{f"{i}_roi": outlined(**place).tobytes() for i, place in enumerate(places)})


IN_STACK = stacked({"position": 1}, {"position": 2}, {"position": 2}, {})
IN_HYPERSTACK = stacked(*({"z_position": z, "t_position": t} for z in (1, 2) for t in (1, 2)))


@pytest.mark.parametrize(
    ("content", "plane", "count"),
    [
        (IN_STACK, Plane(z=1), 2),
        (IN_STACK, Plane(time=2), 3),
        (IN_HYPERSTACK, Plane(z=2, time=1), 1),
        (stacked({"position": 3}, {"position": 3}), Plane(), 2),
        (stacked({"c_position": 1}, {"c_position": 2}), Plane(), 2),
    ],
)
def test_rois_of_the_chosen_plane(content: bytes, plane: Plane, count: int) -> None:
    assert len(list(read_rois(content, "a.zip", (4, 5), plane))) == count


@pytest.mark.parametrize(
    ("content", "plane"),
    [(IN_STACK, Plane()), (IN_STACK, Plane(z="max")), (IN_HYPERSTACK, Plane(z=1))],
)
def test_rois_of_several_planes(content: bytes, plane: Plane) -> None:
    with pytest.raises(NucleusError, match=r"^a.zip: its ROIs lie at several planes of a stack\."):
        list(read_rois(content, "a.zip", (4, 5), plane))
