"""How well a model finds the nuclei of annotated images: scores, and pictures of best and worst."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import Sample
from nucleus_unet.network import write_maps
from nucleus_unet.nuclei import resize_maps, scoring, separate_nuclei
from nucleus_unet.recipe import Inference, Recipe
from nucleus_unet.reports.overlays import COMPARED_LEGEND, comparison, contact_sheet, short_name
from nucleus_unet.reports.score_tables import scores_table
from nucleus_unet.reports.tuning import tune_inference

PICTURES = 8
"""Largest number of images in the pictures of the best and of the worst."""
DISAGREEMENTS = 6
"""Number of images in the picture of two models that disagree."""


@dataclass(frozen=True)
class Evaluation:
    """What a model finds on annotated images, and how it scores."""

    maps: Sequence[Path]
    """Predicted maps, one ``.npy`` file for each sample."""
    inference: Inference
    """The recipe's ``inference``, with the tuned values if it was tuned."""
    scores: Mapping[str, Any]
    """As `score_maps` returns them."""

    @property
    def by_id(self) -> dict[str, float]:
        """Image id to score."""
        return {row["id"]: row["score"] for row in self.scores["by_image"]}


def evaluate_model(
    recipe: Recipe,
    parts: Sequence[tuple[Path, Sequence[Sample]]],
    folder: Path,
    progress: Callable[[str, str], Callable[[int, int], None]],
) -> Evaluation:
    """Predict annotated images, tune the inference on them if the recipe says so, and score them.

    Parameters
    ----------
    recipe : Recipe
        Resolved.
    parts : sequence of (Path, sequence of Sample)
        A ``model.keras`` and the images that it predicts; several, if each fold has a network.
    folder : Path
        Where the predicted maps are written. It is made if it does not exist.
    progress : callable
        Makes a function of (done, total) from the name of the work and the unit of the numbers.
    """
    folder.mkdir(exist_ok=True)
    samples = [sample for _, own in parts for sample in own]
    move, maps = progress("predicting", "images"), list[Path]()
    for network, own in parts:
        images = {sample.id: sample.image for sample in own}

        def moved(done: int, _: int, before: int = len(maps)) -> None:
            move(before + done, len(samples))

        maps += write_maps(recipe, network, images, folder, moved)
    inference = recipe.inference
    if inference.tune:
        inference = tune_inference(samples, maps, inference, progress("tuning", "settings"))
    scores = score_maps(samples, maps, inference, progress("scoring", "images"))
    return Evaluation(maps, inference, scores)


def score_maps(
    samples: Sequence[Sample],
    maps: Sequence[Path],
    inference: Inference,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Score predicted maps at the original size of the images, by nucleus and by pixel.

    Parameters
    ----------
    samples : sequence of Sample
    maps : sequence of Path
        ``.npy`` files, (h, w, C) float32 in [0, 1], one for each sample.
    inference : Inference
        How maps become nuclei.
    progress : callable
        Called with (done, total), in images.

    Returns
    -------
    dict
        `scores_table` with three additions: the fields of `PixelScores` over all pixels; ``by_kind``,
        for each imaging kind ``score``, ``images``, ``ap_50``, ``f1_70``, ``split``, ``merged`` and
        ``radius_bias_px``; ``kind`` and foreground ``iou`` in each
        row of ``by_image``.
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
        kind: _summary({id_: match for id_, match in matches.items() if kinds[id_] == kind})
        for kind in sorted({*kinds.values()})
    }
    return table | asdict(scoring.pixel_scores(total)) | {"by_kind": by_kind, "by_image": rows}


def _summary(matches: Mapping[str, scoring.Match]) -> dict[str, Any]:
    """The scores of some images, in few numbers."""
    table = scores_table(matches)
    at = {row["iou_above"]: row for row in table["by_threshold"]}
    return {
        "score": table["score"],
        "images": table["images"],
        "ap_50": at[0.5]["average_precision"],
        "f1_70": at[0.7]["f1"],
        **{key: table[key] for key in ("split", "merged", "radius_bias_px")},
    }


def pictures(samples: Sequence[Sample], evaluation: Evaluation) -> dict[str, bytes]:
    """Draw the best and the worst images, the annotated nuclei next to the predicted ones.

    Returns
    -------
    dict of str to bytes
        PNGs named ``best`` (best image first) and ``worst`` (worst image first).
    """
    where = {s.id: (s, path) for s, path in zip(samples, evaluation.maps, strict=True)}
    rows = evaluation.scores["by_image"]
    sheets = {}
    for name, ordered in (("best", rows[::-1]), ("worst", rows)):
        tiles = []
        for row in ordered[: min(PICTURES, (len(rows) + 1) // 2)]:
            counted = f"{row['true']} nuclei, {row['predicted']} found"
            title = f"score {row['score']:.2f}, {counted}"
            tiles.append(_tile(*where[row["id"]], evaluation.inference, title))
        sheets[name] = contact_sheet(tiles, COMPARED_LEGEND)
    return sheets


def disagreement(samples: Sequence[Sample], evaluations: Mapping[str, Evaluation]) -> bytes:
    """Draw the images on which two models differ most in score, one column for each model.

    Parameters
    ----------
    samples : sequence of Sample
        The samples that both models were evaluated on.
    evaluations : mapping of str to Evaluation
        Two names of models, each with its evaluation.

    Returns
    -------
    bytes
        PNG.
    """
    first, second = (one.by_id for one in evaluations.values())
    difference = [abs(first[sample.id] - second[sample.id]) for sample in samples]
    order = sorted(range(len(samples)), key=lambda index: -difference[index])
    tiles = [
        _tile(
            samples[index],
            one.maps[index],
            one.inference,
            f"{name}: score {one.by_id[samples[index].id]:.2f}",
        )
        for index in order[:DISAGREEMENTS]
        for name, one in evaluations.items()
    ]
    return contact_sheet(tiles, COMPARED_LEGEND)


def _tile(
    sample: Sample, maps: Path, inference: Inference, title: str
) -> tuple[str, NDArray[np.uint8]]:
    """A tile of `contact_sheet`: the annotated nuclei next to the predicted ones."""
    image, y_true = sample.load()
    y_pred = separate_nuclei(resize_maps(np.load(maps), *y_true.shape), inference)
    named = f"{short_name(sample.id)}  {title}"
    return named, comparison(image, y_true, y_pred, side_px=400)
