"""Retrain: raw data in; model, scores and submission out."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefect import State, flow
from prefect.states import Completed
from pydantic import PositiveInt

from flows.predict import find_nuclei
from flows.running import (
    INPUTS,
    SKIPPED,
    Work,
    is_automatic,
    named_after_recipe,
    prepare,
    sample_data,
    task_runner,
    tasks_run_elsewhere,
    tracked,
)
from nucleus_unet.data import dataset_name, is_sample, read_images, read_labels, shared_images
from nucleus_unet.engine import Stage, home_folder
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import resolve
from nucleus_unet.recipe import Depth, OnBad, Recipe, data_overrides, digest_of, load_recipe
from nucleus_unet.runs import fetch_start_weights, run_url, tracking, with_start
from tasks.average import average
from tasks.evaluate import evaluate, scores_of, tuned_by
from tasks.ingest import ingest
from tasks.merge_masks import merge_masks
from tasks.publish_model import Trained, publish_model
from tasks.publish_submission import Submission, publish_submission
from tasks.rank import rank
from tasks.reporting import stage_of, warn_of_leaks
from tasks.split import split
from tasks.train import NETWORK_FILE, train

RecipeName = Literal["best", "finetune", "paper", "quick", "seed"]
"""The recipes that come with the package, as a menu in Prefect's form."""
REGISTRY = "registry"
"""Tag of a run in MLflow: ``true`` if its model is registered and may become the champion."""


@dataclass(frozen=True)
class Retrained:
    """What a training made."""

    run: tracking.Run
    scores: dict[str, float]
    pictures: Path
    """Folder with pictures of the worst and best validation images."""
    submission: Submission | None


@flow(flow_run_name=named_after_recipe, task_runner=task_runner())
def retrain(
    training_data: tuple[Path, ...] = (),
    test_data: Path | None = None,
    recipe: RecipeName = "best",
    recipe_file: Path | None = None,
    overrides: tuple[str, ...] = (),
    registry: bool = True,
    channel: str | None = None,
    z: Depth | None = None,
    time: PositiveInt | None = None,
    scene: str | None = None,
    ignore_value: PositiveInt | None = None,
    on_bad: OnBad | None = None,
) -> Retrained | State[None]:
    """Train a model on annotated images, score it, and predict the test images.

    Args:
        training_data: Folders or zips with annotated images. Without any, the built-in sample is used,
            which has test images of its own.
        test_data: A folder or zip of images to predict. Without it the run ends with the scores.
        recipe: Name of the recipe, which holds every choice of the training.
        recipe_file: A recipe of your own as a TOML file on the worker, instead of a named recipe.
        overrides: Changes of the recipe, for example training.epochs=30.
        registry: Register the model, and make it the champion if it is better than the champion.
        channel: If the images have several channels: the name or number, from 1.
        z: If the images have several z planes: max, middle or a number, from 1.
        time: If the images are time series: the number, from 1.
        scene: If the files hold several images (scenes, series, positions): the name or number, from 1.
        ignore_value: Value in label images of pixels that nobody annotated.
        on_bad: What to do if an annotation cannot be right: refuse the data (default), leave the image
            out, or read it anyway.
    """
    prepare()
    given = data_overrides(
        channel=channel, z=z, time=time, scene=scene, ignore_value=ignore_value, on_bad=on_bad
    )
    chosen = load_recipe(recipe_file or recipe, (*overrides, *given))
    if test_data and not training_data:
        raise NucleusError(
            "Test data need training data, because the built-in sample has test images of its own. Give "
            "training data too."
        )
    if not training_data:
        training, test_data = sample_data()
        training_data = (training,)
    work = retraining([*training_data], test_data, resolve(chosen), registry)
    if is_automatic() and (before := tracking.first_finished_run(INPUTS, work.inputs())):
        unchanged = f"nothing changed since {run_url(before)}"
        return Completed(name=SKIPPED, message=f"{unchanged}: data, recipe, source and packages")
    return train_and_score(work)


def retraining(
    training_data: list[Path],
    test_data: Path | None,
    recipe: Recipe,
    registry: bool,
    parent: str | None = None,
) -> Work:
    """What a retraining is going to do.

    Parameters
    ----------
    recipe : Recipe
        Resolved. If it starts from the champion, the run of the champion is noted instead.
    registry : bool
        Whether the model is registered and may become the champion.
    parent : str, optional
        The run in MLflow that this training is a part of, for example of a sweep.
    """
    if recipe.inference.fit_scale:
        raise NucleusError("inference.fit_scale is for predictions alone. Leave it out.")
    recipe = with_start(recipe)
    tags = {REGISTRY: str(registry).lower()} | ({tracking.PARENT: parent} if parent else {})
    return Work("retrain", recipe, training_data, tags, [test_data] if test_data else [])


def train_and_score(work: Work) -> Retrained:
    """The steps of a `retraining`, within a flow run."""
    recipe, home = work.recipe, home_folder()
    start_weights = fetch_start_weights(recipe)
    # The runs of folds end with this one, so that an interrupted run continues each of them.
    with tracked(work) as run, ExitStack() as runs_of_folds:
        # Prefect's graph hides a task in another one whose unfinished future it is given.
        plane = recipe.data.plane
        reading = ingest.submit(home, work.raws, "training", plane)
        # Before the long work, so that a damaged test image is found at once.
        tests = stage_of(ingest.submit(home, work.also, "test", plane)) if work.also else None
        training = stage_of(reading)
        merging = merge_masks.submit(work.raws, training, recipe.data)
        labels = stage_of(merging)
        if recipe.training.folds:
            folds = _train_folds(work, training, labels, start_weights, run, runs_of_folds)
            trained = [one for _, one in folds]
            tracking.log_tags(run, {"stage.folds": " ".join(one.digest for one in trained)})
            sides = stage_of(split.submit(training, labels, recipe.data, all_folds=True))
            model = stage_of(average.submit(recipe, trained, run))
        else:
            sides = stage_of(split.submit(training, labels, recipe.data))
            model = stage_of(train.submit(recipe, training, labels, sides, start_weights, run))
            folds = [(sides, model)]
        scores = stage_of(evaluate.submit(recipe, training, labels, folds))
        made = Trained(training, labels, sides, model, scores)
        images = read_images(made.images.folder), read_labels(made.labels.folder)
        tracking.log_dataset(run, "training", work.raws, *images)
        recipe = tuned_by(made.scores, recipe)
        logged = publish_model(recipe, work.raws, made, run)
        if work.tags[REGISTRY] == "true":
            rank(recipe, made, logged, run, of_sample=is_sample(work.raws))
        submission = None
        if tests:
            new = read_images(tests.folder)
            tracking.log_dataset(run, "test", work.also, new, None)
            warn_of_leaks(shared_images(images[0], new))
            found = find_nuclei(recipe, made.model.folder / NETWORK_FILE, tests, None)
            submission = publish_submission(tests, found, run, home / "runs" / run.id)
    return Retrained(run, scores_of(made.scores), home / "runs" / run.id, submission)


def _train_folds(
    work: Work,
    images: Stage,
    labels: Stage,
    start_weights: Path | None,
    run: tracking.Run,
    runs: ExitStack,
) -> list[tuple[Stage, Stage]]:
    """Split and model of each fold. Each training has a run of its own in MLflow, a part of this run.

    The folds are trained one after the other; with Dask, as many at once as it has workers.
    """
    folds, data = work.recipe.training.folds, dataset_name(work.raws)
    assert folds
    recipes = [work.recipe.of_fold(number) for number in range(1, folds + 1)]
    splits = [stage_of(split.submit(images, labels, recipe.data)) for recipe in recipes]
    trainings = []
    for number, (recipe, sides) in enumerate(zip(recipes, splits, strict=True), 1):
        name, note = f"{number} of {folds} {data}", f"A part of [{run.id}]({run.url})"
        opened = tracking.open_run(
            "fold", recipe, name, {tracking.PARENT: run.id}, note, digest_of([run.id, number])
        )
        own = runs.enter_context(opened)
        trainings.append(train.submit(recipe, images, labels, sides, start_weights, own))
        if not tasks_run_elsewhere():
            stage_of(trainings[-1])
    return list(zip(splits, map(stage_of, trainings), strict=True))
