"""A logged run's submission made again, and compared."""

from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.predict import find_nuclei
from flows.retrain import retrain as retrain_flow
from flows.running import Work, prepare, threads, tracked
from nucleus_unet.engine.home import fresh_home, home_folder
from nucleus_unet.errors import NucleusError
from nucleus_unet.runs import records, tracking
from nucleus_unet.runs.reproduction import Record
from tasks.compare import Answer, compare, require_data
from tasks.ingest import ingest
from tasks.merge_masks import merge_masks
from tasks.publish import publish_dataset, publish_submission


# In threads, as other processes would not see that the home is another.
@flow(flow_run_name="reproduce {run_id}", task_runner=threads())
def reproduce(
    run_id: str,
    retrain: bool = False,
    training_data: list[Path] | None = None,
    test_data: list[Path] | None = None,
) -> Answer:
    """Make the submission of a logged run again, in a home of its own, and compare.

    Args:
        run_id: MLflow run that made a submission.
        retrain: Train again from the raw data; otherwise the logged model predicts.
        training_data: The run's raw training data, where they are not at the paths that it logged
            any more.
        test_data: The run's test images, in the same way.
    """
    prepare()
    if training_data and not retrain:
        raise NucleusError("training data go with retrain: the logged model needs none")
    record = records.fetch_record(run_id)
    recipe = records.recipe_of(run_id, record.recipe)
    test = _paths(record, "test", test_data)
    training = _paths(record, "training", training_data) if retrain else []
    if retrain and len(test) > 1:
        raise NucleusError("--retrain takes the test images from one place: name one --test")
    made = home_folder() / "runs"
    with (
        tracked(Work("reproduce", recipe, test, {"reproduces": run_id}, training)) as run,
        fresh_home(run.id),
    ):
        images = ingest.submit(test, annotated=False).result()
        require_data(record, "test", images, None)
        publish_dataset(run, "test", test, images)
        weights = None
        if retrain:
            training_images = ingest.submit(training, annotated=True).result()
            labels = merge_masks.submit(training, training_images).result()
            require_data(record, "training", training_images, labels)
            publish_dataset(run, "training", training, training_images, labels)
            again = retrain_flow.with_options(task_runner=threads())
            retrained = again(training, test[0], recipe, registry=False)
            submission = retrained.submission
            tags = records.require_run(retrained.run.id)
            tracking.log_tags(run, {"retrained": retrained.run.id})
            weights = record.tags["weights.sha256"], tags["weights.sha256"]
        else:
            tuned, network = records.fetch_model(record.tags.get("model.run_id", run_id))
            found = find_nuclei(tuned, network, images)
            submission = publish_submission(images, found, run, made / run.id)
        return compare(record, submission, images, test, weights, run)


def _paths(record: Record, context: str, given: Sequence[Path] | None) -> Sequence[Path]:
    """Where a run's data are now: where it had them, unless another place is given.

    Raises
    ------
    NucleusError
        It had none of the kind, or they are gone.
    """
    if context not in record.data or "submission.sha256" not in record.tags:
        raise NucleusError(
            f"run {record.run_id} made no submission from {context} data: choose one that did"
        )
    if given:
        return given
    paths = [Path(path) for path in record.data[context].paths]
    for path in paths:
        if not path.exists():
            option = "--train" if context == "training" else "--test"
            raise NucleusError(
                f"{path}: the {context} data of run {record.run_id} are gone; say with {option} "
                "where they are now"
            )
    return paths
