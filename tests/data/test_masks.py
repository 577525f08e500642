import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from nucleus_unet.data import masks as module
from nucleus_unet.data.masks import check_label_image, merge_into_labels, relabel


def mask(*rows: str, dtype: type = np.uint8, value: float = 255) -> NDArray:
    """A mask from rows of text; # is foreground."""
    return np.array([[value if mark == "#" else 0 for mark in row] for row in rows], dtype)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_labels_are_in_the_order_of_the_file_names() -> None:
    merged = merge_into_labels([("b.png", mask("..#")), ("a.png", mask("#.."))], (1, 3))
    assert merged.labels.tolist() == [[1, 0, 2]]
    assert merged.labels.dtype == np.int32
    assert merged.problems == ()


def test_an_image_without_masks_has_no_nuclei() -> None:
    merged = merge_into_labels([], (2, 3))
    assert merged.labels.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert merged.problems == ()


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint8, 1), (np.uint8, 255), (np.uint16, 9), (np.float32, 1), (bool, 1)]
)
def test_a_mask_has_background_and_one_other_value_of_any_type(dtype: type, value: float) -> None:
    merged = merge_into_labels([("a.png", mask("#.#", dtype=dtype, value=value))], (1, 3))
    assert merged.labels.tolist() == [[1, 0, 1]]
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


def test_a_mask_of_many_values_is_cut_at_half_of_the_range() -> None:
    merged = merge_into_labels([("a.png", np.array([[0, 127, 128, 255]], np.uint8))], (1, 4))
    assert merged.labels.tolist() == [[0, 0, 1, 1]]
    assert [(p.file, p.kind) for p in merged.problems] == [("a.png", "stray values")]
    assert merged.problems[0].detail.startswith("2 pixels")


def test_the_foreground_may_be_minus_one() -> None:
    merged = merge_into_labels([("a.png", np.array([[0, -1, -1]], np.int8))], (1, 3))
    assert merged.labels.tolist() == [[0, 1, 1]]
    assert merged.problems == ()


def test_a_mask_of_many_small_values_is_empty() -> None:
    merged = merge_into_labels([("a.png", np.array([[0, 1, 2]], np.uint8))], (1, 3))
    assert not merged.labels.any()
    assert [p.kind for p in merged.problems] == ["stray values", "empty"]


def test_an_overlap_belongs_to_the_smaller_nucleus() -> None:
    merged = merge_into_labels([("a.png", mask("####.")), ("b.png", mask("..###"))], (1, 5))
    assert merged.labels.tolist() == [[1, 1, 2, 2, 2]]
    [problem] = merged.problems
    assert (problem.file, problem.kind) == ("a.png", "overlap")
    assert problem.detail.startswith("2 of 4 pixels")


def test_an_overlap_of_equal_nuclei_belongs_to_the_first() -> None:
    for order in (1, -1):
        files = [("a.png", mask("##.")), ("b.png", mask(".##"))][::order]
        merged = merge_into_labels(files, (1, 3))
        assert merged.labels.tolist() == [[1, 1, 2]]
        assert [p.file for p in merged.problems] == ["b.png"]


def test_a_covered_nucleus_is_skipped_and_leaves_no_gap_in_the_numbers() -> None:
    files = [("a.png", mask("####")), ("b.png", mask("##..")), ("c.png", mask("..##"))]
    merged = merge_into_labels(files, (1, 4))
    assert merged.labels.tolist() == [[1, 1, 2, 2]]
    assert [(p.file, p.kind) for p in merged.problems] == [("a.png", "covered")]


@given(st.lists(arrays(bool, (5, 6)), max_size=6))
def test_merging_follows_the_rules_at_every_pixel(stack: list[NDArray[np.bool_]]) -> None:
    merged = merge_into_labels([(f"{i}.png", m) for i, m in enumerate(stack)], (5, 6))
    owner = np.full((5, 6), -1)
    for y, x in np.ndindex(5, 6):
        claims = [(m.sum(), i) for i, m in enumerate(stack) if m[y, x]]
        owner[y, x] = min(claims)[1] if claims else -1
    np.testing.assert_array_equal(merged.labels, relabel(owner + 1))
    assert bool(merged.problems) == (
        any(not m.any() for m in stack) or (np.sum(stack, axis=0) > 1).any()
    )


@given(arrays(np.uint16, (4, 5), elements=st.integers(0, 9)))
def test_relabel_changes_only_the_numbers(labels: NDArray[np.uint16]) -> None:
    result = relabel(labels)
    assert np.unique(result[result > 0]).tolist() == list(range(1, result.max() + 1))
    np.testing.assert_array_equal(result > 0, labels > 0)
    same = labels.ravel()[:, None] == labels.ravel()
    np.testing.assert_array_equal(result.ravel()[:, None] == result.ravel(), same)


def test_a_label_image_with_one_number_for_several_parts_is_reported() -> None:
    assert check_label_image("labels.png", mask("##.", "..#")) == ()
    assert check_label_image("labels.png", np.array([[0, 1, 0, 2]])) == ()
    assert check_label_image("labels.png", np.zeros((2, 2), int)) == ()
    [problem] = check_label_image("labels.png", mask("#.#"))
    assert (problem.file, problem.kind) == ("labels.png", "not separated")
    assert "2 separate parts" in problem.detail
