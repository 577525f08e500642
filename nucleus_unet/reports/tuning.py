"""The settings of inference that score best on validation images."""

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nucleus_unet.data import Sample
from nucleus_unet.network import usable_cores
from nucleus_unet.nuclei import match_nuclei, resize_maps, separate_nuclei
from nucleus_unet.recipe import Inference

GRID: dict[str, tuple[float, ...]] = {
    "cutoff": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
    "seed_cutoff": (0.1, 0.15, 0.2, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85),
    "min_area_px": (0, 8, 16, 24, 32, 48),
    "min_confidence": (0.0, 0.6, 0.7, 0.74, 0.78, 0.8, 0.82, 0.84, 0.86),
}
"""Values that are tried for each key of the recipe's ``inference``."""


def tuned_keys(channels: int) -> list[str]:
    """The keys of `GRID` that are tuned for maps with this number of channels."""
    return [key for key in GRID if key != "seed_cutoff" or channels > 1]


def tune_inference(
    samples: Sequence[Sample],
    maps: Sequence[Path],
    inference: Inference,
    progress: Callable[[int, int], None],
) -> Inference:
    """Choose the values of `GRID` by the mean score of the images, one key after the other, twice.

    Parameters
    ----------
    samples : sequence of Sample
    maps : sequence of Path
        ``.npy`` files, (h, w, C) float32 in [0, 1], one for each sample.
    inference : Inference
        Where the search starts. Its values stay unless a value of `GRID` is better.
    progress : callable
        Called with (done, total), in settings.

    Notes
    -----
    The score of these images with the chosen values is slightly higher than the score of new images.
    """
    channels = np.load(maps[0], mmap_mode="r").shape[-1] // len(inference.scales)
    keys = 2 * tuned_keys(channels)
    tried, total = itertools.count(1), sum(len(GRID[key]) + 1 for key in keys)

    @functools.cache
    def mean_score(setting: Inference) -> float:
        def one(case: tuple[Sample, Path]) -> float:
            sample, path = case  # opened each time: a process may not hold thousands of files
            y_true, found = sample.load()[1], np.load(path, mmap_mode="r")
            y_pred = separate_nuclei(resize_maps(found, *y_true.shape), setting)
            return match_nuclei(y_true, y_pred).score

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
