"""Scores of a prediction: by nucleus, as in the 2018 Data Science Bowl, and by pixel."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Thresholds 0.50, 0.55, ... 0.95: of IoU in the competition, of probability in the notebook."""


SAME_NUCLEUS = 0.2
"""IoU above which two nuclei without a match mean the same nucleus, with a wrong outline."""


@dataclass(frozen=True)
class Losses:
    """What an image loses of the full score of 1, by cause. They add up to 1 - `Match.score`.

    missed
        Annotated nuclei that were not found.
    invented
        Predicted nuclei where none is annotated.
    split, merged
        Nuclei that belong to those that `Match.split` or `Match.merged` counts.
    outline
        Wrong outlines: of matches, which fail at higher thresholds, and of pairs without a match whose
        IoU is above `SAME_NUCLEUS`.
    """

    missed: float
    invented: float
    split: float
    merged: float
    outline: float


@dataclass(frozen=True)
class Match:
    """Matches between the predicted and the annotated nuclei of one image.

    tp
        (10,) int64. Number of predicted nuclei that match an annotated one, for each threshold in
        `THRESHOLDS`.
    true, predicted
        Number of nuclei in the annotation and in the prediction.
    split
        Number of annotated nuclei that contain more than half of each of two or more predicted nuclei.
    merged
        Number of predicted nuclei that contain more than half of each of two or more annotated nuclei.
    """

    tp: NDArray[np.int64]
    true: int
    predicted: int
    split: int
    merged: int
    overlap: "_Overlap" = field(repr=False, compare=False)

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """(10,) TP / (TP + FP + FN) for each threshold; 1 if neither side has a nucleus."""
        return _average_precision(self.tp, self.true + self.predicted)

    @property
    def score(self) -> float:
        """Score of the image in the competition: the mean of `average_precision`."""
        return float(self.average_precision.mean())

    @property
    def true_px(self) -> NDArray[np.int64]:
        """(true,) int64. Area of each annotated nucleus, by label."""
        return self.overlap.true_px

    @property
    def iou(self) -> NDArray[np.float64]:
        """(true,) float64. IoU of each annotated nucleus and its match at 0.5, or 0 without one."""
        matching = self.overlap.matching(10)
        return self._by_label(self.overlap.iou[matching], 0)

    @property
    def radius_difference_px(self) -> NDArray[np.float64]:
        """(true,) float64. Equivalent radius of the match minus that of the annotated nucleus.

        In pixels; not a number without a match.
        """
        matching = self.overlap.matching(10)
        areas = self.overlap.predicted_area[matching], self.overlap.true_area[matching]
        predicted, true = (np.sqrt(area / np.pi) for area in areas)
        return self._by_label(predicted - true, np.nan)

    @property
    def invented_px(self) -> NDArray[np.int64]:
        """(n,) int64. Area of each predicted nucleus without a match."""
        invented = np.isin(self.overlap.predicted_labels, self.overlap.invented())
        return self.overlap.predicted_px[invented]

    @property
    def losses(self) -> Losses:
        """Why the image does not have the full score."""
        return _losses(self.overlap, self.tp)

    def _by_label(self, of_matches: NDArray[np.float64], unmatched: float) -> NDArray[np.float64]:
        """A value for each annotated nucleus, by label."""
        values = np.full(self.true, unmatched, np.float64)
        matched = self.overlap.true[self.overlap.matching(10)]
        values[np.searchsorted(self.overlap.true_labels, matched)] = of_matches
        return values


def match_nuclei(y_true: NDArray[np.integer], y_pred: NDArray[np.integer]) -> Match:
    """Match the nuclei of one image as the 2018 Data Science Bowl does.

    Two nuclei match at a threshold if their IoU is greater than the threshold.

    Parameters
    ----------
    y_true, y_pred : (H, W) int
        Labels: 0 background, every positive value one nucleus. Numbers can be missing. In `y_true`,
        negative values are pixels that nobody annotated.

    Returns
    -------
    Match

    Raises
    ------
    ValueError
        If the two have different shapes.

    Notes
    -----
    With an IoU above 0.5 a nucleus matches at most one other nucleus, so no assignment is needed. IoUs
    are compared as integers, so an IoU equal to a threshold is never a match because of rounding.

    Pixels that nobody annotated are not scored. A predicted nucleus is left out if they are more than
    half of it; if not, its other pixels count.

    Examples
    --------
    The IoUs are 2/3 and 1/2, which is not greater than 0.5:

    >>> y_true = np.array([[1, 1, 1, 0, 2, 2]])
    >>> y_pred = np.array([[1, 1, 0, 0, 0, 2]])
    >>> match_nuclei(y_true, y_pred).tp
    array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    """
    overlap = _overlap(y_true, y_pred)
    return Match(
        tp=np.array([overlap.matching(twentieths).sum() for twentieths in range(10, 20)]),
        true=len(overlap.true_labels),
        predicted=len(overlap.predicted_labels),
        split=len(overlap.split()),
        merged=len(overlap.merged()),
        overlap=overlap,
    )


def _losses(overlap: "_Overlap", tp: NDArray[np.int64]) -> Losses:
    split, merged = overlap.split(), overlap.merged()
    missed, invented = overlap.missed(), overlap.invented()
    in_split = overlap.predicted[
        (2 * overlap.both > overlap.predicted_area) & np.isin(overlap.true, split)
    ]
    in_merged = overlap.true[
        (2 * overlap.both > overlap.true_area) & np.isin(overlap.predicted, merged)
    ]
    same = (
        (overlap.iou > SAME_NUCLEUS)
        & np.isin(overlap.true, missed)
        & np.isin(overlap.predicted, invented)
    )
    counts = dict.fromkeys(("missed", "invented", "split", "merged", "outline"), 0)
    # Each nucleus without a match counts once, for the first cause that holds.
    for labels, last_cause, causes in (
        (
            missed,
            "missed",
            (("merged", in_merged), ("split", split), ("outline", overlap.true[same])),
        ),
        (
            invented,
            "invented",
            (("merged", merged), ("split", in_split), ("outline", overlap.predicted[same])),
        ),
    ):
        left = labels
        for cause, members in causes:
            found = np.isin(left, members)
            counts[cause] += int(found.sum())
            left = left[~found]
        counts[last_cause] += len(left)
    nuclei = max(tp[0] + len(missed) + len(invented), 1)
    nuclei_of_both = len(overlap.true_labels) + len(overlap.predicted_labels)
    found_ap, score = (
        _average_precision(tp[:1], nuclei_of_both),
        _average_precision(tp, nuclei_of_both).mean(),
    )
    losses = {cause: count / nuclei for cause, count in counts.items()}
    losses["outline"] += float(found_ap[0] - score)
    return Losses(**losses)


def _average_precision(tp: NDArray[np.int64], nuclei_of_both: int) -> NDArray[np.float64]:
    nuclei = nuclei_of_both - tp
    return np.where(nuclei > 0, tp / np.maximum(nuclei, 1), 1.0)


@dataclass(frozen=True)
class NucleusErrors:
    """Labels of the nuclei of one image that are wrong, at IoU 0.5.

    missed
        Annotated nuclei without a match.
    invented
        Predicted nuclei without a match that are not in `merged`.
    split
        Annotated nuclei that `Match.split` counts.
    merged
        Predicted nuclei that `Match.merged` counts.
    """

    missed: NDArray[np.integer]
    invented: NDArray[np.integer]
    split: NDArray[np.integer]
    merged: NDArray[np.integer]


def nucleus_errors(y_true: NDArray[np.integer], y_pred: NDArray[np.integer]) -> NucleusErrors:
    """Find the nuclei that are wrong in a prediction; the arguments are those of `match_nuclei`."""
    overlap = _overlap(y_true, y_pred)
    merged = overlap.merged()
    return NucleusErrors(
        missed=overlap.missed(),
        invented=np.setdiff1d(overlap.invented(), merged),
        split=overlap.split(),
        merged=merged,
    )


@dataclass(frozen=True)
class _Overlap:
    """All labels with their areas, and the pairs of nuclei that share pixels with theirs, in pixels."""

    true_labels: NDArray[np.integer]
    predicted_labels: NDArray[np.integer]
    true: NDArray[np.integer]
    predicted: NDArray[np.integer]
    true_px: NDArray[np.int64]
    predicted_px: NDArray[np.int64]
    both: NDArray[np.int64]
    true_area: NDArray[np.int64]
    predicted_area: NDArray[np.int64]

    def matching(self, twentieths: int) -> NDArray[np.bool_]:
        """Pairs with an IoU greater than `twentieths` / 20."""
        return 20 * self.both > twentieths * self.union

    @property
    def union(self) -> NDArray[np.int64]:
        """Area of each pair."""
        return self.true_area + self.predicted_area - self.both

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each pair."""
        return self.both / self.union

    def missed(self) -> NDArray[np.integer]:
        """Annotated nuclei without a match at 0.5."""
        return np.setdiff1d(self.true_labels, self.true[self.matching(10)])

    def invented(self) -> NDArray[np.integer]:
        """Predicted nuclei without a match at 0.5."""
        return np.setdiff1d(self.predicted_labels, self.predicted[self.matching(10)])

    def split(self) -> NDArray[np.integer]:
        return _repeated(self.true[2 * self.both > self.predicted_area])

    def merged(self) -> NDArray[np.integer]:
        return _repeated(self.predicted[2 * self.both > self.true_area])


def _overlap(y_true: NDArray[np.integer], y_pred: NDArray[np.integer]) -> _Overlap:
    if y_true.shape != y_pred.shape:
        raise ValueError(
            f"y_true has the shape {y_true.shape} but y_pred has the shape {y_pred.shape}. "
            "Both need the size of the image."
        )
    y_true, y_pred = _without_ignored(y_true, y_pred)
    pixels, pairs = np.ones(y_true.size, np.int64), (y_true.ravel(), y_pred.ravel())
    shape = tuple(int(labels.max(initial=0)) + 1 for labels in (y_true, y_pred))
    table = sparse.coo_array((pixels, pairs), shape).tocsr()
    true_areas, predicted_areas = table.sum(1)[1:], table.sum(0)[1:]
    nuclei = table[1:, 1:].tocoo()
    row, column = nuclei.coords
    return _Overlap(
        true_labels=np.flatnonzero(true_areas) + 1,
        predicted_labels=np.flatnonzero(predicted_areas) + 1,
        true_px=true_areas[true_areas > 0],
        predicted_px=predicted_areas[predicted_areas > 0],
        true=row + 1,
        predicted=column + 1,
        both=nuclei.data,
        true_area=true_areas[row],
        predicted_area=predicted_areas[column],
    )


def _without_ignored(
    y_true: NDArray[np.integer], y_pred: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    ignored = y_true < 0
    if not ignored.any():
        return y_true, y_pred
    areas = np.bincount(y_pred.ravel())
    left_out = 2 * np.bincount(y_pred[ignored], minlength=areas.size) > areas
    return np.where(ignored, 0, y_true), np.where(ignored | left_out[y_pred], 0, y_pred)


def _repeated(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Values that occur more than once."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts > 1]


@dataclass(frozen=True)
class PixelScores:
    """Scores by pixel, over one or more images.

    mean_iou
        Mean IoU of nucleus and background, averaged over the thresholds 0.50:0.05:0.95, as in
        `nucleus_unet.network.metrics.ThresholdedMeanIoU`.
    iou, dice
        IoU and Dice coefficient of the nucleus pixels at the first threshold, 0.5; 1 if neither side
        has a nucleus pixel.
    """

    mean_iou: float
    iou: float
    dice: float


def pixel_counts(
    y_true: NDArray[np.integer], probability: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Count pixels at each of the ten thresholds; the counts of several images can be added.

    Parameters
    ----------
    y_true : (H, W) int
        Labels: 0 background, every positive value one nucleus. Pixels below 0 are not counted.
    probability : (H, W) float32 in [0, 1]
        Probability that a pixel belongs to a nucleus.

    Returns
    -------
    (10, 4) int64
        Columns tp, fp, fn, tn for each threshold. A pixel is found if its probability is greater than
        the threshold.
    """
    kept = y_true >= 0
    truth = y_true[kept] > 0
    # `found` is the number of thresholds below the probability of a pixel.
    found = np.searchsorted(np.asarray(THRESHOLDS, np.float32), probability[kept], side="left")
    bins = len(THRESHOLDS) + 1
    histogram = np.bincount((found + bins * truth).ravel(), minlength=2 * bins).reshape(2, bins)
    above = histogram[:, ::-1].cumsum(1)[:, -2::-1]
    (fp, tp), (background, nucleus) = above, histogram.sum(1)
    return np.stack([tp, fp, nucleus - tp, background - fp], axis=1)


def pixel_scores(counts: NDArray[np.int64]) -> PixelScores:
    """Compute scores from the counts of `pixel_counts`."""
    tp, fp, fn, tn = counts.T.astype(np.float64)
    union = np.stack([tp + fp + fn, tn + fp + fn])
    iou = np.divide(np.stack([tp, tn]), union, out=np.zeros_like(union), where=union > 0)
    nucleus = 1.0 if union[0, 0] == 0 else float(iou[0, 0])
    return PixelScores(
        mean_iou=float((iou.sum(0) / np.maximum((union > 0).sum(0), 1)).mean()),
        iou=nucleus,
        dice=2 * nucleus / (1 + nucleus),
    )
