"""Reproduce: make the submission of a logged run again, and compare."""

from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.predict import find_nuclei
from flows.retrain import Retrained, retraining, train_and_score
from flows.running import Work, prepare, threads, tracked
from nucleus_unet.data import dataset_files, read_images, read_labels
from nucleus_unet.engine import fresh_home, home_folder
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import Record, Reproduction, records, require_same_data, tracking
from tasks.compare import compare
from tasks.ingest import ingest
from tasks.merge_masks import merge_masks
from tasks.publish_submission import publish_submission
from tasks.reporting import stage_of


# In threads, because other processes would not see the fresh home.
@flow(flow_run_name="reproduce {run_id}", task_runner=threads())
def reproduce(
    run_id: str,
    retrain: bool = False,
    training_data: tuple[Path, ...] = (),
    test_data: tuple[Path, ...] = (),
) -> Reproduction:
    """Make the submission of a logged run again, from an empty home, and compare the two.

    Args:
        run_id: Id of the MLflow run that made the submission.
        retrain: Train the model again from the raw data. If not, the logged model predicts.
        training_data: Where the raw training data of the run are now, if they were moved.
        test_data: Where the test images of the run are now, if they were moved.
    """
    prepare()
    if training_data and not retrain:
        raise NucleusError(
            "Training data are used only with retrain, because the logged model needs none. Leave them "
            "out, or set retrain."
        )
    record = records.fetch_record(run_id)
    recipe = records.recipe_of(run_id, record.recipe)
    test = _paths(record, "test", test_data)
    training = _paths(record, "training", training_data) if retrain else []
    if retrain and len(test) > 1:
        raise NucleusError("A retraining has one set of test images. Give one path with --test.")
    made = home_folder() / "runs"
    work = Work("reproduce", recipe, test, {"reproduces": run_id}, training)
    with tracked(work) as run, fresh_home(run.id):
        home = home_folder()
        # Only a prediction leaves images out that cannot be read.
        on_bad = recipe.data.on_bad if "model.run_id" in record.tags else "stop"
        images = stage_of(ingest.submit(home, test, "test", recipe.data.plane, on_bad))
        index = read_images(images.folder)
        require_same_data(record, "test", dataset_files(index, None))
        tracking.log_dataset(run, "test", test, index, None)
        weights = None
        if retrain:
            reading = ingest.submit(home, training, "training", recipe.data.plane)
            annotated = stage_of(reading)
            labels = stage_of(merge_masks.submit(training, annotated, recipe.data))
            indices = read_images(annotated.folder), read_labels(labels.folder)
            require_same_data(record, "training", dataset_files(*indices))
            tracking.log_dataset(run, "training", training, *indices)
            retrained = retrain_again(training, test[0], recipe)
            submission = retrained.submission
            assert submission
            tracking.log_tags(run, {"retrained": retrained.run.id})
            again = records.require_run(retrained.run.id)
            weights = record.tags["weights.sha256"], again["weights.sha256"]
        else:
            trained_in = record.tags.get("model.run_id")  # of a prediction
            tuned, network = records.fetch_model(trained_in or run_id)
            if record.tags.get("model.sha256", sha256_file(network)) != sha256_file(network):
                raise NucleusError(
                    f"Run {run_id} predicted with the built-in model of another version of the program. "
                    f"Reproduce it in its own environment: nucleus reproduce {run_id} --in-env | sh"
                )
            trained_on = records.fetch_training_images(trained_in or run_id)
            found = find_nuclei(recipe if trained_in else tuned, network, images, trained_on)
            submission = publish_submission(images, found, run, made / run.id)
        return compare(record, submission, images, test, weights, run)


@flow(flow_run_name="retrain {recipe.name} again", task_runner=threads(), persist_result=False)
def retrain_again(training_data: list[Path], test_data: Path, recipe: Recipe) -> Retrained:
    """Train again with a logged recipe, as a part of a reproduction."""
    return train_and_score(retraining(training_data, test_data, recipe, registry=False))


def _in_this_home(path: Path) -> Path:
    """Where a data set of the built-in sample is, if the home was moved."""
    here = home_folder() / Path(*path.parts[-3:])
    moved = path.parts[-3:-2] == ("sample",) and not path.exists()
    return here if moved and here.exists() else path


def _paths(record: Record, context: str, given: Sequence[Path]) -> list[Path]:
    """Where the data of a run are: at the given paths or, without any, where they were.

    Raises
    ------
    NucleusError
        If the run had no data of this kind, or if they were moved.
    """
    if context not in record.data or "submission.sha256" not in record.tags:
        raise NucleusError(
            f"Run {record.run_id} made no submission from {context} data. Choose a run that did."
        )
    if given:
        return list(given)
    paths = [_in_this_home(Path(path)) for path in record.data[context].paths]
    for path in paths:
        if not path.exists():
            option = "--train" if context == "training" else "--test"
            raise NucleusError(
                f"The {context} data of run {record.run_id} are no longer at {path}. Say where they are "
                f"with {option}."
            )
    return paths
