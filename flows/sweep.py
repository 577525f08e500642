"""Sweep: try many recipes on the same data, and stop the bad ones early."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from httpx import HTTPError
from prefect import flow, tags
from prefect.logging import get_run_logger
from pydantic import Field

from flows.retrain import RecipeName, Retrained, retraining, train_and_score
from flows.running import (
    INPUTS,
    TAG,
    Work,
    named_after_recipe,
    prepare,
    task_runner,
    threads,
    tracked,
)
from nucleus_unet.engine import GpuError, StoppedError
from nucleus_unet.network import resolve
from nucleus_unet.recipe import Recipe, load_recipe
from nucleus_unet.runs import EPOCHS, Trial, best_half, best_of, candidates, records, tracking
from tasks.publish_sweep import publish_sweep

OUTAGES = (tracking.MlflowException, HTTPError, OSError)
"""Errors that are not the recipe's fault, for example a full disk. They end the sweep, and it continues
when it is started again."""


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    run: tracking.Run
    trials: Sequence[Trial]
    """In the order in which they ran."""
    winner: Recipe


# The sweep submits no tasks itself.
@flow(flow_run_name=named_after_recipe, task_runner=threads())
def sweep(
    training_data: Annotated[list[Path], Field(min_length=1)],
    over: dict[str, list[Any]],
    recipe: RecipeName = "best",
    recipe_file: Path | None = None,
    overrides: tuple[str, ...] = (),
    halvings: Annotated[int, Field(ge=0)] = 2,
    draws: Annotated[int, Field(ge=1)] | None = None,
    seed: int = 0,
) -> Swept:
    """Train with every combination of values, one after the other, and find the best recipe.

    All combinations train for few epochs. The better half trains again for twice as many epochs, and so
    on (successive halving, Jamieson and Talwalkar 2016), so that bad recipes cost little.

    Args:
        training_data: Folders or zips with annotated images.
        over: Keys of the recipe and the values to try, for example training.optimizer with sgd and adam.
        recipe: Name of the recipe that holds all other choices. Its epochs are those of the last round.
        recipe_file: A recipe of your own as a TOML file on the worker, instead of a named recipe.
        overrides: Changes of the recipe, for example training.epochs=30.
        halvings: Number of rounds before the last one. Each has half as many epochs as the next one and
            twice as many recipes.
        draws: Try this many combinations, drawn at random, instead of all.
        seed: Seed of the draw.
    """
    prepare()
    chosen = load_recipe(recipe_file or recipe, overrides)
    recipes = candidates(chosen, over, draws, seed)  # refuses bad values before the first training
    left = [*recipes]
    trials: list[Trial] = []
    asked = json.dumps({"over": over, "halvings": halvings, "draws": draws, "seed": seed})
    with tracked(Work("sweep", resolve(chosen), training_data, {"sweep": asked})) as run:
        for rung in range(halvings, -1, -1):
            if rung and len(left) == 1:
                continue  # there is nothing to choose
            epochs = max(1, chosen.training.epochs >> rung)
            tried = []
            for one in left:
                short = resolve(recipes[one].with_overrides([f"{EPOCHS}={epochs}"]))
                work = retraining(training_data, None, short, registry=False, parent=run.id)
                tried.append(_run_trial(one, work))
            trials += tried
            left = best_half(tried)
        best = best_of(trials)
        winner = recipes[best.changes]
        publish_sweep(trials, best, winner, run)
    return Swept(run, trials, winner)


# Results are not persisted: when a sweep resumes, Prefect would reuse the first result for all.
@flow(flow_run_name="trial {changes}", task_runner=task_runner(), persist_result=False)
def trial(changes: str, training_data: list[Path], recipe: Recipe, parent: str) -> Retrained:
    """Train with one recipe of a sweep."""
    return train_and_score(retraining(training_data, None, recipe, registry=False, parent=parent))


def _run_trial(changes: tuple[str, ...], work: Work) -> Trial:
    """Train with one recipe, unless this sweep did so before it was interrupted."""
    run_id = tracking.first_finished_run(INPUTS, work.inputs())
    epochs = work.recipe.training.epochs
    try:
        if not run_id:
            with tags(TAG):
                made = trial(" ".join(changes), work.raws, work.recipe, work.tags[tracking.PARENT])
            run_id = made.run.id
    except (StoppedError, GpuError):
        raise
    except Exception as error:  # some recipes of a sweep diverge or need too much memory
        if any(isinstance(one, OUTAGES) for one in (error, error.__cause__)):
            raise
        get_run_logger().warning("the trial with %s failed: %s", " ".join(changes), error)
        return Trial(changes, epochs, float("-inf"), None)
    score = records.metric(run_id, "validation/score")
    return Trial(changes, epochs, score, run_id)
