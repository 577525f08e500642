import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import jaccard_score

from nucleus_unet.network.metrics import MaskMeanIoU, ThresholdedMeanIoU
from nucleus_unet.nuclei.scoring import THRESHOLDS, pixel_counts, pixel_scores


def mean_iou(
    y_true: ArrayLike, y_pred: ArrayLike, thresholds: tuple[float, ...] = THRESHOLDS
) -> float:
    metric = ThresholdedMeanIoU(thresholds)
    metric.update_state(np.array(y_true, np.float32), np.array(y_pred, np.float32))
    return float(metric.result())


@st.composite
def batches(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Truth and probability, (N, 4, 4, 1); often without nuclei, and often at a threshold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 5)), 4, 4, 1)
    y_true = rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
    y_pred = rng.random(shape).astype(np.float32) ** draw(st.sampled_from([0, 0.2, 1, 9]))
    at_threshold = rng.random(shape) < 0.3
    return y_true.astype(np.float32), np.where(
        at_threshold, rng.choice(np.array(THRESHOLDS, np.float32), shape), y_pred
    ).astype(np.float32)


def test_by_hand_at_one_threshold() -> None:
    # tp 1, fp 1, fn 1, tn 2: nucleus 1/3, background 2/4
    value = mean_iou([1, 0, 1, 0, 0], [0.9, 0.8, 0.1, 0.2, 0.3], (0.5,))
    assert value == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_the_result_is_the_mean_over_thresholds() -> None:
    # found above 0.5, 0.55 and 0.6, missed above the seven others: 1, or (0 + 1/2) / 2
    assert mean_iou([1, 0], [0.62, 0]) == pytest.approx((3 * 1 + 7 * 0.25) / 10)


def test_a_probability_equal_to_the_threshold_is_background() -> None:
    for threshold in THRESHOLDS:
        assert mean_iou([1, 0], [threshold, 0], (threshold,)) == 0.25
        assert mean_iou([1, 0], [np.nextafter(np.float32(threshold), 1), 0], (threshold,)) == 1


def test_a_class_absent_from_both_is_left_out() -> None:
    assert mean_iou([0, 0], [0.1, 0.2]) == 1
    assert mean_iou([1, 1], [0.99, 0.99]) == 1
    assert mean_iou([0, 0, 0], [0.99, 0, 0]) == pytest.approx((0 + 2 / 3) / 2)


def test_without_pixels_the_score_is_0() -> None:
    assert float(ThresholdedMeanIoU().result()) == 0


def test_reset() -> None:
    metric = ThresholdedMeanIoU()
    metric.update_state(np.ones(4), np.zeros(4))
    metric.reset_state()
    metric.update_state(np.ones(4), np.ones(4))
    assert float(metric.result()) == 1


@settings(max_examples=25)
@given(batches())
def test_the_result_equals_scikit_learn(
    batch: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    y_true, y_pred = (array.ravel() for array in batch)
    # By default, the mean is over the classes that occur in at least one of the two.
    expected = [
        jaccard_score(y_true > 0, y_pred > np.float32(t), average="macro") for t in THRESHOLDS
    ]
    assert mean_iou(*batch) == pytest.approx(np.mean(expected), abs=1e-6)


@settings(max_examples=25)
@given(batches(), st.integers(1, 4))
def test_the_result_does_not_depend_on_the_batches(
    batch: tuple[NDArray[np.float32], NDArray[np.float32]], size: int
) -> None:
    y_true, y_pred = batch
    metric = ThresholdedMeanIoU()
    for start in range(0, len(y_true), size):
        metric.update_state(y_true[start : start + size], y_pred[start : start + size])
    assert float(metric.result()) == mean_iou(y_true, y_pred)


@settings(max_examples=25)
@given(batches())
def test_the_result_equals_pixel_scores(
    batch: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    y_true, y_pred = (array.reshape(-1, 4) for array in batch)
    counts = pixel_counts(y_true.astype(np.int32), y_pred)
    assert mean_iou(*batch) == pytest.approx(pixel_scores(counts).mean_iou, abs=1e-6)


def test_counts_stay_exact_beyond_the_limits_of_float32_and_int32() -> None:
    metric = ThresholdedMeanIoU((0.5,))
    # tp 2²⁴ - 1 and fp 2³² + 1; then add three to each, one by one
    metric.low.assign(np.array([[2**24 - 1], [1], [0], [0]], np.int32))
    metric.high.assign(np.array([[0], [2**8], [0], [0]], np.int32))
    for _ in range(3):
        metric.update_state(np.array([1.0, 0.0]), np.ones(2))
    assert np.asarray(metric.low).tolist() == [[2], [4], [0], [0]]
    assert np.asarray(metric.high).tolist() == [[1], [2**8], [0], [0]]
    assert float(metric.result()) == pytest.approx((2**24 + 2) / (2**32 + 2**24 + 6) / 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predictions_can_have_any_precision(precision: str) -> None:
    metric = ThresholdedMeanIoU((0.5,))
    metric.update_state(np.array([1.0, 0.0]), keras.ops.convert_to_tensor([0.75, 0.25], precision))
    assert float(metric.result()) == 1


def test_pixels_that_nobody_annotated_count_as_background() -> None:
    truth = np.array([1, 0, -1, -1], np.float32).reshape(1, 1, 4, 1)
    found, background = (
        np.array(values, np.float32).reshape(1, 1, 4, 1) for values in ([1, 0, 1, 1], [1, 0, 0, 0])
    )
    scores = []
    for y_true, y_pred in ((truth, found), (np.maximum(truth, 0), background)):
        metric = MaskMeanIoU()
        metric.update_state(y_true, y_pred)
        scores.append(float(metric.result()))
    assert scores == [1, 1]
