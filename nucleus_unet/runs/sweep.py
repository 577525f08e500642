"""Which recipes a sweep tries, and which of them is the best."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe

EPOCHS = "training.epochs"
FIXED = (
    EPOCHS,
    "data.split",
    "data.validation_fraction",
    "data.fold",
    "data.split_seed",
    "training.folds",
)
"""Keys that a sweep does not vary: its rounds set the epochs, and all trials need the same images."""
MOST_TRIALS, LARGEST_SPACE = 10_000, 2**62
"""Limits for the recipes of a sweep, and for the combinations that they are drawn from."""


@dataclass(frozen=True)
class Trial:
    """A training of a sweep."""

    changes: tuple[str, ...]
    """``key=value`` for each key that the sweep varies."""
    epochs: int
    score: float
    """Score on the validation images; minus infinity if the training failed."""
    run_id: str | None
    """Run in MLflow; None if the training failed."""

    @property
    def values(self) -> dict[str, str]:
        """The value of each key that the sweep varies."""
        return dict(change.split("=", 1) for change in self.changes)

    @property
    def failed(self) -> bool:
        """Whether the training failed."""
        return self.run_id is None


def combinations(
    over: Mapping[str, Sequence[Any]], draws: int | None, seed: int
) -> list[tuple[str, ...]]:
    """List every combination of values, or some drawn at random, as ``key=value`` assignments.

    Raises
    ------
    NucleusError
        If there is nothing to vary, if a key has no values, has a value twice or must not vary, or if
        there are more than `MOST_TRIALS` combinations.
    """
    if not over or not all(over.values()):
        raise NucleusError(
            "A sweep needs keys with values, such as --over training.optimizer=sgd,adam."
        )
    for key, values in over.items():
        if key in FIXED:
            raise NucleusError(
                f"A sweep cannot vary {key}: its rounds set the epochs, and all trials are scored on "
                "the same images. Leave it out."
            )
        if len({_text(value) for value in values}) < len(values):
            raise NucleusError(f"{key} has a value twice. Give each value once.")
    shape = [len(values) for values in over.values()]
    count = math.prod(shape)
    if min(count, draws or count) > MOST_TRIALS or count > LARGEST_SPACE:
        raise NucleusError(
            f"These are {count:,} combinations. A sweep tries at most {MOST_TRIALS:,}. Give fewer "
            "values, or --draws."
        )
    places: Sequence[int] = range(count)
    if draws is not None:
        places = random.Random(seed).sample(places, min(draws, count))
    return [
        tuple(
            f"{key}={_text(values[int(index)])}"
            for (key, values), index in zip(
                over.items(), np.unravel_index(place, shape), strict=True
            )
        )
        for place in places
    ]


def candidates(
    recipe: Recipe, over: Mapping[str, Sequence[Any]], draws: int | None, seed: int
) -> dict[tuple[str, ...], Recipe]:
    """Make a recipe for each of the `combinations`.

    Raises
    ------
    NucleusError
        If `combinations` refuses them, or if the recipe does not allow a key or value.
    """
    return {one: recipe.with_overrides(one) for one in combinations(over, draws, seed)}


def best_half(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """The better half of the trials that did not fail, rounded up, in their order."""
    ranked = sorted((t for t in trials if not t.failed), key=lambda trial: -trial.score)
    kept = {trial.changes for trial in ranked[: (len(trials) + 1) // 2]}
    return [trial.changes for trial in trials if trial.changes in kept]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The best trial with the most epochs, among the recipes that never failed.

    Raises
    ------
    NucleusError
        If every recipe failed.
    """
    failed = {trial.changes for trial in trials if trial.failed}
    sound = [trial for trial in trials if trial.changes not in failed]
    if not sound:
        raise NucleusError("Every recipe of the sweep failed. The log says how each one failed.")
    return max(sound, key=lambda trial: (trial.epochs, trial.score))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
