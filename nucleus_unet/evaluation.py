"""What a model does on images whose nuclei are known: scores, and the best and worst as pictures."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nucleus_unet import figures, scoring
from nucleus_unet.dataset.sample import Sample
from nucleus_unet.instances import connected_components, upsample

PICTURES = 8
"""How many of the best and of the worst images are drawn."""


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
