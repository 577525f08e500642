"""Annotations that a model contradicts: nuclei it does not see, and unannotated ones that it sees."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nucleus_unet.data import Sample
from nucleus_unet.nuclei import nucleus_errors, resize_maps, separate_nuclei
from nucleus_unet.recipe import Inference
from nucleus_unet.reports.evaluation import Evaluation
from nucleus_unet.reports.overlays import COMPARED_LEGEND, comparison, contact_sheet, short_name

NOT_SEEN, NOT_ANNOTATED = "annotated, but not seen", "seen, but not annotated"
SUSPECT_COLUMNS = ("image", "what", "doubt", "x_px", "y_px", "area_px")
LEAST_DOUBT = 0.6
MOST_SUSPECTS = 1000
SUSPECTS_SHOWN = 24
MARGIN_PX = 32
"""Part of the image that a picture shows around a nucleus."""


def find_suspects(samples: Sequence[Sample], evaluation: Evaluation) -> list[dict[str, Any]]:
    """Find the annotations that the predictions contradict.

    The model must not know the images: use those of validation, or of all folds.

    Parameters
    ----------
    samples : sequence of Sample
        The samples of the evaluation.
    evaluation : Evaluation
        While its maps are there.

    Returns
    -------
    list of dict
        At most `MOST_SUSPECTS` rows with the `SUSPECT_COLUMNS`, the worst first. The doubt, from
        `LEAST_DOUBT` to 1, is the mean probability of background over an annotated nucleus that is not
        found; or over a predicted nucleus the mean probability of a nucleus, where annotated pixels
        count as 0.
    """
    found = [
        {"image": sample.id, **suspect}
        for sample, maps in zip(samples, evaluation.maps, strict=True)
        for suspect in _suspects_of(sample, maps, evaluation.inference)
    ]
    return sorted(found, key=lambda one: (-one["doubt"], one["image"]))[:MOST_SUSPECTS]


def _suspects_of(sample: Sample, maps: Path, inference: Inference) -> Iterator[dict[str, Any]]:
    y_true = np.asarray(sample.load()[1]).astype(np.int32)
    full = resize_maps(np.load(maps), *y_true.shape)
    y_pred = separate_nuclei(full, inference)
    channels = full.shape[-1] // len(inference.scales)
    seen = full[..., ::channels].max(-1)  # of all scales
    wrong = nucleus_errors(y_true, y_pred)
    for labels, numbers, what, doubt in (
        (y_true, wrong.missed, NOT_SEEN, 1 - seen),
        (y_pred, wrong.invented, NOT_ANNOTATED, seen * (y_true == 0)),
    ):
        labels = np.maximum(labels, 0)
        areas = np.maximum(np.bincount(labels.ravel()), 1)
        doubts = np.bincount(labels.ravel(), doubt.ravel()) / areas
        boxes = find_objects(labels)
        for number in (n for n in numbers.tolist() if doubts[n] > LEAST_DOUBT):
            top, left = (part.start for part in boxes[number - 1])
            rows, columns = np.nonzero(labels[boxes[number - 1]] == number)
            yield {
                "what": what,
                "doubt": round(float(doubts[number]), 3),
                "x_px": int(left + columns.mean()),
                "y_px": int(top + rows.mean()),
                "area_px": len(rows),
            }


def suspects_sheet(
    samples: Sequence[Sample], evaluation: Evaluation, suspects: Sequence[Mapping[str, Any]]
) -> bytes | None:
    """Draw the first `SUSPECTS_SHOWN` suspects: the annotation next to the prediction.

    Returns
    -------
    bytes or None
        PNG; None if there are no suspects.
    """
    if not suspects:
        return None
    where = {s.id: (s, maps) for s, maps in zip(samples, evaluation.maps, strict=True)}

    @functools.lru_cache(maxsize=SUSPECTS_SHOWN)
    def predicted(maps: Path, height: int, width: int) -> NDArray[np.int32]:
        return separate_nuclei(resize_maps(np.load(maps), height, width), evaluation.inference)

    tiles = []
    for number, suspect in enumerate(suspects[:SUSPECTS_SHOWN], 1):
        sample, maps = where[suspect["image"]]
        image, y_true = sample.load()
        y_pred = predicted(maps, *y_true.shape)
        place = _place(suspect, y_true.shape)
        shown = comparison(image[place], y_true[place], y_pred[place], side_px=300)
        title = f"{number}  {short_name(sample.id)}: {suspect['what']}, {suspect['doubt']:.2f}"
        tiles.append((title, shown))
    return contact_sheet(tiles, COMPARED_LEGEND)


def _place(suspect: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The square around a nucleus, as far as it lies in the image."""
    half = round((suspect["area_px"] / np.pi) ** 0.5) + MARGIN_PX
    middles = suspect["y_px"], suspect["x_px"]
    row, column = (
        slice(max(0, middle - half), min(length, middle + half))
        for middle, length in zip(middles, shape, strict=True)
    )
    return row, column
