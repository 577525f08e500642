"""How well a prediction fits the truth, pixel by pixel, at an image's original size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The competition's IoU thresholds, and the notebook's thresholds of probability."""


@dataclass(frozen=True)
class PixelScores:
    """Scores of one image or of many together.

    mean_iou
        Mean over thresholds 0.50:0.05:0.95 of the mean IoU of nucleus and background, as
        `nucleus_unet.metrics.ThresholdedMeanIoU` counts it.
    iou, dice
        Of the nucleus pixels at the first threshold, 0.5; 1 where there are none in either.
    """

    mean_iou: float
    iou: float
    dice: float


def pixel_counts(
    y_true: NDArray[np.integer], probability: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Count pixels at each of the ten thresholds; counts of several images may be added.

    Parameters
    ----------
    y_true : (H, W) int
        Labels.
    probability : (H, W) float32 in [0, 1]

    Returns
    -------
    (10, 4) int64
        tp, fp, fn, tn by threshold.
    """
    truth = y_true > 0
    # A pixel is found at the first k thresholds that lie below its probability.
    found = np.searchsorted(np.asarray(THRESHOLDS, np.float32), probability, side="left")
    bins = len(THRESHOLDS) + 1
    histogram = np.bincount((found + bins * truth).ravel(), minlength=2 * bins).reshape(2, bins)
    above = histogram[:, ::-1].cumsum(1)[:, -2::-1]
    (fp, tp), (background, nucleus) = above, histogram.sum(1)
    return np.stack([tp, fp, nucleus - tp, background - fp], axis=1)


def pixel_scores(counts: NDArray[np.int64]) -> PixelScores:
    """Scores from the counts of `pixel_counts`."""
    tp, fp, fn, tn = counts.T.astype(np.float64)
    union = np.stack([tp + fp + fn, tn + fp + fn])
    iou = np.divide(np.stack([tp, tn]), union, out=np.zeros_like(union), where=union > 0)
    nucleus = 1.0 if union[0, 0] == 0 else float(iou[0, 0])
    return PixelScores(
        mean_iou=float((iou.sum(0) / np.maximum((union > 0).sum(0), 1)).mean()),
        iou=nucleus,
        dice=2 * nucleus / (1 + nucleus),
    )
