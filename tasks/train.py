"""Train the network in a process of its own, and report its progress to Prefect and MLflow."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

from httpx import HTTPStatusError
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from nucleus_unet.data import SIDES, SPLIT_FILE, identities, read_images, read_labels, read_split
from nucleus_unet.engine import EVENTS, Delivery, EventLog, Stage, follow, is_refusal, reporter
from nucleus_unet.files import sha256_file
from nucleus_unet.network import KERAS_LIBRARIES, device_kind, gpu_compute_capability
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import training_curves
from nucleus_unet.runs import refused_by_mlflow, tracking, validation_warning
from tasks.reporting import StageResult, cached_stage, finished, short, show, uncached_task

NETWORK_FILE = "model.keras"
BY_EPOCH = "by epoch"
"""Group of the curves in MLflow, whose pages sort the groups by name."""


@uncached_task("train {recipe.title}")
def train(
    recipe: Recipe,
    images: Stage,
    labels: Stage,
    split: Stage,
    start_weights: Path | None,
    run: tracking.Run,
) -> StageResult:
    """Train the network, and log each epoch to MLflow as it ends."""
    warn = get_run_logger().warning
    known = (read_split(split.folder), read_images(images.folder), recipe.training.start_from)
    if warning := validation_warning(*known):
        warn("%s", warning)
    with (
        # The training continues while one of the servers does not respond.
        Delivery("MLflow", warn, refused_by_mlflow) as to_mlflow,
        Delivery("Prefect", warn) as to_prefect,
    ):
        follower = _Follower(recipe, run, to_mlflow, to_prefect)
        stage = _stage(recipe, images, labels, split, start_weights, follower)
        follower.end()
    history = [epoch for _, epoch in sorted(follower.epochs.items())]
    rows = [short(epoch) for epoch in history]
    create_table_artifact(rows, key="epochs", description="Epochs: training and validation")
    show(training_curves(history), "curves", "Curves by epoch")
    return finished(stage, f"trained {recipe.title} for {len(history)} epochs")


def _stage(
    recipe: Recipe,
    images: Stage,
    labels: Stage,
    split: Stage,
    start_weights: Path | None,
    follower: "_Follower",
) -> Stage:
    indices = read_images(images.folder), read_labels(labels.folder)
    made = read_split(split.folder)

    def build(folder: Path) -> None:
        reader = EventLog(folder / EVENTS)
        follower.replay(reader.new())
        samples = [made.samples(side, *indices, images.home) for side in SIDES]
        job = (recipe, *samples, folder, start_weights)
        events = follow("nucleus_unet.network.training:train_network", *job, poll=reader.new)
        with closing(events):  # if a report fails, the training ends at once
            for event in events:
                follower.report(event)

    stage = cached_stage(
        images.home,
        "train",
        {
            "images": identities(indices[0].entries),
            "labels": identities(indices[1].entries),
            "split": sha256_file(split.folder / SPLIT_FILE),
            "recipe": recipe.model_dump(mode="json", exclude={"name", "inference"}),
            "device": device_kind(),
            "start_weights": sha256_file(start_weights) if start_weights else None,
        },
        build,
        code=["network.training", "data.split", "data.prepared"],  # this module only reports
        libraries=KERAS_LIBRARIES,
        resumable=True,
    )
    if stage.cached:
        follower.replay(EventLog(stage.folder / EVENTS).new())
    return stage


def unused_gpu(device: str, backend: str) -> str | None:
    """What to warn of if this machine has an NVIDIA GPU that the backend does not use."""
    if device == "cpu:0" and gpu_compute_capability():
        how = "install JAX for CUDA" if backend.startswith("jax") else "run make install here"
        return f"this machine has an NVIDIA GPU, but {backend} does not use it: {how}"
    return None


def refused_by_prefect(error: Exception) -> bool:
    """Whether an error is an answer of Prefect that another try would not change."""
    if isinstance(error, HTTPStatusError):
        return is_refusal(error.response.status_code)
    return isinstance(error, ObjectNotFound)


class _Follower:
    """Reports the events of a training to the log, to Prefect and to MLflow."""

    def __init__(
        self, recipe: Recipe, run: tracking.Run, to_mlflow: Delivery, to_prefect: Delivery
    ) -> None:
        self.settings, self.run = recipe.training, run
        self.to_mlflow, self.to_prefect = to_mlflow, to_prefect
        self.steps = self.settings.epochs * self.settings.steps_per_epoch
        self.logger = get_run_logger()
        self.epochs: dict[int, Mapping[str, float]] = {}
        created = create_progress_artifact(0.0, key="training", description="Training")
        self.progress: UUID | None = created if isinstance(created, UUID) else None
        self.move = reporter("training", "steps", self.logger.info)

    def report(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        getattr(self, f"_{kind}")(**event)

    def replay(self, events: Iterable[dict[str, Any]]) -> None:
        """Log to MLflow what an earlier attempt may not have logged, without lines in the log."""
        log: dict[str, Callable[..., None]] = {
            "start": self._log_hardware,
            "epoch": self._log_epoch,
            "end": self._end,
        }
        for event in events:
            kind = event.pop("event")
            if kind in log:
                log[kind](**event)

    def end(self) -> None:
        self.move(self.steps, self.steps)
        self.to_prefect.put(self._show, 100.0)

    def _waits(self) -> None:
        self.logger.warning("another training uses the GPU of this machine: waiting until it ends")

    def _start(self, parameters: int, step: int, **hardware: Any) -> None:
        self.logger.info(
            "training %s parameters with %s on %s, %d cores",
            *(f"{parameters:,}", hardware["backend"], hardware["device"], hardware["cores"]),
        )
        if step:
            self.logger.info("continuing after step %d of %d", step, self.steps)
        if warning := unused_gpu(hardware["device"], hardware["backend"]):
            self.logger.warning(warning)
        self._log_hardware(parameters, **hardware)

    def _log_hardware(self, parameters: int, step: int = 0, **hardware: Any) -> None:
        tags = {f"hardware.{name}": str(value) for name, value in hardware.items()}
        self.to_mlflow.put(tracking.log_tags, self.run, tags | {"parameters": str(parameters)})

    def _damaged(self, files: list[str], step: int) -> None:
        self.logger.warning(
            "skipping damaged checkpoints (%s) and continuing after step %d", ", ".join(files), step
        )

    def _estimate(self, seconds_per_step: float, seconds: float, disk_bytes: int) -> None:
        self.logger.info(
            "training will take about %s (%.2f s a step) and %.0f MB of disk space",
            *(_duration(seconds), seconds_per_step, disk_bytes / 1e6),
        )

    def _step(self, step: int) -> None:
        self.move(step, self.steps)
        self.to_prefect.put(self._show, min(100 * step / self.steps, 100.0))

    def _show(self, percent: float) -> None:
        """Move the progress bar in Prefect. If Prefect refuses, train on without the bar."""
        if self.progress is None:
            return
        try:
            update_progress_artifact(self.progress, percent)
        except Exception as error:
            if not refused_by_prefect(error):
                raise
            self.logger.warning("Prefect no longer shows the progress of the training: %s", error)
            self.progress = None

    def _epoch(self, **epoch: Any) -> None:
        self._step(epoch["epoch"] * self.settings.steps_per_epoch)
        self.logger.info(
            "epoch %d of %d: loss %.4f, mean IoU %.4f, validation loss %.4f, validation mean IoU %.4f, "
            "%.0f s, %.1f images/s",
            *(epoch["epoch"], self.settings.epochs),
            *(epoch[key] for key in ("loss", "mean_iou", "val_loss", "val_mean_iou")),
            *(epoch["seconds"], epoch["images_per_s"]),
        )
        self._log_epoch(**epoch)

    def _log_epoch(self, **epoch: Any) -> None:
        self.epochs[epoch["epoch"]] = epoch
        metrics = {f"{BY_EPOCH}/{key}": x for key, x in epoch.items() if key != "epoch"}
        self._log(metrics, step=epoch["epoch"])

    def _end(self, kept_epoch: int, peak_memory_bytes: int) -> None:
        peak_gb = peak_memory_bytes / 1e9
        self._log({"training/kept_epoch": kept_epoch, "training/peak_memory_gb": peak_gb})

    def _log(self, metrics: dict[str, float], step: int = 0) -> None:
        self.to_mlflow.put(tracking.log_metrics, self.run, metrics, step, at=time.time())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
