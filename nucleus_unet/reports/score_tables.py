"""Scores as tables: of matched images, and of a submission against the annotated nuclei."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import rle
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import read_submission, scoring

_BY_THRESHOLD = ("average_precision", "precision", "recall", "f1")
_COUNTS = ("true", "predicted", "split", "merged")


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
    """The scores of matched images as JSON values: overall, by threshold, and the images worst first."""
    scores = scoring.instance_scores(list(matches.values()))
    by_threshold = [
        {
            "iou_above": threshold,
            **{name: float(getattr(scores, name)[k]) for name in _BY_THRESHOLD},
        }
        for k, threshold in enumerate(scoring.THRESHOLDS)
    ]
    by_image = [
        {"id": image_id, "score": m.score} | {name: getattr(m, name) for name in _COUNTS}
        for image_id, m in matches.items()
    ]
    return {
        "score": scores.score,
        "images": len(matches),
        **{name: getattr(scores, name) for name in _COUNTS},
        "by_threshold": by_threshold,
        "by_image": sorted(by_image, key=lambda row: (row["score"], row["id"])),
    }


def format_scores(table: Mapping[str, Any], worst: int = 10) -> str:
    """`scores_table` as a page to read, with so many of the worst images."""
    lines = [
        f"score     {table['score']:.4f}  mean average precision over IoU 0.50:0.05:0.95, "
        f"{table['images']} images",
        f"nuclei    {table['true']:,} annotated, {table['predicted']:,} predicted",
        f"          {table['split']:,} annotated ones split, {table['merged']:,} predicted ones merge "
        "several",
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
