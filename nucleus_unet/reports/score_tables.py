"""Scores as tables: of matched images, and of a submission against the annotated nuclei."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import rle
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import read_submission, scoring

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
    return {
        "score": float(average_precision.mean()),
        "images": len(matches),
        **counts,
        "by_threshold": [dict(zip(columns, row, strict=True)) for row in rows],
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


def _share(part: NDArray[np.int64], total: int) -> list[float]:
    shares = part / total if total else np.ones(part.shape)
    return shares.tolist()
