"""What a model does on images whose nuclei are known: scores, cutoffs tuned by them, and pictures."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import rle
from nucleus_unet.data.sample import Sample
from nucleus_unet.errors import NucleusError
from nucleus_unet.network.backend import usable_cores
from nucleus_unet.nuclei import scoring
from nucleus_unet.nuclei.instances import resize_maps, separate_nuclei
from nucleus_unet.nuclei.submission import read_submission
from nucleus_unet.recipe import Inference
from nucleus_unet.reports import figures

PICTURES = 8
"""How many of the best and of the worst images are drawn."""

GRID: dict[str, tuple[float, ...]] = {
    "cutoff": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
    "seed_cutoff": (0.1, 0.15, 0.2, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85),
    "min_area_px": (0, 8, 16, 24, 32, 48),
    "min_confidence": (0.0, 0.75, 0.8, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94),
}
"""Values that are tried for each key of the recipe's inference."""


def tuned_keys(channels: int) -> list[str]:
    """The keys of `GRID` that are tuned for maps of so many channels."""
    return [key for key in GRID if key != "seed_cutoff" or channels > 1]


_BY_THRESHOLD = ("average_precision", "precision", "recall", "f1")
_COUNTS = ("true", "predicted", "split", "merged")


def score_maps(
    samples: Sequence[Sample],
    maps: Sequence[Path],
    inference: Inference,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Score predicted maps at the images' original size, by nucleus and by pixel.

    Parameters
    ----------
    samples : sequence of Sample
    maps : sequence of Path
        ``.npy`` files, (h, w, C) float32, one for each sample.
    inference : Inference
        How maps become nuclei.
    progress : callable
        Called with (done, total).

    Returns
    -------
    dict
        As `scores_table`, with the fields of `scoring.PixelScores` over all pixels, ``by_kind``
        the score of each imaging kind, and kind and foreground ``iou`` in each row of ``by_image``.
    """
    total = np.zeros((len(scoring.THRESHOLDS), 4), np.int64)
    matches, iou = {}, {}
    for done, (sample, path) in enumerate(zip(samples, maps, strict=True), 1):
        y_true = sample.load()[1]
        full = resize_maps(np.load(path), *y_true.shape)
        counts = scoring.pixel_counts(y_true, full[..., 0])
        total += counts
        matches[sample.id] = scoring.match_nuclei(y_true, separate_nuclei(full, inference))
        iou[sample.id] = scoring.pixel_scores(counts).iou
        progress(done, len(samples))
    kinds = {sample.id: sample.kind for sample in samples}
    table = scores_table(matches)
    rows = [row | {"kind": kinds[row["id"]], "iou": iou[row["id"]]} for row in table["by_image"]]
    by_kind = {
        kind: {
            "score": float(np.mean([row["score"] for row in rows if row["kind"] == kind])),
            "images": images,
        }
        for kind, images in sorted(Counter(kinds.values()).items())
    }
    return table | asdict(scoring.pixel_scores(total)) | {"by_kind": by_kind, "by_image": rows}


def tune_inference(
    samples: Sequence[Sample],
    maps: Sequence[Path],
    inference: Inference,
    progress: Callable[[int, int], None],
) -> Inference:
    """Choose the values of `GRID` by the mean score of the images, one after the other, twice.

    What was chosen so far stays where no value of `GRID` is better. The score of these images by what
    was chosen is a little better than that of new ones.

    Parameters
    ----------
    samples, maps
        As for `score_maps`.
    inference : Inference
        Where the search starts.
    progress : callable
        Called with (done, total), in settings.
    """
    channels = np.load(maps[0], mmap_mode="r").shape[-1] // len(inference.scales)
    keys = 2 * tuned_keys(channels)
    tried, total = itertools.count(1), sum(len(GRID[key]) + 1 for key in keys)

    @functools.cache
    def mean_score(setting: Inference) -> float:
        def one(case: tuple[Sample, Path]) -> float:
            sample, path = case  # opened each time: a process may not hold thousands of files
            y_true, found = sample.load()[1], np.load(path, mmap_mode="r")
            return scoring.match_nuclei(
                y_true, separate_nuclei(resize_maps(found, *y_true.shape), setting)
            ).score

        return float(np.mean(list(pool.map(one, zip(samples, maps, strict=True)))))

    def try_one(setting: Inference) -> float:
        found = mean_score(setting)
        progress(next(tried), total)
        return found

    with ThreadPoolExecutor(usable_cores()) as pool:
        for key in keys:
            settings = [inference.model_copy(update={key: value}) for value in GRID[key]]
            inference = max([inference, *settings], key=try_one)
    return inference


def pictures(
    samples: Sequence[Sample],
    maps: Sequence[Path],
    inference: Inference,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, bytes]:
    """Contact sheets of the best and the worst images, the annotated nuclei beside the predicted.

    Parameters
    ----------
    rows : sequence of mappings
        ``by_image`` of `score_maps`, worst first.

    Returns
    -------
    dict of str to bytes
        PNGs, by name: ``best`` (best first) and ``worst`` (worst first).
    """
    where = {s.id: (s, path) for s, path in zip(samples, maps, strict=True)}
    sheets = {}
    for name, ordered in (("best", rows[::-1]), ("worst", rows)):
        tiles = []
        for row in ordered[: min(PICTURES, (len(rows) + 1) // 2)]:
            counted = f"{row['true']} nuclei, {row['predicted']} found"
            said = f"score {row['score']:.2f}, {counted}"
            tiles.append(tile(*where[row["id"]], inference, said))
        sheets[name] = figures.contact_sheet(tiles)
    return sheets


def tile(
    sample: Sample, maps: Path, inference: Inference, said: str
) -> tuple[str, NDArray[np.uint8]]:
    """A tile of `figures.contact_sheet`: the annotated nuclei beside those of predicted maps."""
    image, y_true = sample.load()
    y_pred = separate_nuclei(resize_maps(np.load(maps), *y_true.shape), inference)
    title = f"{figures.short_name(sample.id)}  {said}"
    return title, figures.comparison(image, y_true, y_pred, side_px=400)


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
