"""Whether a new model becomes the champion: a comparison that allows for chance, and the decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm, t

from nucleus_unet.reports.card import markdown_table

DRAWS = 10_000
CONFIDENCE = 0.95
LEAST_SLIDES = 10
"""With fewer slides no comparison is trusted."""

Place = Literal["champion", "challenger", "copy"]
"""``copy``: the same weights and recipe as the champion."""


@dataclass(frozen=True)
class Comparison:
    """Scores of two models on the same images, and how much of their difference may be chance."""

    first: float
    """Mean score of the first model."""
    second: float
    """Mean score of the second model."""
    low: float
    """Lower end of the interval that holds the difference with a probability of about 0.95."""
    high: float
    """Upper end of this interval."""
    images: int
    slides: int

    @property
    def difference(self) -> float:
        """Mean score of the second model minus that of the first."""
        return self.second - self.first

    @property
    def better(self) -> bool:
        """Whether the second model is better by more than chance."""
        return self.low > 0 and self.slides >= LEAST_SLIDES


def compare_scores(
    first: Mapping[str, float], second: Mapping[str, float], slides: Mapping[str, str]
) -> Comparison:
    """Compare the scores of two models with a paired bootstrap over slides.

    Parameters
    ----------
    first, second : mapping of str to float
        Image id to score, for the same images.
    slides : mapping of str to str
        Image id to slide.

    Notes
    -----
    Images of one slide resemble each other, so whole slides are drawn, with replacement. The interval
    is the expanded percentile interval (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), because the
    percentiles of few draws lie too close together. If many slides gain a little and a few lose much,
    the interval is still too narrow. The draws are the same each time.
    """
    ids = sorted(first)
    low, high = score_interval({id_: second[id_] - first[id_] for id_ in ids}, slides)
    before, after = (float(np.mean([scores[id_] for id_ in ids])) for scores in (first, second))
    return Comparison(before, after, low, high, len(ids), len({slides[id_] for id_ in ids}))


def score_interval(scores: Mapping[str, float], slides: Mapping[str, str]) -> tuple[float, float]:
    """The interval that holds the mean score of images of other slides with a probability of about 0.95.

    It is the interval of `compare_scores`, which explains it.

    Parameters
    ----------
    scores : mapping of str to float
        Image id to score.
    slides : mapping of str to str
        Image id to slide.
    """
    ids = sorted(scores)
    names, groups = np.unique([slides[id_] for id_ in ids], return_inverse=True)
    totals = np.bincount(groups, [scores[id_] for id_ in ids], minlength=len(names))
    counts = np.bincount(groups, minlength=len(names))
    drawn = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    free = max(len(names) - 1, 1)
    tail = 100 * norm.cdf((len(names) / free) ** 0.5 * t.ppf((1 - CONFIDENCE) / 2, free))
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Candidate:
    """What the decision needs to know of a registered model."""

    number: str
    """Its version in the registry."""
    weights_sha256: str | None = None
    """None if unknown."""
    recipe_digest: str | None = None
    """Of the recipe with the tuned values; None if unknown."""
    note: str | None = None
    """When, by whom and why it became the champion; None if it never was the champion."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a model."""

    place: Place
    reason: str
    """One or more sentences."""
    details: str = ""
    """A table of the scores in markdown, if the model was compared with the champion."""


def decide(
    new: Candidate,
    champion: Candidate | None,
    *,
    had_champion: bool = False,
    of_sample: bool = False,
    comparison: Comparison | str | None = None,
) -> Verdict | None:
    """Decide whether a model becomes the champion.

    Parameters
    ----------
    new : Candidate
        The model that is decided on.
    champion : Candidate, optional
        The champion of now. Without one, the new model is compared with the built-in model.
    had_champion : bool
        Whether there was a champion before, even if it was deleted.
    of_sample : bool
        Whether the new model was trained on the built-in sample, which says nothing about real images.
    comparison : Comparison or str, optional
        The champion or the built-in model compared with the new model, or why the two cannot be
        compared.

    Returns
    -------
    Verdict or None
        None if the two models must be compared first.
    """
    if champion and champion.number == new.number:
        why = f" ({new.note})" if new.note else ""  # MLflow's pages leave no note
        return Verdict("champion", f"It already is the champion{why}.")
    if new.note:
        return Verdict("challenger", f"It was the champion before ({new.note}).")
    if of_sample:
        return Verdict("challenger", "It was trained on the built-in sample, not on real images.")
    if champion is None and had_champion:
        lost = "The champion was deleted. Promote a version, or restore the previous champion."
        return Verdict("challenger", lost)
    made = new.weights_sha256, new.recipe_digest
    if champion and all(made) and made == (champion.weights_sha256, champion.recipe_digest):
        return Verdict("copy", "It has the same weights and settings as the champion.")
    if comparison is None:
        return None
    if isinstance(comparison, str):
        return Verdict("challenger", comparison)
    opponent = f"version {champion.number}, the champion" if champion else "the built-in model"
    rows = [
        (opponent, f"{comparison.first:.4f}"),
        (f"version {new.number}, the new model", f"{comparison.second:.4f}"),
    ]
    reason = (
        f"The difference in score is {comparison.difference:+.4f}; allowing for chance it lies between "
        f"{comparison.low:+.4f} and {comparison.high:+.4f}. It was measured on {comparison.images} "
        f"images of {comparison.slides} slides, by networks that do not know them."
    )
    if comparison.slides < LEAST_SLIDES:
        reason += f" A decision needs at least {LEAST_SLIDES} slides."
    place: Place = "champion" if comparison.better else "challenger"
    return Verdict(place, reason, markdown_table(["model", "score"], rows))
