"""Whether a model is better than another by more than chance."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

DRAWS = 10_000
CONFIDENCE = 0.95
LEAST_SLIDES = 10
"""Of fewer none can tell what they have in common."""


@dataclass(frozen=True)
class Comparison:
    """The mean difference of two models' scores over images, and how far chance may move it."""

    difference: float
    """The second model's mean score less the first's."""
    low: float
    high: float
    """The interval that holds the difference with a probability of about 0.95."""
    images: int
    slides: int

    @property
    def better(self) -> bool:
        """Whether the second is better, chance aside; of too few slides none can tell."""
        return self.low > 0 and self.slides >= LEAST_SLIDES


def compare_scores(
    first: Mapping[str, float], second: Mapping[str, float], slides: Mapping[str, str]
) -> Comparison:
    """Paired bootstrap of the scores of two models over slides.

    Images of one slide resemble each other, so whole slides are drawn, with replacement, and the
    interval is that of the middle 95 % of the mean differences, and a little more, as the percentiles
    of few draws lie too close together (Hesterberg 2015, doi:10.1080/00031305.2015.1089789, the
    expanded percentile interval). Where many slides gain a little and a few lose much it is still too
    narrow. The draws are always the same.

    Parameters
    ----------
    first, second : mapping of str to float
        Score of each image, of the same images.
    slides : mapping of str to str
        Slide of each image.
    """
    ids = sorted(first)
    differences = np.array([second[id_] - first[id_] for id_ in ids])
    names, groups = np.unique([slides[id_] for id_ in ids], return_inverse=True)
    totals = np.bincount(groups, differences, minlength=len(names))
    counts = np.bincount(groups, minlength=len(names))
    drawn = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    free = max(len(names) - 1, 1)
    tail = 100 * norm.cdf((len(names) / free) ** 0.5 * t.ppf((1 - CONFIDENCE) / 2, free))
    low, high = np.percentile(means, [tail, 100 - tail])
    return Comparison(float(differences.mean()), float(low), float(high), len(ids), len(names))
