import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.data import rle as module
from nucleus_unet.data.rle import coco_counts, decode_rle, encode_rle, rle_faults
from nucleus_unet.errors import NucleusError

label_images = hnp.arrays(
    np.int32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.integers(0, 4),
)


def plain_encode(mask: NDArray[np.bool_]) -> str:
    """The encoder of the notebook, which loops over pixels."""
    numbers: list[int] = []
    previous = -2
    for pixel in np.where(mask.T.flatten() == 1)[0]:
        if pixel > previous + 1:
            numbers.extend((pixel + 1, 0))
        numbers[-1] += 1
        previous = pixel
    return " ".join(map(str, numbers))


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_the_example_of_kaggle() -> None:
    # From the evaluation page of the competition: "1 3 10 5" is the pixels 1, 2, 3, 10, 11, 12, 13, 14.
    # Here the image has 5 x 4 pixels, so a column has 5.
    labels = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0]])
    assert encode_rle(labels) == ["1 3 10 5"]
    np.testing.assert_array_equal(decode_rle(["1 3 10 5"], 5, 4), labels)


@pytest.mark.parametrize(
    ("labels", "rles"),
    [
        ([[0, 0], [0, 0]], []),
        ([[0, 0], [0, 1]], ["4 1"]),
        ([[1, 1], [1, 1]], ["1 4"]),  # one run continues in the next column
        ([[1, 2], [1, 2]], ["1 2", "3 2"]),  # a run ends where another nucleus begins
        ([[2, 1], [1, 2]], ["2 2", "1 1 4 1"]),  # sorted by label, not by place
        ([[0, 7], [3, 0]], ["2 1", "3 1"]),  # labels need not be consecutive
        (np.zeros((0, 3), int), []),
    ],
)
def test_encode(labels: list[list[int]], rles: list[str]) -> None:
    assert encode_rle(np.array(labels)) == rles


def test_decode_numbers_nuclei_in_the_given_order() -> None:
    labels = decode_rle(["4 1", "1 1 3 1"], 2, 2)
    assert labels.dtype == np.int32
    assert labels.flags.c_contiguous
    np.testing.assert_array_equal(labels, [[2, 2], [0, 1]])


def test_no_rles_give_background() -> None:
    np.testing.assert_array_equal(decode_rle([], 2, 3), np.zeros((2, 3)))


def test_runs_may_touch() -> None:
    np.testing.assert_array_equal(decode_rle(["1 1 2 2"], 2, 2), [[1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("rle", "rule"),
    [
        ("", "is empty: a nucleus has at least one pixel"),
        ("  ", "is empty: a nucleus has at least one pixel"),
        ("1 two", "is not 'start length start length ...' in whole numbers"),
        ("1.0 2", "is not 'start length start length ...' in whole numbers"),
        ("1 9999999999999999999", "is not 'start length start length ...' in whole numbers"),
        ("1 2 4", "has an odd number of numbers, 3: each start needs a length"),
        ("0 1", "has a start below 1: pixels are numbered from 1"),
        ("-1 1", "has a start below 1: pixels are numbered from 1"),
        ("1 0", "has a length below 1: remove runs without pixels"),
        ("2 -1", "has a length below 1: remove runs without pixels"),
        ("6 2", "ends outside the image, which has 6 pixels (height 2 x width 3)"),
        ("4 1 1 1", "has runs that overlap or are not sorted: sort and merge them"),
        ("1 3 3 1", "has runs that overlap or are not sorted: sort and merge them"),
    ],
)
def test_the_rules_for_one_rle(rle: str, rule: str) -> None:
    assert rle_faults(["5 1", rle], 2, 3) == {1: rule}
    with pytest.raises(NucleusError) as error:
        decode_rle(["5 1", rle], 2, 3)
    assert str(error.value) == f"RLE 2 of 2, '{rle}', {rule}"


def test_overlapping_nuclei() -> None:
    clash = "contains pixel 4, which RLE 1 has too: nuclei must not overlap"
    assert rle_faults(["1 5", "6 1", "4 1"], 2, 3) == {2: clash}
    assert rle_faults(["4 1", "6 1", "1 5"], 2, 3) == {2: clash}
    with pytest.raises(
        NucleusError, match="RLE 3 of 3, '4 1', contains pixel 4, which RLE 1 has too"
    ):
        decode_rle(["1 5", "6 1", "4 1"], 2, 3)


def test_every_rle_that_overlaps_an_earlier_one_is_found() -> None:
    clash = "contains pixel 16, which RLE 1 has too: nuclei must not overlap"
    assert rle_faults(["11 10", "16 15"], 10, 20) == {1: clash}
    longer = {2: "contains pixel 11, which RLE 1 has too: nuclei must not overlap"}
    assert rle_faults(["11 10", "16 15", "1 100"], 10, 20) == longer | {1: clash}


runs = st.tuples(st.integers(1, 30), st.integers(1, 12)).map(lambda run: f"{run[0]} {run[1]}")


@given(st.lists(runs, max_size=8))
def test_overlapping_nuclei_are_those_of_a_comparison_of_all_pairs(rles: list[str]) -> None:
    pixels = [set(range(int(s), int(s) + int(n))) for s, n in map(str.split, rles)]
    late = {k for k, own in enumerate(pixels) if any(own & pixels[j] for j in range(k))}
    assert set(rle_faults(rles, 6, 7)) == late


def test_all_faults_are_found_and_the_first_is_raised() -> None:
    rles = ["1 1", "x", "2 0", "1 1"]
    assert sorted(rle_faults(rles, 2, 3)) == [1, 2, 3]
    with pytest.raises(NucleusError, match="RLE 2 of 4, 'x'"):
        decode_rle(rles, 2, 3)


def test_a_long_rle_is_shortened_in_the_message() -> None:
    with pytest.raises(NucleusError) as error:
        decode_rle(["9 " * 1000], 2, 3)
    assert len(str(error.value)) < 200


@given(label_images)
def test_encode_gives_what_a_loop_over_pixels_gives(labels: NDArray[np.int32]) -> None:
    numbers = np.unique(labels[labels > 0])
    assert encode_rle(labels) == [plain_encode(labels == number) for number in numbers]


@given(label_images)
def test_decode_reverses_encode(labels: NDArray[np.int32]) -> None:
    numbers = np.unique(labels[labels > 0])
    expected = np.searchsorted(numbers, labels) + 1
    expected[labels == 0] = 0
    rles = encode_rle(labels)
    np.testing.assert_array_equal(decode_rle(rles, *labels.shape), expected)
    assert rle_faults(rles, *labels.shape) == {}


@given(st.lists(st.lists(st.integers(-1, 8), max_size=6).map(lambda n: " ".join(map(str, n)))))
def test_decode_agrees_with_painting(rles: list[str]) -> None:
    """Either there is a fault, or painting run by run gives the same labels without overlap."""
    painted = np.zeros(6, int)
    if rle_faults(rles, 2, 3):
        with pytest.raises(NucleusError):
            decode_rle(rles, 2, 3)
        return
    for number, rle in enumerate(rles, 1):
        values = list(map(int, rle.split()))
        for start, length in zip(values[::2], values[1::2], strict=True):
            for pixel in range(start - 1, start - 1 + length):
                assert painted[pixel] == 0
                painted[pixel] = number
    np.testing.assert_array_equal(decode_rle(rles, 2, 3), painted.reshape(3, 2).T)


@given(st.lists(st.text(max_size=12)))
def test_any_text_gives_faults_and_no_crash(rles: list[str]) -> None:
    assert set(rle_faults(rles, 3, 4)) <= set(range(len(rles)))


@pytest.mark.parametrize(
    ("rle", "pixels", "counts"),
    [
        ("1 24", 24, "0h0"),  # 24 has six bits, so its lowest five and one more digit
        ("22 2", 24, "e021"),
        ("5 3 9 1 11 1 13 3", 24, "431N00028"),  # a ring; the fourth count is 1 - 3
        ("21 4", 24, "d04"),  # no count for a background without pixels
    ],
)
def test_compressed_run_lengths_of_coco(rle: str, pixels: int, counts: str) -> None:
    """As the COCO API writes them."""
    assert coco_counts(rle, pixels) == counts
