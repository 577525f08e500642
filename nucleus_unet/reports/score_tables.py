"""Scores as tables: of matched images, and of a submission against the annotated nuclei."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import rle
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import read_submission, scoring

_COUNTS = ("true", "predicted", "split", "merged")
SIZES_PX = (0, 8, 16, 32, 64, math.inf)
"""Limits of the classes of equivalent diameters."""


def match_submission(
    path: Path, truth: Iterable[tuple[str, NDArray[np.integer]]]
) -> dict[str, scoring.Match]:
    """Match each annotated image with its rows in a submission; other rows do not count.

    Parameters
    ----------
    path : Path
        A submission.
    truth : iterable of (str, (H, W) int)
        Image id and annotated labels.

    Raises
    ------
    NucleusError
        The submission cannot be read, has no row for an image, or an RLE that cannot be decoded.
    """
    found, matches = read_submission(path), {}
    for image_id, y_true in truth:
        if image_id not in found:
            raise NucleusError(
                f"{path}: no row for image {image_id}: a submission has one for every image of the "
                "truth, with nothing after the comma where no nucleus was found"
            )
        try:
            y_pred = rle.decode_rle(found[image_id], *y_true.shape)
        except NucleusError as error:
            raise NucleusError(f"{path}: image {image_id}: {error}") from error
        matches[image_id] = scoring.match_nuclei(y_true, y_pred)
    if not matches:
        raise NucleusError(f"{path}: the truth has no image to score against")
    return matches


def scores_table(matches: Mapping[str, scoring.Match]) -> dict[str, Any]:
    """The scores of matched images as JSON values.

    Returns
    -------
    dict
        - ``score``: mean average precision, the mean of `Match.score` over images,
        - ``images``: number of images,
        - ``true``, ``predicted``, ``split``, ``merged``: sums of the fields of `Match` over images,
        - ``by_threshold``: for each threshold ``average_precision``, the mean of
          TP / (TP + FP + FN) over images, and ``precision``, ``recall`` and ``f1`` over the nuclei of
          all images, which are 1 if there are no nuclei to divide by,
        - ``losses``: the mean of each field of `Losses` over images; with ``score`` they add up to 1,
        - ``radius_bias_px``: median difference of the equivalent radius of a match and that of its
          annotated nucleus, in pixels; None without matches. Negative: drawn too small,
        - ``by_size``: for each class of `SIZES_PX` with annotated nuclei their number, the
          ``average_precision`` at 0.50 over the nuclei of all images, and ``radius_bias_px``. A
          predicted nucleus without a match counts in the class of its own size,
        - ``by_image``: score and counts of each image, the worst first.
    """
    found = matches.values()
    counts = {name: sum(getattr(match, name) for match in found) for name in _COUNTS}
    tp = np.sum([match.tp for match in found], axis=0)
    average_precision = np.mean([match.average_precision for match in found], axis=0)
    columns = {
        "iou_above": scoring.THRESHOLDS,
        "average_precision": average_precision.tolist(),
        "precision": _share(tp, counts["predicted"]),
        "recall": _share(tp, counts["true"]),
        "f1": _share(2 * tp, counts["true"] + counts["predicted"]),
    }
    rows = zip(*columns.values(), strict=True)
    by_image = [
        {"id": image_id, "score": match.score} | {name: getattr(match, name) for name in _COUNTS}
        for image_id, match in matches.items()
    ]
    causes = [asdict(match.losses) for match in found]
    return {
        "score": float(average_precision.mean()),
        "images": len(matches),
        **counts,
        "losses": {cause: float(np.mean([c[cause] for c in causes])) for cause in causes[0]},
        "radius_bias_px": _median([match.radius_difference_px for match in found]),
        "by_size": list(_by_size([*found])),
        "by_threshold": [dict(zip(columns, row, strict=True)) for row in rows],
        "by_image": sorted(by_image, key=lambda row: (row["score"], row["id"])),
    }


def _by_size(matches: Sequence[scoring.Match]) -> Iterator[dict[str, Any]]:
    diameters = 2 * np.sqrt(np.concatenate([match.true_px for match in matches]) / np.pi)
    iou = np.concatenate([match.iou for match in matches])
    difference = np.concatenate([match.radius_difference_px for match in matches])
    invented = 2 * np.sqrt(np.concatenate([match.invented_px for match in matches]) / np.pi)
    for low, high in itertools.pairwise(SIZES_PX):
        own = (low <= diameters) & (diameters < high)
        if own.any():
            others = np.count_nonzero((low <= invented) & (invented < high))
            yield {
                "diameter_px": [low, None if high == math.inf else high],
                "nuclei": int(own.sum()),
                "average_precision": float((iou[own] > 0).sum() / (own.sum() + others)),
                "radius_bias_px": _median([difference[own]]),
            }


def _median(parts: Sequence[NDArray[np.float64]]) -> float | None:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None


def format_scores(table: Mapping[str, Any], worst: int = 10) -> str:
    """`scores_table` as a page to read, with so many of the worst images."""
    lines = [
        f"score     {table['score']:.4f}  mean average precision over IoU 0.50:0.05:0.95, "
        f"{table['images']} images",
        f"nuclei    {table['true']:,} annotated, {table['predicted']:,} predicted",
        f"          {table['split']:,} annotated ones split, {table['merged']:,} predicted ones merge "
        "several",
        "lost      " + ", ".join(f"{lost:.4f} {cause}" for cause, lost in table["losses"].items()),
        "",
        "diameter   nuclei  AP at 0.50  radius",
        *(
            f"{_class_of(row):<11}{row['nuclei']:<8,}{row['average_precision']:.4f}      "
            f"{_signed(row['radius_bias_px'])}"
            for row in table["by_size"]
        ),
        f"{'all':<11}{table['true']:<8,}{table['by_threshold'][0]['average_precision']:.4f}      "
        f"{_signed(table['radius_bias_px'])} px median difference of predicted and annotated",
        "",
        "IoU above  AP      precision  recall  F1",
        *(
            f"{row['iou_above']:.2f}       {row['average_precision']:.4f}  {row['precision']:.4f}     "
            f"{row['recall']:.4f}  {row['f1']:.4f}"
            for row in table["by_threshold"]
        ),
        "",
        f"worst of {table['images']} images",
        *(
            f"{row['score']:.4f}  {row['id']}  {row['true']} annotated, {row['predicted']} predicted, "
            f"{row['split']} split, {row['merged']} merged"
            for row in table["by_image"][:worst]
        ),
    ]
    return "\n".join(lines)


def _class_of(row: Mapping[str, Any]) -> str:
    low, high = row["diameter_px"]
    return f"{low} px on" if high is None else f"{low}-{high} px"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"


def _share(part: NDArray[np.int64], total: int) -> list[float]:
    shares = part / total if total else np.ones(part.shape)
    return shares.tolist()
