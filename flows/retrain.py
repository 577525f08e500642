"""A whole retraining run: raw data in, model, scores and submission out."""

from dataclasses import dataclass
from pathlib import Path

from prefect import State, flow
from prefect.states import Completed

from flows.predict import find_nuclei
from flows.running import INPUTS, SKIPPED, Work, prepare, sample_data, task_runner, tracked
from nucleus_unet.engine.home import home_folder
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import backend
from nucleus_unet.recipe import Recipe, load_recipe
from nucleus_unet.runs import tracking
from tasks.evaluate import evaluate, scores_of, tuned_by
from tasks.ingest import ingest
from tasks.merge_masks import merge_masks
from tasks.publish import Submission, Trained, publish_dataset, publish_model, publish_submission
from tasks.rank import rank
from tasks.split import split
from tasks.train import NETWORK_FILE, start_weights_of, train

BEST = load_recipe("best")


@dataclass(frozen=True)
class Retrained:
    """What a retraining run made."""

    run: tracking.Run
    scores: dict[str, float]
    submission: Submission | None


def decided_by(registry: bool, parent: str | None) -> dict[str, str]:
    """Tags of a run for what decides what it makes, besides recipe and data."""
    return {"registry": str(registry).lower()} | ({tracking.PARENT: parent} if parent else {})


# Of a sweep that goes on, Prefect would take the kept result of its first trial for a later one's.
@flow(flow_run_name="retrain {recipe.name}", task_runner=task_runner(), persist_result=False)
def retrain(
    training_data: list[Path] | None = None,
    test_data: Path | None = None,
    recipe: Recipe = BEST,
    only_if_changed: bool = False,
    registry: bool = True,
    parent: str | None = None,
) -> Retrained | State[None]:
    """Retrain from raw data.

    Args:
        training_data: Raw data sets in Kaggle's layout, folders or zips. Without any: the
            built-in sample, and its test set.
        test_data: Images to predict. Without them the run ends with the model and its validation.
        recipe: Every choice of the run.
        only_if_changed: End at once, in a state called Skipped, where data, recipe, source and
            packages are those of a retraining that has finished.
        registry: Add the model to the registry, and make it the champion where it is better than
            that one.
        parent: MLflow run of which this is a part, as of a sweep.
    """
    prepare()
    recipe = backend.resolve(recipe)
    if test_data and not training_data:
        raise NucleusError(
            "test data go with training data: the built-in sample has test images of its own"
        )
    if not training_data:
        training, test_data = sample_data()
        training_data = [training]
    start_weights = start_weights_of(recipe)
    tests = [test_data] if test_data else []
    tags = decided_by(registry, parent)
    work = Work("retrain", recipe, training_data, tags, tests)
    if only_if_changed and (before := tracking.first_finished_run(INPUTS, work.inputs())):
        same = f"data, recipe, source and packages are those of {tracking.run_url(before)}"
        return Completed(name=SKIPPED, message=f"nothing to do: {same}")
    with tracked(work) as run:
        images = ingest.submit(training_data, annotated=True)
        # Before the long work: a damaged test image would be found too late.
        test_images = ingest.submit([test_data], annotated=False).result() if test_data else None
        labels = merge_masks.submit(training_data, images)
        sides = split.submit(images, recipe.data)
        model = train.submit(recipe, images, labels, sides, start_weights, run)
        scores = evaluate.submit(recipe, images, labels, sides, model)
        # The first to fail is the reason.
        made = Trained(*(stage.result() for stage in (images, labels, sides, model, scores)))
        publish_dataset(run, "training", training_data, made.images, made.labels)
        recipe = tuned_by(made.scores, recipe)
        model_id = publish_model(recipe, training_data, made, run)
        if registry:
            rank(recipe, made, model_id, run)
        submission = None
        if test_data and test_images:
            publish_dataset(run, "test", [test_data], test_images)
            found = find_nuclei(recipe, made.model.folder / NETWORK_FILE, test_images)
            submission = publish_submission(
                test_images, found, run, home_folder() / "runs" / run.id
            )
    return Retrained(run, scores_of(made.scores), submission)
