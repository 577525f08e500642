"""Training, in a process of its own, followed into Prefect and MLflow as it goes."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from httpx import HTTPStatusError
from prefect import task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from nucleus_unet.engine.delivery import Delivery
from nucleus_unet.engine.events import EVENTS, EventLog
from nucleus_unet.engine.isolation import follow
from nucleus_unet.engine.progress import reporter
from nucleus_unet.engine.servers import is_refusal
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file
from nucleus_unet.network.backend import device_kind, gpu_compute_capability
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import figures
from nucleus_unet.runs import records, tracking
from tasks.ingest import identities, images_of
from tasks.merge_masks import labels_of
from tasks.reporting import short, show, stage_in_home, state_of
from tasks.split import SPLIT_FILE, samples, validation_seen

NETWORK_FILE = "model.keras"
LIBRARIES = ("keras", "tensorflow", "numpy", "opencv-python-headless")


@task(cache_policy=NO_CACHE)
def train(
    recipe: Recipe,
    images: Stage,
    labels: Stage,
    split: Stage,
    start_weights: Path | None,
    run: tracking.Run,
) -> Any:
    """Train the network and log each epoch to MLflow as it ends; returns the `Stage`."""
    warn = get_run_logger().warning
    if seen := validation_seen(split, images, recipe.training.start_from):
        warn("%s", seen)
    with (
        # Training goes on while one of the servers is away.
        Delivery("MLflow", warn, tracking.refused_by_mlflow) as to_mlflow,
        Delivery("Prefect", warn) as to_prefect,
    ):
        follower = _Follower(recipe, run, to_mlflow, to_prefect)
        stage = _stage(recipe, images, labels, split, start_weights, follower)
        follower.end()
    history = [epoch for _, epoch in sorted(follower.epochs.items())]
    rows = [short(epoch) for epoch in history]
    create_table_artifact(rows, key="epochs", description="Epochs, training and validation")
    show(figures.curves(history), "curves", "Curves by epoch")
    return state_of(stage)


def _stage(
    recipe: Recipe,
    images: Stage,
    labels: Stage,
    split: Stage,
    start_weights: Path | None,
    follower: "_Follower",
) -> Stage:
    def build(folder: Path) -> None:
        reader = EventLog(folder / EVENTS)
        follower.catch_up(reader.new())
        sides = [samples(split, images, labels, side) for side in ("training", "validation")]
        job = (recipe, *sides, folder, start_weights)
        events = follow("nucleus_unet.network.training:train_network", *job, poll=reader.new)
        with closing(events):  # where telling fails the training ends at once
            for event in events:
                follower.tell(event)

    stage = stage_in_home(
        "train",
        {
            "images": identities(images_of(images.folder)),
            "labels": identities(labels_of(labels.folder)),
            "split": sha256_file(split.folder / SPLIT_FILE),
            "recipe": recipe.model_dump(mode="json", exclude={"name", "inference"}),
            "device": device_kind(),
            "start_weights": sha256_file(start_weights) if start_weights else None,
        },
        build,
        code=["network.training"],  # this module only tells of it
        libraries=LIBRARIES,
        resumable=True,
    )
    if stage.cached:
        follower.catch_up(EventLog(stage.folder / EVENTS).new())
    return stage


def unused_gpu(device: str, backend: str) -> str | None:
    """What to tell the user where there is an NVIDIA GPU that the backend computes without."""
    if device == "cpu:0" and gpu_compute_capability():
        how = "install JAX for CUDA" if backend.startswith("jax") else "run make install here"
        return f"there is an NVIDIA GPU, but {backend} does not use it: {how}"
    return None


def refused_by_prefect(error: Exception) -> bool:
    """Whether Prefect answered that it will not do what it was asked; it would not another time."""
    if isinstance(error, HTTPStatusError):
        return is_refusal(error.response.status_code)
    return isinstance(error, ObjectNotFound)


class _Follower:
    """Tells Prefect, MLflow and the terminal what happens in a training."""

    def __init__(
        self, recipe: Recipe, run: tracking.Run, to_mlflow: Delivery, to_prefect: Delivery
    ) -> None:
        self.settings, self.run = recipe.training, run
        self.to_mlflow, self.to_prefect = to_mlflow, to_prefect
        self.steps = self.settings.epochs * self.settings.steps_per_epoch
        self.logger = get_run_logger()
        self.epochs: dict[int, dict[str, Any]] = {}
        self.progress: Any = create_progress_artifact(0.0, key="training", description="Training")
        self.move = reporter("training", "steps", self.logger.info)

    def tell(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        getattr(self, f"_{kind}")(**event)

    def catch_up(self, events: list[dict[str, Any]]) -> None:
        """Tell what lasts of an earlier attempt."""
        for event in events:
            if event["event"] not in ("waits", "estimate", "step"):
                self.tell(event)

    def end(self) -> None:
        self.move(self.steps, self.steps)
        self.to_prefect.put(self._show, 100.0)

    def _waits(self) -> None:
        self.logger.warning("another training is on the GPU of this machine: waiting for its end")

    def _start(self, parameters: int, step: int, **hardware: Any) -> None:
        self.logger.info("training %d parameters on %s", parameters, hardware)
        if step:
            self.logger.info("it goes on after step %d of %d", step, self.steps)
        if warning := unused_gpu(hardware["device"], hardware["backend"]):
            self.logger.warning(warning)
        tags = {f"hardware.{name}": str(value) for name, value in hardware.items()}
        self.to_mlflow.put(tracking.log_tags, self.run, tags | {"parameters": str(parameters)})

    def _damaged(self, files: list[str], step: int) -> None:
        self.logger.warning(
            "damaged, and passed over: %s; training goes on after step %d", ", ".join(files), step
        )

    def _estimate(self, seconds_per_step: float, seconds: float, disk_bytes: int) -> None:
        self.logger.info(
            "training will take about %s (%.2f s a step) and %.0f MB of disk",
            _duration(seconds),
            seconds_per_step,
            disk_bytes / 1e6,
        )

    def _step(self, step: int) -> None:
        self.move(step, self.steps)
        share = min(100 * step / self.steps, 100.0)
        self.to_prefect.put(self._show, share)

    def _show(self, share: float) -> None:
        """Move Prefect's progress bar, in percent; where that is refused, train on without it."""
        if self.progress is None:
            return
        try:
            update_progress_artifact(self.progress, share)
        except Exception as error:
            if not refused_by_prefect(error):
                raise
            self.logger.warning("the progress is not shown in Prefect any more: %s", error)
            self.progress = None

    def _epoch(self, **epoch: Any) -> None:
        self.epochs[epoch["epoch"]] = epoch
        self._step(epoch["epoch"] * self.settings.steps_per_epoch)
        self.logger.info(
            "epoch %d of %d: loss %.4f, mean IoU %.4f, validation loss %.4f, mean IoU %.4f, "
            "%.0f s, %.1f images/s",
            epoch["epoch"],
            self.settings.epochs,
            *(epoch[key] for key in ("loss", "mean_iou", "val_loss", "val_mean_iou")),
            epoch["seconds"],
            epoch["images_per_s"],
        )
        metrics = {key: value for key, value in epoch.items() if key != "epoch"}
        self._log(metrics, step=epoch["epoch"])

    def _end(self, kept_epoch: int, peak_memory_bytes: int) -> None:
        facts = {"kept_epoch": kept_epoch, "peak_memory_gb": peak_memory_bytes / 1e9}
        self._log(facts)

    def _log(self, metrics: dict[str, float], step: int = 0) -> None:
        self.to_mlflow.put(tracking.log_metrics, self.run, metrics, step, at=time.time())


def start_weights_of(recipe: Recipe) -> Path | None:
    """The ``model.keras`` that the training starts from, fetched into the home; None for none.

    Raises
    ------
    NucleusError
        The run is unknown, logged no model, or its network has weights of other shapes.
    """
    run_id = recipe.training.start_from
    if run_id is None:
        return None
    origin, network = records.fetch_model(run_id)
    for key in ("base_filters", "depth", "outputs", "activation"):
        theirs, ours = getattr(origin.network, key), getattr(recipe.network, key)
        if theirs != ours:
            raise NucleusError(
                f"training.start_from = {run_id}: its network.{key} is {theirs}, the recipe's is "
                f"{ours}; start from a run of the same network, or set it to {theirs}"
            )
    return network


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
