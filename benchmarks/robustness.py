"""Score a model on images that are enlarged, reduced, or dimmed nucleus by nucleus.

    python benchmarks/robustness.py stage1_train.zip      # half an hour on two cores
    python benchmarks/robustness.py stage1_train.zip --model RUN_ID

Takes some images of each validation slide, or of each slide if the model is of several folds, and
predicts them without flips: at their own size, and at the size that `inference.fit_scale` chooses.
Prints the mean average precision at IoU 0.50, which `nucleus predict` has in the column "fitted". Images
with more than 1.3 megapixels after the change are left out. In fluorescence images each nucleus
is also dimmed by a random factor from 0.1 to 1, and bright spots are added. The last line says how much
smaller the dimmest nuclei are drawn.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from curves import Pair, dimmed, magnified
from held_out import Predictor, held_out, model_and_archive, pair_of

from nucleus_unet.data import imaging_kind
from nucleus_unet.engine import prepare_environment
from nucleus_unet.nuclei import match_nuclei, scoring

MAGNIFICATIONS = (1, 0.25, 0.5, 2, 3, 4)
OF_EACH_SLIDE = {False: 2, True: 1}
"""Images of each slide, by whether a model is of several folds."""
MOST_PIXELS = 1.3e6


class Shown(NamedTuple):
    """An image, perhaps changed, and a network that does not know it."""

    predictor: Predictor
    pair: Pair

    def matched(self, scale: float) -> scoring.Match:
        image, labels = self.pair
        return match_nuclei(labels, self.predictor.labels(image, scale=scale, flips=False))

    def fitted(self) -> scoring.Match | None:
        """At the fitting size; None if that is the image's own size, or too large."""
        image, labels = self.pair
        scale = self.predictor.fitting_scale(image)
        return None if scale == 1 or labels.size * scale**2 > MOST_PIXELS else self.matched(scale)


def shown_images(model: str, archive: Path) -> Iterator[Shown]:
    """Images of each slide that the model does not know, with their labels."""
    seen: Counter[str] = Counter()
    for predictor, own in held_out(model, archive):
        for case in own:
            seen[case.slide] += 1
            if seen[case.slide] <= OF_EACH_SLIDE[bool(predictor.recipe.training.folds)]:
                yield Shown(predictor, pair_of(case))


def row(name: str, shown: Sequence[Shown]) -> list[scoring.Match]:
    """Print a row of the table; returns the matches at the fitting size."""
    plain = [one.matched(1) for one in shown]
    fitted = [one.fitted() for one in shown]
    best = [b or a for a, b in zip(plain, fitted, strict=True)]
    means = (np.mean([one.average_precision[0] for one in found]) for found in (plain, best))
    changed = np.mean([one is not None for one in fitted])
    cells = (name, len(shown), *(f"{mean:.3f}" for mean in means), f"{changed:.0%}")
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return best


def main() -> None:
    chosen = model_and_archive(__doc__)
    prepare_environment()
    shown = [*shown_images(chosen.model, chosen.archive)]
    print("| change | images | own size | fitted | images that change |\n|---|---|---|---|---|")
    for by in MAGNIFICATIONS:
        kept = [one for one in shown if one.pair[1].size * by**2 <= MOST_PIXELS]
        row(f"{by:g} times", [Shown(one.predictor, magnified(one.pair, by)) for one in kept])
    fluorescent = [one for one in shown if imaging_kind(one.pair[0]) == "fluorescence"]
    row("fluorescence alone", fluorescent)
    draws = np.random.default_rng(0)
    changed, factors = zip(*(dimmed(one.pair, draws) for one in fluorescent), strict=True)
    predictors = (one.predictor for one in fluorescent)
    matches = row("fluorescence, dimmed", [*map(Shown, predictors, changed)])
    share = np.concatenate([one[1:] for one in factors])
    bias = np.concatenate([match.radius_difference_px for match in matches])
    dim, bright = (np.nanmedian(bias[own]) for own in (share < 0.25, share > 0.5))
    print(f"radius of nuclei dimmed below 0.25, against those above 0.5: {dim - bright:+.2f} px")


if __name__ == "__main__":
    main()
