import doctest
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from nucleus_unet.data.annotations import polygons as module
from nucleus_unet.data.annotations.polygons import draw_oval, draw_polygons, read_points, read_ring
from nucleus_unet.data.masks import Region
from nucleus_unet.errors import NucleusError

SHAPE = (4, 5)


def ring(*points: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(points, np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return ring((left, top), (right, top), (right, bottom), (left, bottom))


def whole(region: Region, shape: tuple[int, int] = SHAPE) -> list[str]:
    """The image as rows of text; # is the region."""
    image = np.zeros(shape, np.bool_)
    image[region.box] = region.pixels
    return ["".join(".#"[pixel] for pixel in row) for row in image.astype(int)]


def drawn(*polygons: list[NDArray[np.float64]], shape: tuple[int, int] = SHAPE) -> list[str]:
    return whole(draw_polygons("a", polygons, shape), shape)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_a_polygon_along_the_sides_of_pixels_contains_exactly_these() -> None:
    assert drawn([rectangle(1, 0, 4, 2)]) == [".###.", ".###.", ".....", "....."]
    steps = ring((0, 0), (2, 0), (2, 1), (3, 1), (3, 3), (1, 3), (1, 2), (0, 2))
    assert drawn([steps]) == ["##...", "###..", ".##..", "....."]


def test_direction_and_repeated_points_do_not_matter() -> None:
    closed = rectangle(1, 0, 4, 2)[[0, 0, 1, 2, 2, 3, 0]]
    assert drawn([closed]) == drawn([closed[::-1]]) == drawn([rectangle(1, 0, 4, 2)])


def test_a_hole_and_an_island_in_it() -> None:
    rings = [rectangle(0, 0, 5, 4), rectangle(1, 1, 4, 4), rectangle(2, 2, 3, 3)]
    assert drawn(rings) == ["#####", "#...#", "#.#.#", "#...#"]


def test_a_pixel_of_two_polygons_of_a_nucleus_belongs_to_it() -> None:
    assert drawn([rectangle(0, 0, 3, 1)], [rectangle(1, 0, 5, 2)]) == [
        "#####",
        ".####",
        ".....",
        ".....",
    ]


def test_a_centre_on_the_outline_is_inside_on_the_left_and_on_top() -> None:
    assert drawn([rectangle(0.5, 0.5, 2.5, 2.5)]) == ["##...", "##...", ".....", "....."]
    diagonal = ring((0, 0), (4, 0), (4, 4))
    rest = ring((0, 0), (4, 4), (0, 4))
    assert drawn([diagonal]) == ["####.", ".###.", "..##.", "...#."]
    assert drawn([rest]) == [".....", "#....", "##...", "###.."]


@pytest.mark.parametrize(
    ("shown", "rows"),
    [
        (rectangle(-9, -9, 2, 2), ["##...", "##...", ".....", "....."]),
        (rectangle(3, 3, 1e9, 1e9), [".....", ".....", ".....", "...##"]),
        (rectangle(-9, -9, 99, 99), ["#####"] * 4),
        (rectangle(-9, 1, -1, 2), ["....."] * 4),
        (rectangle(5, 1, 9, 2), ["....."] * 4),
        (rectangle(0.6, 0.6, 1.4, 1.4), ["....."] * 4),
        (ring((1, 1), (3, 3)), ["....."] * 4),
        (ring((1, 1)), ["....."] * 4),
        (np.zeros((0, 2)), ["....."] * 4),
    ],
)
def test_what_is_outside_the_image_or_has_no_centre_is_dropped(
    shown: NDArray[np.float64], rows: list[str]
) -> None:
    assert drawn([shown]) == rows
    assert drawn([shown], [rectangle(4, 0, 5, 1)])[0] == rows[0][:4] + "#"


def test_no_polygon_has_no_pixel() -> None:
    assert drawn() == drawn([]) == ["....."] * 4


def inside(polygon: NDArray[np.float64], x: float, y: float) -> bool:
    """Whether a point is in a polygon: an odd number of its sides is to the left of the point."""
    odd = False
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y1 <= y) != (y2 <= y):
            (x1, y1), (x2, y2) = sorted([(x1, y1), (x2, y2)], key=lambda point: point[1])
            odd ^= x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x
    return odd


POINTS = arrays(
    np.float64,
    st.tuples(st.integers(0, 9), st.just(2)),
    elements=st.integers(-6, 18).map(lambda half: half / 2) | st.floats(-3, 9, width=32),
)


@given(POINTS, st.integers(1, 4))
def test_any_polygon_has_the_pixels_whose_centres_are_inside(
    polygon: NDArray[np.float64], crossings: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "_CROSSINGS", crossings)  # so that lines are taken in turn
        found = drawn([polygon])
    wanted = [
        "".join(".#"[int(inside(polygon, x + 0.5, y + 0.5))] for x in range(SHAPE[1]))
        for y in range(SHAPE[0])
    ]
    assert found == wanted


@given(POINTS.filter(len), st.floats(-1, 6, width=32), st.floats(-1, 6, width=32))
def test_polygons_that_share_their_sides_share_no_pixel(
    border: NDArray[np.float64], x: float, y: float
) -> None:
    """The triangles from a point to each side of a polygon cover together what the polygon covers."""
    count = np.zeros(SHAPE, int)
    for start, end in zip(border, np.roll(border, -1, axis=0), strict=True):
        region = draw_polygons("a", [[np.array([start, end, (x, y)])]], SHAPE)
        count[region.box] += region.pixels
    np.testing.assert_array_equal(
        (count % 2).tolist(), [[int(mark == "#") for mark in row] for row in drawn([border])]
    )


def test_an_oval_has_the_centres_within_it() -> None:
    oval = draw_oval("a", ring((0, 0), (5, 4)), SHAPE)
    assert whole(oval) == [".###.", "#####", "#####", ".###."]
    circle = draw_oval("a", ring((0, 0), (3, 3)), SHAPE)
    assert whole(circle) == ["###..", "###..", "###..", "....."]
    on_line = draw_oval("a", ring((0.5, 0), (2.5, 1)), SHAPE)
    assert whole(on_line)[0] == "###.."
    assert not draw_oval("a", ring((3, 3), (3, 4)), SHAPE).pixels.any()
    assert not draw_oval("a", ring((9, 9), (12, 12)), SHAPE).pixels.any()


def test_points_are_read() -> None:
    assert read_ring([[1, 2], [3.5, 4, 5]], "a").tolist() == [[1, 2], [3.5, 4]]
    assert read_ring([], "a").shape == (0, 2)
    assert read_points([1, 2, 3.5, 4], "a").tolist() == [[1, 2], [3.5, 4]]


@pytest.mark.parametrize(
    "points",
    [
        *(None, 1, "ab", {}, [1, 2], [[1]], [[1, 2], [3]], [[1, "2"]], [[None, 1]], [[True, 1]]),
        *([[[1, 2]]], [{"x": 1}], ["ab"]),
    ],
)
def test_what_is_no_list_of_points(points: Any) -> None:
    with pytest.raises(NucleusError, match=r"^a, feature 2: the outline is not a list of points"):
        read_ring(points, "a, feature 2")


@pytest.mark.parametrize("numbers", [None, 1, "abcd", [1, 2, 3], [[1, 2]], [1, "2"], {"0": 1}])
def test_what_is_no_list_of_numbers_in_pairs(numbers: Any) -> None:
    with pytest.raises(NucleusError, match=r"^a: the outline is not a list of points"):
        read_points(numbers, "a")


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-1e300, r"-1e\+300"),
        (10**400, "inf"),
        (2**30 + 1, r"1.07374e\+09"),
    ],
)
def test_a_coordinate_that_is_not_in_pixels(number: float, shown: str) -> None:
    with pytest.raises(NucleusError, match=rf"^a: the coordinate {shown} is not in pixels"):
        read_ring([[1, 2], [3, number]], "a")
