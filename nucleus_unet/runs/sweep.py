"""Which recipes a sweep tries."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe

EPOCHS = "training.epochs"
FIXED = (EPOCHS, "data.split", "data.validation_fraction", "data.split_seed")
"""What a sweep does not vary: its rounds do, or all are to be scored on the same images."""


@dataclass(frozen=True)
class Trial:
    """A retraining of a sweep."""

    changes: tuple[str, ...]
    """``key=value`` of each key that the sweep varies."""
    epochs: int
    score: float
    """On the validation images; minus infinity where the training failed."""
    run_id: str | None
    """In MLflow; None where the training failed."""

    @property
    def values(self) -> dict[str, str]:
        """The value of each key that the sweep varies."""
        return dict(change.split("=", 1) for change in self.changes)

    @property
    def failed(self) -> bool:
        """Whether the training did not come to its end."""
        return self.run_id is None


def combinations(
    over: Mapping[str, Sequence[Any]], draws: int | None, seed: int
) -> list[tuple[str, ...]]:
    """Every combination of values, or some drawn at random, as ``key=value`` assignments.

    Raises
    ------
    NucleusError
        There is nothing to vary, a key has no values or one twice, or it must not vary.
    """
    if not over or not all(over.values()):
        raise NucleusError("a sweep needs keys with values: --over training.optimizer=sgd,adam")
    for key, values in over.items():
        if key in FIXED:
            raise NucleusError(
                f"a sweep does not vary {key}: its rounds set the epochs, and all are scored on the "
                "same images"
            )
        if len({_text(value) for value in values}) < len(values):
            raise NucleusError(f"a sweep tries each value once: {key} has one twice")
    shape = [len(values) for values in over.values()]
    places: Sequence[int] = range(math.prod(shape))
    if draws is not None:
        places = random.Random(seed).sample(places, min(draws, len(places)))
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
    """The recipe with each of the `combinations`.

    Raises
    ------
    NucleusError
        As of `combinations`; or the recipe does not have such a key or value.
    """
    return {one: recipe.with_overrides(one) for one in combinations(over, draws, seed)}


def best_half(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """The better half of trials, rounded up, in their order, without failed ones; of equal the first."""
    ranked = sorted((t for t in trials if not t.failed), key=lambda trial: -trial.score)
    kept = {trial.changes for trial in ranked[: (len(trials) + 1) // 2]}
    return [trial.changes for trial in trials if trial.changes in kept]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The best of those that trained longest and did not fail.

    Raises
    ------
    NucleusError
        All failed.
    """
    if all(trial.failed for trial in trials):
        raise NucleusError("every training of the sweep failed: its log says how each did")
    return max((t for t in trials if not t.failed), key=lambda trial: (trial.epochs, trial.score))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
