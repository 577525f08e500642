"""Score a model on validation images that are enlarged, reduced, or dimmed nucleus by nucleus.

    python benchmarks/robustness.py stage1_train.zip      # half an hour on two cores
    python benchmarks/robustness.py stage1_train.zip --model RUN_ID

Takes two images of each validation slide of the recipe `best` and predicts them without flips: at their
own size, and at the size that `inference.fit_scale` chooses. Prints the mean average precision at IoU
0.50, which `nucleus predict` has in the column "fitted". Images with more than 1.3 megapixels after the
change are left out. In fluorescence images each nucleus is also dimmed by a random factor from 0.1 to 1,
and bright spots are added. The last line says how much smaller the dimmest nuclei are drawn.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from cases import cases
from curves import Pair, dimmed, magnified

from nucleus_unet.data import (
    SplitImage,
    TrainingImages,
    fitting_scale,
    imaging_kind,
    make_split,
)
from nucleus_unet.engine import prepare_environment
from nucleus_unet.network import BUILTIN, configure, load_model, resolve, segment_images
from nucleus_unet.nuclei import match_nuclei, scoring
from nucleus_unet.recipe import Recipe, load_recipe
from nucleus_unet.runs import records
from tasks.measure import FIRST_SCALES

MAGNIFICATIONS = (1, 0.25, 0.5, 2, 3, 4)
OF_EACH_SLIDE = 2
MOST_PIXELS = 1.3e6


def validation_images(archive: Path) -> Iterator[Pair]:
    """Images of the validation slides, with their labels."""
    known = {case.sample.id: case for case in cases(archive)}
    rows = [SplitImage(id=i, kind=one.sample.kind, slide=one.slide) for i, one in known.items()]
    seen: Counter[str] = Counter()
    for image in make_split(rows, load_recipe("best").data).validation:
        seen[image.slide] += 1
        if seen[image.slide] <= OF_EACH_SLIDE:
            shown, labels = (np.array(array) for array in known[image.id].sample.load())
            yield shown, labels.astype(np.int32)


@dataclass(frozen=True)
class Predictor:
    """A model, and what it was trained on."""

    model: keras.Model
    recipe: Recipe
    trained_on: TrainingImages

    def matched(self, pair: Pair, **settings: Any) -> scoring.Match:
        image, labels = pair
        inference = self.recipe.inference.model_copy(update={"flips": False, **settings})
        recipe = self.recipe.model_copy(update={"inference": inference})
        [found] = segment_images(self.model, [image], recipe)
        return match_nuclei(labels, found)

    def fitted(self, pair: Pair) -> scoring.Match | None:
        """At the fitting size; None if that is the image's own size, or too large."""
        first = self.matched(pair, scales=FIRST_SCALES)
        areas = first.overlap.predicted_px
        scale = fitting_scale((2 * np.sqrt(areas / np.pi)).tolist(), self.trained_on)
        if scale == 1 or pair[1].size * scale**2 > MOST_PIXELS:
            return None
        return self.matched(pair, scale=scale)


def row(name: str, predictor: Predictor, pairs: list[Pair]) -> list[scoring.Match]:
    """Print a row of the table; returns the matches at the fitting size."""
    plain = [predictor.matched(pair) for pair in pairs]
    fitted = [predictor.fitted(pair) for pair in pairs]
    best = [b or a for a, b in zip(plain, fitted, strict=True)]
    means = (np.mean([one.average_precision[0] for one in found]) for found in (plain, best))
    changed = np.mean([one is not None for one in fitted])
    cells = (name, len(pairs), *(f"{mean:.3f}" for mean in means), f"{changed:.0%}")
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default=BUILTIN, help="id of a run; default: the built-in model")
    chosen = parser.parse_args()
    prepare_environment()
    recipe, network = records.fetch_model(chosen.model)
    recipe, trained_on = resolve(recipe), records.fetch_training_images(chosen.model)
    assert trained_on
    configure(recipe.training.cpu_threads)
    predictor = Predictor(load_model(network), recipe, trained_on)
    pairs = [*validation_images(chosen.archive)]
    print("| change | images | own size | fitted | images that change |\n|---|---|---|---|---|")
    for by in MAGNIFICATIONS:
        kept = [pair for pair in pairs if pair[1].size * by**2 <= MOST_PIXELS]
        row(f"{by:g} times", predictor, [magnified(pair, by) for pair in kept])
    fluorescent = [pair for pair in pairs if imaging_kind(pair[0]) == "fluorescence"]
    row("fluorescence alone", predictor, fluorescent)
    draws = np.random.default_rng(0)
    changed, factors = zip(*(dimmed(pair, draws) for pair in fluorescent), strict=True)
    matches = row("fluorescence, dimmed", predictor, [*changed])
    share = np.concatenate([one[1:] for one in factors])
    bias = np.concatenate([match.radius_difference_px for match in matches])
    dim, bright = (np.nanmedian(bias[own]) for own in (share < 0.25, share > 0.5))
    print(f"radius of nuclei dimmed below 0.25, against those above 0.5: {dim - bright:+.2f} px")


if __name__ == "__main__":
    main()
