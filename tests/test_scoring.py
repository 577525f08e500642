import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.scoring import THRESHOLDS, pixel_counts, pixel_scores

shapes = st.shared(hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7), key="shape")
truths = hnp.arrays(np.int32, shapes, elements=st.integers(0, 3))
# The thresholds themselves are drawn often: there > and >= differ.
probabilities = hnp.arrays(
    np.float32,
    shapes,
    elements=st.floats(0, 1, width=32) | st.sampled_from(np.array(THRESHOLDS, np.float32).tolist()),
)


def plain_counts(y_true: NDArray[np.int32], probability: NDArray[np.float32]) -> list[list[int]]:
    counts = []
    for threshold in np.array(THRESHOLDS, np.float32):
        tp = fp = fn = tn = 0
        for truth, found in zip(y_true.flat, probability.flat, strict=True):
            tp += bool(truth > 0 and found > threshold)
            fp += bool(truth == 0 and found > threshold)
            fn += bool(truth > 0 and not found > threshold)
            tn += bool(truth == 0 and not found > threshold)
        counts.append([tp, fp, fn, tn])
    return counts


def test_the_thresholds_of_the_competition() -> None:
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_counts_by_hand() -> None:
    y_true = np.array([[0, 1, 2], [0, 0, 2]])
    probability = np.array([[0.1, 0.6, 0.96], [0.52, 0.5, 0.2]], np.float32)
    counts = pixel_counts(y_true, probability)
    assert counts.dtype == np.int64
    assert counts.shape == (10, 4)
    assert counts[0].tolist() == [2, 1, 1, 2]  # 0.5: a probability of 0.5 is background
    assert counts[1].tolist() == [2, 0, 1, 3]  # 0.55
    assert counts[2].tolist() == [1, 0, 2, 3]  # 0.6: not above it
    assert counts[9].tolist() == [1, 0, 2, 3]  # 0.95


@given(truths, probabilities)
def test_counts_equal_a_plain_loop(
    y_true: NDArray[np.int32], probability: NDArray[np.float32]
) -> None:
    assert pixel_counts(y_true, probability).tolist() == plain_counts(y_true, probability)


def test_scores_by_hand() -> None:
    counts = np.tile([2, 1, 1, 4], (10, 1))
    counts[5:] = [0, 0, 3, 5]
    scores = pixel_scores(counts)
    first, last = (2 / 4 + 4 / 6) / 2, (0 + 5 / 8) / 2
    assert scores.mean_iou == pytest.approx((first + last) / 2)
    assert scores.iou == 0.5
    assert scores.dice == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_a_class_absent_from_both_is_left_out() -> None:
    background_only = pixel_scores(np.tile([0, 0, 0, 9], (10, 1)))
    assert (background_only.mean_iou, background_only.iou, background_only.dice) == (1, 1, 1)
    nuclei_only = pixel_scores(np.tile([9, 0, 0, 0], (10, 1)))
    assert (nuclei_only.mean_iou, nuclei_only.iou, nuclei_only.dice) == (1, 1, 1)


def test_nothing_right_scores_nothing() -> None:
    scores = pixel_scores(np.tile([0, 4, 4, 0], (10, 1)))
    assert (scores.mean_iou, scores.iou, scores.dice) == (0, 0, 0)


def test_counts_of_images_add_up() -> None:
    rng = np.random.default_rng(0)
    y_true, probability = rng.integers(0, 2, (6, 8)), rng.random((6, 8), np.float32)
    whole = pixel_counts(y_true, probability)
    parts = pixel_counts(y_true[:2], probability[:2]) + pixel_counts(y_true[2:], probability[2:])
    np.testing.assert_array_equal(whole, parts)
