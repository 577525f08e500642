from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.nuclei.scoring import (
    THRESHOLDS,
    match_nuclei,
    nucleus_errors,
    pixel_counts,
    pixel_scores,
)

shapes = st.shared(hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7), key="shape")
truths = hnp.arrays(np.int32, shapes, elements=st.integers(0, 3))
# Values equal to a threshold are drawn often, because > and >= differ there.
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


def test_a_class_that_is_absent_from_both_is_left_out() -> None:
    background_only = pixel_scores(np.tile([0, 0, 0, 9], (10, 1)))
    assert (background_only.mean_iou, background_only.iou, background_only.dice) == (1, 1, 1)
    nuclei_only = pixel_scores(np.tile([9, 0, 0, 0], (10, 1)))
    assert (nuclei_only.mean_iou, nuclei_only.iou, nuclei_only.dice) == (1, 1, 1)


def test_without_a_correct_pixel_the_scores_are_0() -> None:
    scores = pixel_scores(np.tile([0, 4, 4, 0], (10, 1)))
    assert (scores.mean_iou, scores.iou, scores.dice) == (0, 0, 0)


def test_counts_of_images_add_up() -> None:
    rng = np.random.default_rng(0)
    y_true, probability = rng.integers(0, 2, (6, 8)), rng.random((6, 8), np.float32)
    together = pixel_counts(y_true, probability)
    parts = pixel_counts(y_true[:2], probability[:2]) + pixel_counts(y_true[2:], probability[2:])
    np.testing.assert_array_equal(together, parts)


# Nuclei

label_images = hnp.arrays(np.int32, shapes, elements=st.integers(0, 4))


def plain_match(y_true: NDArray[np.int32], y_pred: NDArray[np.int32]) -> dict[str, Any]:
    """Match by definition, pair by pair, in integers: an IoU greater than k / 20."""
    true = [y_true == n for n in np.unique(y_true) if n]
    predicted = [y_pred == n for n in np.unique(y_pred) if n]
    tp = [
        sum(20 * (t & p).sum() > k * (t | p).sum() for t in true for p in predicted)
        for k in range(10, 20)
    ]
    split = sum(sum(2 * (t & p).sum() > p.sum() for p in predicted) > 1 for t in true)
    merged = sum(sum(2 * (t & p).sum() > t.sum() for t in true) > 1 for p in predicted)
    counts = {"true": len(true), "predicted": len(predicted), "split": split, "merged": merged}
    return {"tp": tp, **counts}


@given(label_images, label_images)
def test_matches_agree_with_the_definition(y_true: NDArray[Any], y_pred: NDArray[Any]) -> None:
    found = match_nuclei(y_true, y_pred)
    assert found.tp.tolist() == plain_match(y_true, y_pred).pop("tp")
    assert (
        plain_match(y_true, y_pred).items()
        >= {
            "true": found.true,
            "predicted": found.predicted,
            "split": found.split,
            "merged": found.merged,
        }.items()
    )


@given(label_images)
def test_an_image_matches_itself_with_any_numbers(y_true: NDArray[Any]) -> None:
    found = match_nuclei(y_true, np.where(y_true, 70 - 10 * y_true, 0))
    assert found.tp.tolist() == [found.true] * 10
    assert (found.score, found.split, found.merged) == (1.0, 0, 0)


def test_an_iou_equal_to_the_threshold_is_no_match() -> None:
    y_true = np.array([[1] * 20])
    for k, threshold in enumerate(THRESHOLDS):
        y_pred = np.array([[1] * (10 + k) + [0] * (10 - k)])  # IoU = threshold, exactly
        assert match_nuclei(y_true, y_pred).tp[k] == 0, threshold
        y_pred[0, 10 + k] = 1
        assert match_nuclei(y_true, y_pred).tp[k] == 1, threshold


def test_a_score_by_hand() -> None:
    # One nucleus with IoU 4/5, one missed, one invented: 1 of 3 up to 0.75, then 0 of 4.
    y_true = np.array([[1, 1, 1, 1, 0, 2, 0, 0]])
    y_pred = np.array([[1, 1, 1, 1, 1, 0, 0, 2]])
    found = match_nuclei(y_true, y_pred)
    assert found.tp.tolist() == [1] * 6 + [0] * 4
    np.testing.assert_allclose(found.average_precision, [1 / 3] * 6 + [0] * 4)
    assert found.score == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "score"), [([0, 0], [0, 0], 1.0), ([0, 1], [0, 0], 0.0), ([0], [1], 0.0)]
)
def test_images_without_nuclei(y_true: list[int], y_pred: list[int], score: float) -> None:
    assert match_nuclei(np.array([y_true]), np.array([y_pred])).score == score


def test_splits_and_merges_by_hand() -> None:
    y_true = np.array([[1, 1, 1, 1, 0, 2, 2, 3, 3, 3]])
    y_pred = np.array([[1, 1, 2, 2, 2, 4, 4, 4, 4, 0]])
    found = match_nuclei(y_true, y_pred)
    assert (found.split, found.merged) == (1, 1)
    # Half of a nucleus is not more than half.
    assert match_nuclei(np.array([[1, 1, 0, 0]]), np.array([[1, 2, 2, 0]])).split == 0


def test_wrong_nuclei_are_listed_by_label() -> None:
    y_true = np.array([[1, 1, 1, 1, 0, 2, 2, 3, 3, 3, 0, 4, 4, 0, 0]])
    y_pred = np.array([[1, 1, 2, 2, 2, 4, 4, 4, 4, 0, 0, 6, 6, 0, 8]])
    found = nucleus_errors(y_true, y_pred)
    assert found.split.tolist() == [1]
    assert found.merged.tolist() == [4]
    assert found.missed.tolist() == [1, 2, 3]  # the only IoU above 0.5 is between 4 and 6
    assert found.invented.tolist() == [1, 2, 8]  # 4 is not invented but merged


def test_different_shapes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"y_true has the shape \(1, 2\) but y_pred has the shape \(2, 1\)\. Both"
    ):
        match_nuclei(np.zeros((1, 2), int), np.zeros((2, 1), int))


@pytest.mark.parametrize(
    ("y_pred", "tp", "predicted"),
    [
        ([1, 1, 0, 0, 0, 0], 1, 1),
        ([1, 1, 1, 1, 0, 0], 1, 1),  # half of it is not annotated: the other half counts
        ([1, 1, 0, 2, 2, 0], 1, 2),
        ([1, 1, 2, 2, 2, 0], 1, 1),  # two thirds of the second are not annotated
        ([0, 1, 1, 1, 0, 0], 0, 0),
    ],
)
def test_pixels_that_nobody_annotated_are_not_scored(
    y_pred: list[int], tp: int, predicted: int
) -> None:
    y_true = np.array([[5, 5, -1, -1, 0, 0]])
    found = match_nuclei(y_true, np.array([y_pred]))
    assert (found.tp[0], found.true, found.predicted) == (tp, 1, predicted)


def test_counts_leave_out_pixels_that_nobody_annotated() -> None:
    y_true, probability = np.array([[1, 0, -1, -1]]), np.array([[0.9, 0.2, 0.9, 0.2]], np.float32)
    assert pixel_counts(y_true, probability)[0].tolist() == [1, 0, 0, 1]


def test_nuclei_of_a_match_by_hand() -> None:
    y_true = np.array([[1, 1, 1, 1, 0, 2, 0, 5]])
    y_pred = np.array([[1, 1, 1, 0, 0, 0, 3, 3]])
    match = match_nuclei(y_true, y_pred)
    assert match.true_px.tolist() == [4, 1, 1]
    assert match.iou.tolist() == [0.75, 0, 0]
    expected = (3 / np.pi) ** 0.5 - (4 / np.pi) ** 0.5
    np.testing.assert_allclose(match.radius_difference_px, [expected, np.nan, np.nan])
    assert match.invented_px.tolist() == [2]


@pytest.mark.parametrize(
    ("y_true", "y_pred", "losses"),
    [
        ([1, 1, 0, 2], [1, 1, 0, 2], {}),
        ([1, 1, 0, 0], [0, 0, 0, 2], {"missed": 0.5, "invented": 0.5}),
        ([1, 1, 0, 2], [1, 1, 1, 1], {"merged": 1}),
        ([1, 1, 1, 1], [1, 1, 0, 2], {"split": 1}),
        ([1, 1, 1, 0], [1, 0, 0, 0], {"outline": 1}),  # IoU 1/3
        (
            [1, 1, 1, 0],
            [1, 1, 0, 0],
            {"outline": 0.6},
        ),  # IoU 2/3, which fails at 6 of 10 thresholds
        ([1, 1, 2, 0], [1, 1, 0, 3], {"missed": 1 / 3, "invented": 1 / 3}),
        ([0, 0, 0, 0], [0, 0, 0, 0], {}),
    ],
)
def test_losses_by_hand(y_true: list[int], y_pred: list[int], losses: dict[str, float]) -> None:
    found = match_nuclei(np.array([y_true]), np.array([y_pred])).losses
    none = dict.fromkeys(("missed", "invented", "split", "merged", "outline"), 0.0)
    assert asdict(found) == pytest.approx(none | losses)


@given(truths, truths)
def test_losses_add_up(y_true: NDArray[np.int32], y_pred: NDArray[np.int32]) -> None:
    match = match_nuclei(y_true, y_pred)
    assert sum(asdict(match.losses).values()) == pytest.approx(1 - match.score)
