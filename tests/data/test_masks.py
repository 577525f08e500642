import doctest
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from nucleus_unet.data import masks as module
from nucleus_unet.data.masks import (
    REFUSED,
    Region,
    merge_into_labels,
    merge_regions,
    number_label_image,
    relabel,
)


def mask(*rows: str, dtype: type = np.uint8, value: float = 255) -> NDArray:
    """A mask from rows of text; # is foreground."""
    return np.array([[value if mark == "#" else 0 for mark in row] for row in rows], dtype)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_labels_are_in_the_order_of_the_files() -> None:
    merged = merge_into_labels([("a.png", mask("..#")), ("b.png", mask("#.."))], (1, 3))
    assert merged.labels.tolist() == [[2, 0, 1]]
    assert merged.labels.dtype == np.int32
    assert merged.problems == ()


def test_an_image_without_masks_has_no_nuclei() -> None:
    merged = merge_into_labels([], (2, 3))
    assert merged.labels.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert merged.problems == ()


def test_regions_are_numbered_in_their_order_and_equal_ones_go_to_the_first() -> None:
    row, column = slice(0, 1), slice(0, 2)
    regions = [
        Region("z", (row, column), np.array([[True, True]])),
        Region("y", (row, slice(1, 3)), np.array([[True, True]])),
        Region("x", (row, slice(1, 2)), np.array([[True]])),
        Region("w", (row, column), np.array([[False, True]])),
    ]
    merged = merge_regions(iter(regions), (1, 4))
    assert merged.labels.tolist() == [[1, 3, 2, 0]]
    assert [(p.file, p.kind) for p in merged.problems] == [
        ("z", "overlap"),
        ("y", "overlap"),
        ("w", "covered"),
    ]
    assert merge_regions([], (1, 4)).labels.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint8, 1), (np.uint8, 255), (np.uint16, 9), (np.float32, 1), (bool, 1)]
)
def test_a_mask_has_background_and_one_other_value_of_any_type(dtype: type, value: float) -> None:
    merged = merge_into_labels([("a.png", mask(".##", dtype=dtype, value=value))], (1, 3))
    assert merged.labels.tolist() == [[0, 1, 1]]
    assert merged.problems == ()


def test_a_nucleus_may_fill_the_image() -> None:
    assert merge_into_labels([("a.png", mask("##"))], (1, 2)).labels.tolist() == [[1, 1]]


def test_empty_masks_and_masks_of_another_size_are_skipped() -> None:
    merged = merge_into_labels(
        [("a.png", mask("...")), ("b.png", mask("##")), ("c.png", mask(".#."))], (1, 3)
    )
    assert merged.labels.tolist() == [[0, 1, 0]]
    assert [(p.file, p.kind, p.detail) for p in merged.problems] == [
        ("a.png", "empty", "no foreground: skipped"),
        ("b.png", "wrong size", "1x2, but the image is 1x3: skipped"),
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_of_many_values_is_cut_at_half_of_the_largest(dtype: type) -> None:
    merged = merge_into_labels([("a.png", np.array([[0, 127, 128, 255]], dtype))], (1, 4))
    assert merged.labels.tolist() == [[0, 0, 1, 1]]
    assert [(p.file, p.kind) for p in merged.problems] == [("a.png", "stray values")]
    assert merged.problems[0].detail.startswith("2 pixels")


def test_the_foreground_may_be_minus_one() -> None:
    merged = merge_into_labels([("a.png", np.array([[0, -1, -1]], np.int8))], (1, 3))
    assert merged.labels.tolist() == [[0, 1, 1]]
    assert merged.problems == ()


@pytest.mark.parametrize("largest", [1, 255, 65_535])
def test_a_mask_of_floats_is_cut_at_half_of_its_largest_value(largest: float) -> None:
    values = largest * np.array([[0, 0.3, 0.6, 1, np.nan, np.inf]], np.float32)
    merged = merge_into_labels([("a.tif", values)], values.shape)
    assert merged.labels.tolist() == [[0, 0, 1, 1, 0, 0]]
    assert [p.kind for p in merged.problems] == ["stray values"]


def test_an_overlap_belongs_to_the_smaller_nucleus() -> None:
    merged = merge_into_labels([("a.png", mask("####.")), ("b.png", mask("..###"))], (1, 5))
    assert merged.labels.tolist() == [[1, 1, 2, 2, 2]]
    [problem] = merged.problems
    assert (problem.file, problem.kind) == ("a.png", "overlap")
    assert problem.detail.startswith("2 of 4 pixels")


def test_an_overlap_of_equal_nuclei_belongs_to_the_first() -> None:
    merged = merge_into_labels([("a.png", mask("##.")), ("b.png", mask(".##"))], (1, 3))
    assert merged.labels.tolist() == [[1, 1, 2]]
    assert [p.file for p in merged.problems] == ["b.png"]


def test_a_covered_nucleus_is_skipped_and_leaves_no_gap_in_the_numbers() -> None:
    files = [("a.png", mask("####..")), ("b.png", mask("##....")), ("c.png", mask("..##.."))]
    merged = merge_into_labels(files, (1, 6))
    assert merged.labels.tolist() == [[1, 1, 2, 2, 0, 0]]
    assert [(p.file, p.kind) for p in merged.problems] == [("a.png", "covered")]


def cells(number: int, side: int = 12) -> NDArray[np.int32]:
    """Discs of different sizes, each with a number of its own, on a square of background."""
    columns = int(np.ceil(number**0.5))
    labels = np.zeros((side * columns, side * columns), np.int32)
    for index in range(number):
        y, x = (side * at + side // 2 for at in divmod(index, columns))
        cv2.circle(labels, (x, y), 2 + index % (side // 2 - 3), index + 1, -1)
    return labels


def cut(labels: NDArray[np.int32], *numbers: int) -> NDArray[np.int32]:
    """The labels with a gap through the middle of some nuclei."""
    labels = labels.copy()
    for number in numbers:
        rows = np.flatnonzero((labels == number).any(1))
        labels[rows[len(rows) // 2]][labels[rows[len(rows) // 2]] == number] = 0
    return labels


@pytest.mark.parametrize(
    "masks",
    [
        [cells(30) > 0],  # of all nuclei
        [cells(30).astype(np.uint16)],  # a label image
        [cells(9) == 1, cells(9) > 1],
        [cut(cells(9), 1) == 1, cut(cells(9), 2) == 2, *(cells(9) == n for n in range(3, 10))],
    ],
)
def test_files_that_are_not_masks_are_found(masks: list[NDArray]) -> None:
    named = [(f"{i}.png", mask) for i, mask in enumerate(masks)]
    refused = [p for p in merge_into_labels(named, masks[0].shape).problems if p.kind in REFUSED]
    assert [(problem.file, problem.kind) for problem in refused] == [
        ("1.png" if len(masks) == 2 else "0.png", "not masks")
    ]


@pytest.mark.fault(
    "Bad input",
    "masks with a white background",
    "not usable: invert them",
)
def test_masks_with_a_white_background_are_found() -> None:
    inverted = [(f"{n}.png", cells(9) != n) for n in range(1, 10)]
    [problem] = [
        p for p in merge_into_labels(inverted, cells(9).shape).problems if p.kind in REFUSED
    ]
    assert (problem.file, problem.kind) == ("1.png", "not masks")
    assert problem.detail.startswith("9 masks cover the image 8.")


@pytest.mark.fault(
    "Bad input",
    "hundreds of large masks of one image",
    "merged in the memory of one",
)
def test_masks_are_merged_one_at_a_time() -> None:
    side, count = 400, 100
    masks = ((f"{number:02}.png", np.full((side, side), 255, np.uint8)) for number in range(count))
    tracemalloc.start()
    merge_into_labels(masks, (side, side))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count / 4 * side**2  # all together would take one byte a pixel and mask


def test_one_mask_of_several_may_lie_in_two_pieces() -> None:
    masks = [(f"{n}.png", cut(cells(9), 4) == n) for n in range(1, 10)]
    assert merge_into_labels(masks, cells(9).shape).problems == ()


@given(st.lists(arrays(bool, (5, 6)), max_size=6))
def test_merging_follows_the_rules_at_every_pixel(stack: list[NDArray[np.bool_]]) -> None:
    merged = merge_into_labels([(f"{i}.png", m) for i, m in enumerate(stack)], (5, 6))
    owner = np.full((5, 6), -1)
    for y, x in np.ndindex(5, 6):
        claims = [(m.sum(), i) for i, m in enumerate(stack) if m[y, x]]
        owner[y, x] = min(claims)[1] if claims else -1
    np.testing.assert_array_equal(merged.labels, relabel(owner + 1))
    assert any(problem.kind != "not masks" for problem in merged.problems) == (
        any(not m.any() for m in stack) or (np.sum(stack, axis=0) > 1).any()
    )


@given(arrays(np.uint16, (4, 5), elements=st.integers(0, 9)))
def test_relabel_changes_only_the_numbers(labels: NDArray[np.uint16]) -> None:
    result = relabel(labels)
    assert np.unique(result[result > 0]).tolist() == list(range(1, result.max() + 1))
    np.testing.assert_array_equal(result > 0, labels > 0)
    same = labels.ravel()[:, None] == labels.ravel()
    np.testing.assert_array_equal(result.ravel()[:, None] == result.ravel(), same)


def through_jpeg(labels: NDArray[np.int32]) -> NDArray[Any]:
    encoded = cv2.imencode(".jpg", labels.astype(np.uint8))[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))


def interpolated(labels: NDArray[np.integer], interpolation: int, by: float = 1.5) -> NDArray:
    return cv2.resize(labels.astype(np.uint8), None, fx=by, fy=by, interpolation=interpolation)


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((2, 2), np.int32),
        mask("##.", "..#"),
        np.array([[0, 1, 0, 2]]),
        cells(1),
        cells(30),
        cells(300),
        cut(cells(3), 2),
        cut(cells(30), 3, 20, 29),
        interpolated(cells(30), cv2.INTER_NEAREST),
    ],
)
def test_label_images_with_a_few_nuclei_in_pieces_are_accepted(labels: NDArray) -> None:
    assert number_label_image("labels.png", labels).problems == ()


@pytest.mark.parametrize(
    "labels",
    [
        mask("#.#"),
        cells(30) > 0,  # a mask
        np.where(cells(30) > 0, 1, 2 * (np.arange(72) < 20)),  # classes
        interpolated(cells(30), cv2.INTER_LINEAR),
        interpolated(cells(30), cv2.INTER_CUBIC),
        interpolated(255 * (cells(1) > 0), cv2.INTER_LINEAR),  # smoothed edges
        interpolated(255 * (cells(9) > 0), cv2.INTER_AREA, 0.7),
        through_jpeg(cells(30)),
        *(cells(n).astype(np.uint8) for n in (260, 270, 280)),
        cells(300).astype(np.uint8),  # the numbers from 256 on begin again at 0
        cells(768).astype(np.uint8),
        cut(cells(30), 3, 6, 10, 20),
    ],
)
def test_files_that_are_not_label_images_are_found(labels: NDArray) -> None:
    [problem] = number_label_image("labels.png", labels).problems
    assert (problem.file, problem.kind) == ("labels.png", "not a label image")


def test_a_label_image_needs_background() -> None:
    [problem] = number_label_image("labels.png", 1 + (cells(9) > 0)).problems  # ilastik's
    assert problem.kind == "no background"


def test_how_many_numbers_lie_in_pieces_is_said() -> None:
    [problem] = number_label_image("labels.png", cut(cells(30), 3, 6, 10, 20)).problems
    assert problem.detail.startswith("4 of 30 numbers lie in several pieces, 8 in all. Give")
