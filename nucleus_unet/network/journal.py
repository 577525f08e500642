"""The Keras callback that records a training: its events, and checkpoints to continue from."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.engine import EventLog, StoppedError, epochs
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import backend, checkpoints
from nucleus_unet.recipe import Recipe

STEP_EVENT_S = 2.0
"""Least time between two ``step`` events."""
UNTIMED_STEPS = 4
"""Number of first steps that are not timed: they compile, fill caches and find batches ready."""
CHECKPOINT_S = 120.0
"""Longest time without a checkpoint."""
# Keras sorts them by name.
_METRICS = ("loss", "dice", "mean_iou", "val_loss", "val_dice", "val_mean_iou")


class Journal(keras.callbacks.Callback):
    """Records events, saves checkpoints, chooses the weights to keep and stops a training early.

    A checkpoint holds the state of the model, the optimizer and the metrics, the weights to keep, and
    the history of epochs. It is saved

    - after each epoch,
    - within an epoch every `CHECKPOINT_S` seconds, and
    - after the current step if the process was asked to stop.

    Parameters
    ----------
    model : keras.Model
        The compiled model. Its state is replaced by that of the last checkpoint, if there is one.
    recipe : Recipe
        The resolved recipe.
    validation_images : int
        Number of validation images, for the estimate of the duration.
    folder : Path
        Folder of the checkpoints.
    events : EventLog
        Receives the events.
    asked_to_stop : callable
        Returns True if the process was asked to stop.

    Attributes
    ----------
    history : list of dict
        Results of each finished epoch, with these keys:

        - ``epoch``: number of the epoch, from 1,
        - ``loss``, ``dice``, ``mean_iou``: loss and metrics of the training batches,
        - ``val_loss``, ``val_dice``, ``val_mean_iou``: loss and metrics of the validation images at
          the end of the epoch,
        - ``learning_rate``: learning rate after the last step of the epoch,
        - ``seconds``: duration of the epoch in seconds, validation included,
        - ``images_per_s``: training images per second, validation excluded.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        validation_images: int,
        folder: Path,
        events: EventLog,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.folder, self.events, self.settings = folder, events, recipe.training
        self.validation_images = validation_images
        self.asked_to_stop = asked_to_stop
        self._model = model
        self._step_started: list[float] = []
        self._epoch_started = self._last_step_event = 0.0
        self._training_ended: float | None = None
        recorded = {event["epoch"] for event in epochs(self.events.new())}
        self._restore()
        start = {"parameters": model.count_params(), "step": self.step}
        self.events.tell("start", **start, **backend.hardware())
        for epoch in self.history:
            if epoch["epoch"] not in recorded:
                self.events.tell("epoch", **epoch)

    def _restore(self) -> None:
        """Load the state of the last undamaged checkpoint; without one, start from step 0."""
        found = checkpoints.load_checkpoint(self.folder)
        if found.damaged:
            self.events.tell("damaged", files=list(found.damaged), step=found.step)
        self.step, arrays = found.step, found.arrays
        for name, variable in _named_variables(self._model).items() if arrays else ():
            variable.assign(arrays[name])
        self._metrics = [arrays[name] for name in sorted(arrays) if name.startswith("metrics/")]
        self.kept_weights = [arrays[name] for name in sorted(arrays) if name.startswith("kept/")]
        history, self._epoch_s = json.loads(str(arrays.get("history", "[[], 0.0]")))
        self.history: list[dict[str, float]] = history
        self._saved = time.monotonic()

    @property
    def best_epoch(self) -> int:
        """Number of the first epoch with the highest validation mean IoU; 0 before the first epoch."""
        scores = [epoch["val_mean_iou"] for epoch in self.history]
        return 1 + scores.index(max(scores)) if scores else 0

    @property
    def kept_epoch(self) -> int:
        """Number of the epoch whose weights are kept; 0 before the first epoch."""
        return len(self.history) if self.settings.keep == "last" else self.best_epoch

    @property
    def finished(self) -> bool:
        """True after the last epoch, or after ``early_stopping_epochs`` epochs without a better one."""
        done, patience = len(self.history), self.settings.early_stopping_epochs
        return done >= self.settings.epochs or done - self.best_epoch >= (patience or done + 1)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch_started, self._training_ended = time.monotonic() - self._epoch_s, None
        if self._metrics:  # from the steps of this epoch that an earlier process trained
            for variable, value in zip(self._model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)
        self._metrics, self._epoch_s = [], 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if len(self._step_started) < UNTIMED_STEPS + 2:
            self._step_started.append(time.monotonic())
            if len(self._step_started) == UNTIMED_STEPS + 2:
                self._estimate(self._step_started[-1] - self._step_started[-2])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        now = time.monotonic()
        if now - self._last_step_event > STEP_EVENT_S:
            self._last_step_event = now
            self.events.tell("step", step=self.step)
        if self.step % self.settings.steps_per_epoch == 0:
            return  # on_epoch_end saves, after the validation
        if self.asked_to_stop() or now - self._saved > CHECKPOINT_S:
            backend.synchronize(self._model)
            metrics = {
                f"metrics/{i:04d}": np.asarray(variable)
                for i, variable in enumerate(self._model.metrics_variables)
            }
            self._save(metrics, now - self._epoch_started)

    def on_test_begin(self, logs: Any = None) -> None:
        self._training_ended = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        settings, now = self.settings, time.monotonic()
        if not np.isfinite(logs["val_loss"]):
            raise NucleusError(
                f"epoch {epoch + 1}: the validation loss is not a finite number. "
                f"Lower training.learning_rate from {settings.learning_rate}."
            )
        images = settings.steps_per_epoch * settings.batch_size
        seconds = (self._training_ended or now) - self._epoch_started
        self.history.append(
            {
                "epoch": epoch + 1,
                **{name: float(logs[name]) for name in _METRICS},
                "learning_rate": float(self._model.optimizer.learning_rate),
                "seconds": round(now - self._epoch_started, 3),
                "images_per_s": round(images / seconds, 3),
            }
        )
        if self.kept_epoch == epoch + 1:
            self.kept_weights = [np.asarray(weight) for weight in self._model.weights]
        self._model.stop_training = self.finished
        self._save({}, 0.0)
        self.events.tell("epoch", **self.history[-1])

    def _save(self, metrics: dict[str, NDArray[Any]], epoch_s: float) -> None:
        """Write a checkpoint, and raise `StoppedError` if the process was asked to stop."""
        kept = {f"kept/{i:04d}": weight for i, weight in enumerate(self.kept_weights)}
        state = {name: np.asarray(v) for name, v in _named_variables(self._model).items()}
        history = json.dumps([self.history, epoch_s])
        arrays = state | metrics | kept | {"history": np.asarray(history)}
        checkpoints.save_checkpoint(self.folder, self.step, arrays)
        self._saved = time.monotonic()
        if self.asked_to_stop() and not self.finished:
            raise StoppedError(
                f"stopped after {self.step} steps. Run the same command again to continue from there."
            )

    def _estimate(self, seconds_per_step: float) -> None:
        # A training step costs about three forward passes, a validation step only one.
        validation_steps = self.validation_images / self.settings.batch_size / 3
        epoch_s = (self.settings.steps_per_epoch + validation_steps) * seconds_per_step
        weights = 4 * self._model.count_params()
        # A checkpoint holds the weights, the weights to keep and the optimizer's variables.
        state = 2 * weights + 4 * sum(
            int(np.prod(v.shape)) for v in self._model.optimizer.variables
        )
        self.events.tell(
            "estimate",
            seconds_per_step=seconds_per_step,
            seconds=(self.settings.epochs - self.step / self.settings.steps_per_epoch) * epoch_s,
            disk_bytes=checkpoints.KEPT * state + weights,
        )


def _named_variables(model: keras.Model) -> dict[str, Any]:
    """All variables that training changes: weights, seeds of dropout, optimizer state."""
    kinds = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{kind}/{index:04d}/{variable.path}": variable
        for kind, variables in kinds.items()
        for index, variable in enumerate(variables)
    }
