"""Log a trained model to MLflow: split, history, curves, scores, pictures, model and card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from nucleus_unet.data import (
    SPLIT_FILE,
    dataset_name,
    describe_training,
    read_images,
    read_labels,
    read_split,
)
from nucleus_unet.engine import EVENTS, EventLog, Stage, epochs, run_in_worker
from nucleus_unet.files import write_atomically
from nucleus_unet.network import CHANNELS
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import model_card, training_curves, tuned_keys
from nucleus_unet.runs import records, tracking, validation_warning
from tasks.evaluate import BY_IMAGE, SCORES, SUSPECTED, TUNED, scores_of
from tasks.reporting import uncached_task
from tasks.split import SPLIT_PICTURE
from tasks.train import NETWORK_FILE


@dataclass(frozen=True)
class Trained:
    """The stages of a training, from the prepared images to the scores of the model."""

    images: Stage
    labels: Stage
    split: Stage
    model: Stage
    scores: Stage


@dataclass(frozen=True)
class LoggedModel:
    """A model in MLflow, and its card in markdown."""

    id: str
    card: str


@uncached_task("log model {recipe.name} to MLflow")
def publish_model(
    recipe: Recipe, data: Sequence[Path], made: Trained, run: tracking.Run
) -> LoggedModel:
    """Log everything about a trained model."""
    split, images = read_split(made.split.folder), read_images(made.images.folder)
    events = EventLog(made.model.folder / EVENTS).new()
    network, threads = made.model.folder / NETWORK_FILE, recipe.training.cpu_threads
    by_id = {entry.id: entry.path(made.images.home) for entry in images.entries}
    job = (run, recipe, network, by_id[split.validation[0].id])
    model_id = str(run_in_worker(threads, "nucleus_unet.runs.models:log_model", *job))
    _log_results(recipe, made, model_id, run)
    pictures = [*sorted(made.scores.folder.glob("*.png")), made.split.folder / SPLIT_PICTURE]
    tracking.log_files(run, "pictures", pictures)
    for picture in pictures:  # next to the submission, where the command says they are
        write_atomically(made.images.home / "runs" / run.id / picture.name, picture.read_bytes())
    history = epochs(events)
    tracking.log_json(run, "history.json", history)
    tracking.log_bytes(run, "curves.png", training_curves(history))
    trained_on = describe_training(split, read_labels(made.labels.folder), made.labels.home)
    tracking.log_json(run, records.TRAINING_IMAGES, trained_on.model_dump())
    warning = validation_warning(split, images, recipe.training.start_from)
    scores, by_image = (
        json.loads((made.scores.folder / name).read_text()) for name in (SCORES, BY_IMAGE)
    )
    card = model_card(recipe, dataset_name(data), split, events, scores, by_image, warning)
    create_markdown_artifact(card, key="model-card", description="Data, scores, cost, weaknesses")
    tracking.log_bytes(run, "model_card.md", card.encode())
    tracking.describe(run.id, f"{card}\n\n{_gallery(run, pictures[:-1])}")
    digest = "nucleus_unet.network.inference:weights_digest"
    weights = str(run_in_worker(threads, digest, network, threads))
    tags = {"stage.train": made.model.digest, "weights.sha256": weights}
    trained_in = tracking.first_finished_run("stage.train", made.model.digest)
    if made.model.cached and trained_in:
        tags["reused_from"] = trained_in
    tracking.log_tags(run, tags)
    get_run_logger().info("logged the model to %s", run.url)
    return LoggedModel(model_id, card)


def _log_results(recipe: Recipe, made: Trained, model_id: str, run: tracking.Run) -> None:
    results = [made.scores.folder / name for name in (SCORES, BY_IMAGE, TUNED, SUSPECTED)]
    tracking.log_files(run, "", [made.split.folder / SPLIT_FILE, *results])
    merits = {f"validation/{key}": value for key, value in scores_of(made.scores).items()}
    if recipe.inference.tune:
        keys = tuned_keys(CHANNELS[recipe.network.outputs])
        merits |= {f"tuned/{key}": getattr(recipe.inference, key) for key in keys}
    tracking.log_metrics(run, merits, model_id=model_id)
    seconds = {f"seconds/{stage.name}": stage.seconds for stage in vars(made).values()}
    tracking.log_metrics(run, seconds)


def _gallery(run: tracking.Run, pictures: Sequence[Path]) -> str:
    """Logged pictures in markdown, with the addresses at which MLflow's pages find them."""
    return "\n\n".join(
        f"![{picture.stem}](get-artifact?path=pictures/{picture.name}&run_uuid={run.id})"
        for picture in pictures
    )
