"""What a model does on images whose nuclei are known: scores, and the best and worst as pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet import figures, rle, scoring
from nucleus_unet.dataset.sample import Sample
from nucleus_unet.errors import NucleusError
from nucleus_unet.instances import connected_components, upsample
from nucleus_unet.submission import read_submission

PICTURES = 8
"""How many of the best and of the worst images are drawn."""

_BY_THRESHOLD = ("average_precision", "precision", "recall", "f1")
_COUNTS = ("true", "predicted", "split", "merged")


def score(
    samples: Sequence[Sample],
    probabilities: Sequence[Path],
    cutoff: float,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Score probabilities at the images' original size.

    Parameters
    ----------
    samples : sequence of Sample
    probabilities : sequence of Path
        ``.npy`` files, (S, S) float32, one for each sample.
    cutoff : float
        A pixel is nucleus above this probability.
    progress : callable
        Called with (done, total).

    Returns
    -------
    dict
        ``images``, the fields of `scoring.PixelScores` over all pixels, ``nuclei_true`` and
        ``nuclei_predicted``, and ``by_image``, the same for each ``id``, worst IoU first.
    """
    total, rows = np.zeros((len(scoring.THRESHOLDS), 4), np.int64), []
    for done, (sample, path) in enumerate(zip(samples, probabilities, strict=True), 1):
        y_true = sample.load()[1]
        probability = upsample(np.load(path), *y_true.shape)
        counts = scoring.pixel_counts(y_true, probability)
        total += counts
        rows.append(
            {
                "id": sample.id,
                **asdict(scoring.pixel_scores(counts)),
                "nuclei_true": int(y_true.max()),
                "nuclei_predicted": int(connected_components(probability, cutoff).max()),
            }
        )
        progress(done, len(samples))
    return {
        "images": len(rows),
        **asdict(scoring.pixel_scores(total)),
        "nuclei_true": sum(row["nuclei_true"] for row in rows),
        "nuclei_predicted": sum(row["nuclei_predicted"] for row in rows),
        "by_image": sorted(rows, key=lambda row: (row["iou"], row["id"])),
    }


def pictures(
    samples: Sequence[Sample], probabilities: Sequence[Path], cutoff: float, scores: dict[str, Any]
) -> dict[str, bytes]:
    """Contact sheets of the best and the worst images, annotated and predicted outlines over each.

    Returns
    -------
    dict of str to bytes
        PNGs, by name: ``best`` (best first) and ``worst`` (worst first).
    """
    where = {s.id: (s, path) for s, path in zip(samples, probabilities, strict=True)}
    sheets = {}
    for name, rows in (("best", scores["by_image"][::-1]), ("worst", scores["by_image"])):
        tiles = []
        for row in rows[: min(PICTURES, (len(rows) + 1) // 2)]:
            sample, path = where[row["id"]]
            image, y_true = sample.load()
            y_pred = connected_components(upsample(np.load(path), *y_true.shape), cutoff)
            counted = f"{row['nuclei_true']} nuclei, {row['nuclei_predicted']} found"
            title = f"{row['id'][:8]}  IoU {row['iou']:.2f}, {counted}"
            tiles.append((title, figures.overlay(image, y_pred, y_true, side_px=480)))
        sheets[name] = figures.contact_sheet(tiles)
    return sheets


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
            y_pred = rle.decode(found[image_id], *y_true.shape)
        except NucleusError as error:
            raise NucleusError(f"{path}: image {image_id}: {error}") from error
        matches[image_id] = scoring.match(y_true, y_pred)
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
