"""Which pixels of an image an outline contains."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.masks import Region
from nucleus_unet.errors import NucleusError

Ring = NDArray[np.float64]
"""Points (N, 2) of a closed line, x and y in pixels; (0, 0) is the corner of the first pixel."""
FARTHEST_PX = 2**30
"""Coordinates beyond it are an error: no image is as large."""
_CROSSINGS = 2**20
"""How many crossings of lines and rows of pixels are computed at a time."""


def read_ring(points: object, where: str) -> Ring:
    """Check the points of an outline.

    Parameters
    ----------
    points : object
        A list of ``[x, y]``, perhaps with more coordinates, which are dropped. It may be empty, and the
        last point may repeat the first.
    where : str
        The file and the place in it, for error messages.

    Raises
    ------
    NucleusError
        If the points are not pairs of finite numbers up to `FARTHEST_PX`.
    """
    if not isinstance(points, list) or not all(map(_is_point, points)):
        raise NucleusError(
            f"{where}: the outline is not a list of points, each of two numbers. Export it again."
        )
    try:
        ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    except OverflowError:  # a whole number of hundreds of digits
        ring = np.full((1, 2), np.inf)
    far = ring[~(np.abs(ring) <= FARTHEST_PX)]
    if far.size:
        raise NucleusError(
            f"{where}: the coordinate {far[0]:g} is not in pixels of an image. Export it again."
        )
    return ring


def read_points(numbers: object, where: str) -> Ring:
    """Check an outline of the form ``[x1, y1, x2, y2, ...]``; errors are as for `read_ring`."""
    if isinstance(numbers, list) and len(numbers) % 2 == 0:
        return read_ring([numbers[at : at + 2] for at in range(0, len(numbers), 2)], where)
    return read_ring(None, where)


def _is_point(point: object) -> bool:
    return (
        isinstance(point, list)
        and len(point) >= 2
        and type(point[0]) in (int, float)
        and type(point[1]) in (int, float)
    )


def draw_polygons(name: str, polygons: Sequence[Sequence[Ring]], shape: tuple[int, int]) -> Region:
    """Find the pixels of a nucleus that consists of polygons.

    Parameters
    ----------
    name : str
        Name of the region.
    polygons : sequence of sequences of Ring
        The rings of each polygon: its outline, and the outlines of its holes. A pixel belongs to a
        polygon if it is inside an odd number of its rings, and to the nucleus if it belongs to any
        polygon.
    shape : (int, int)
        Height and width of the image in pixels. What lies outside is dropped.

    Returns
    -------
    Region
        It may have no pixel.

    Notes
    -----
    A pixel is inside a ring if its centre is. A centre on the ring is inside if the inside is to its
    right, or below it on a horizontal line. So polygons that share a side never share a pixel, and no
    pixel between them is lost.

    Examples
    --------
    >>> square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
    >>> region = draw_polygons("a", [[square + 1], [square + (1.5, 0)]], (3, 9))
    >>> region.box, region.pixels.astype(int)
    ((slice(0, 3, None), slice(1, 3, None)), array([[1, 1],
           [1, 1],
           [1, 1]]))
    """
    box = _box([ring for rings in polygons for ring in rings], shape)
    pixels = np.zeros([side.stop - side.start for side in box], np.bool_)
    for rings in polygons:
        part = _box(rings, shape)
        rows, columns = (
            slice(of_part.start - side.start, of_part.stop - side.start)
            for of_part, side in zip(part, box, strict=True)
        )
        pixels[rows, columns] |= _inside(rings, part)
    return Region(name, box, pixels)


def _box(rings: Sequence[Ring], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the image in which a pixel may be inside the rings."""
    points = np.concatenate([np.zeros((0, 2)), *rings])
    if not len(points):
        return slice(0, 0), slice(0, 0)
    left, top = _first_pixel(points.min(0), shape[::-1])
    right, bottom = _first_pixel(points.max(0), shape[::-1])
    return slice(top, bottom), slice(left, right)


def _first_pixel(position: NDArray[np.float64], size: Sequence[int]) -> list[int]:
    """The first pixel whose centre is at a position or after it, within 0 and the size."""
    return np.clip(np.ceil(position - 0.5), 0, size).astype(np.int64).tolist()


def _inside(rings: Sequence[Ring], box: tuple[slice, slice]) -> NDArray[np.bool_]:
    """Pixels of the box inside an odd number of rings; as one polygon of `draw_polygons`."""
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    # How many lines cross a row of centres between this centre and the one before it. Only the lowest
    # bit matters, so the count may overflow.
    crossed = np.zeros((height, width + 1), np.uint8)
    starts = np.concatenate([np.zeros((0, 2)), *rings])
    ends = np.concatenate([np.zeros((0, 2)), *(np.roll(ring, -1, axis=0) for ring in rings)])
    step = max(1, _CROSSINGS // max(1, height))
    for at in range(0, len(starts), step):
        row, column = _crossings(starts[at : at + step], ends[at : at + step], box)
        np.add.at(crossed, (row - rows.start, column - columns.start), np.uint8(1))
    return (np.cumsum(crossed[:, :width], axis=1, dtype=np.uint8) & 1).astype(np.bool_)


def _crossings(
    starts: Ring, ends: Ring, box: tuple[slice, slice]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where lines cross the rows of centres of the box: the row, and the first centre after the line."""
    rows, columns = box
    # From top to bottom, so that a side of two polygons gives both of them the same numbers.
    down = (starts[:, 1] < ends[:, 1])[:, None]
    (x1, y1), (x2, y2) = np.where(down, starts, ends).T, np.where(down, ends, starts).T
    first, after = (np.ceil(y - 0.5).clip(rows.start, rows.stop).astype(np.int64) for y in (y1, y2))
    count = after - first
    line = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(line)) - np.repeat(np.cumsum(count) - count, count) + first[line]
    share = (row + 0.5 - y1[line]) / (y2 - y1)[line]
    x = x1[line] + share * (x2 - x1)[line]
    column = np.ceil(x - 0.5).clip(columns.start, columns.stop).astype(np.int64)
    return row, column


def draw_oval(name: str, corners: Ring, shape: tuple[int, int]) -> Region:
    """Find the pixels whose centres are in the oval in a rectangle, or on its line, as ImageJ does.

    Parameters
    ----------
    name : str
        Name of the region.
    corners : (2, 2) float64
        Upper left and lower right corner of the rectangle, each (x, y) in pixels.
    shape : (int, int)
        Height and width of the image in pixels.
    """
    left, top = _first_pixel(corners[0], shape[::-1])
    right, bottom = _first_pixel(corners[1] + 1, shape[::-1])
    y, x = np.ogrid[top:bottom, left:right]
    (x_middle, y_middle), (x_radius, y_radius) = corners.mean(0), np.diff(corners, axis=0)[0] / 2
    if min(x_radius, y_radius) <= 0:
        return Region(name, (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.bool_))
    distance = ((x + 0.5 - x_middle) / x_radius) ** 2 + ((y + 0.5 - y_middle) / y_radius) ** 2
    return Region(name, (slice(top, bottom), slice(left, right)), distance <= 1)
