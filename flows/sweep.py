"""Many recipes tried on the same data; the hopeless ones are given up early."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from httpx import HTTPError
from prefect import flow, tags
from prefect.logging import get_run_logger
from pydantic import Field

from flows.retrain import BEST, Retrained, decided_by, retrain
from flows.running import INPUTS, TAG, Work, prepare, threads, tracked
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.network import backend
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import records, tracking
from nucleus_unet.runs.sweep import EPOCHS, Trial, best_half, best_of, candidates
from tasks.publish import publish_sweep

OUTAGES = (tracking.MlflowException, HTTPError, OSError)
"""No fault of a recipe, as a full disk is: the sweep ends, and goes on when it is started again."""


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    run: tracking.Run
    trials: Sequence[Trial]
    """In the order in which they were made."""
    winner: Recipe


# It submits nothing itself.
@flow(flow_run_name="sweep {recipe.name}", task_runner=threads())
def sweep(
    training_data: Annotated[list[Path], Field(min_length=1)],
    over: dict[str, list[Any]],
    recipe: Recipe = BEST,
    halvings: Annotated[int, Field(ge=0)] = 2,
    draws: Annotated[int, Field(ge=1)] | None = None,
    seed: int = 0,
) -> Swept:
    """Retrain with every combination of values, one after the other: each takes the whole device.

    All are trained for few epochs, the better half of them for twice as many, and so on (successive
    halving, Jamieson and Talwalkar 2016): the hopeless ones cost little.

    Args:
        training_data: Raw data sets in Kaggle's layout, folders or zips.
        over: Key of the recipe to the values that are tried, as ``training.optimizer: [sgd,
            adam]``.
        recipe: All other choices; its epochs are those of the last round.
        halvings: Rounds before the last one, with half as many epochs each and twice as many
            recipes.
        draws: Try so many combinations, drawn at random, and not all.
        seed: Of the draw.
    """
    prepare()
    recipes = candidates(recipe, over, draws, seed)  # all are refused before the first trains
    left = [*recipes]
    trials: list[Trial] = []
    asked = json.dumps({"over": over, "halvings": halvings, "draws": draws, "seed": seed})
    work = Work("sweep", backend.resolve(recipe), training_data, {"sweep": asked})
    with tracked(work) as run:
        for rung in range(halvings, -1, -1):
            if rung and len(left) == 1:
                continue  # nothing to choose between
            epochs = max(1, recipe.training.epochs >> rung)
            tried = []
            for one in left:
                short = recipes[one].with_overrides([f"{EPOCHS}={epochs}"])
                tried.append(_trial(one, training_data, backend.resolve(short), run))
            trials += tried
            left = best_half(tried)
        best = best_of(trials)
        winner = recipes[best.changes]
        publish_sweep(trials, best, winner, run)
    return Swept(run, trials, winner)


def _trial(
    changes: tuple[str, ...], training_data: list[Path], recipe: Recipe, parent: tracking.Run
) -> Trial:
    """Retrain with one recipe, unless this sweep did so before it was cut short."""
    work = Work("retrain", recipe, training_data, decided_by(False, parent.id))
    run_id = tracking.first_finished_run(INPUTS, work.inputs())
    try:
        if not run_id:
            with tags(TAG):
                made = retrain(training_data, None, recipe, registry=False, parent=parent.id)
            assert isinstance(made, Retrained)  # it skips only where it is asked to
            run_id = made.run.id
    except StoppedError:
        raise
    except Exception as error:  # it diverged or took too much memory, as some in a sweep do
        if any(isinstance(one, OUTAGES) for one in (error, error.__cause__)):
            raise
        get_run_logger().warning("%s failed: %s", " ".join(changes), error)
        return Trial(changes, recipe.training.epochs, float("-inf"), None)
    score = records.metric(run_id, "validation/score")
    return Trial(changes, recipe.training.epochs, score, run_id)
