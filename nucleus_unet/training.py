"""Training: batches by position, checkpoints from which it goes on."""

import json
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet import backend, checkpoints, interruption
from nucleus_unet.augment import (
    random_intensities,
    random_matrix,
    random_window,
    resize,
    warp,
    window,
)
from nucleus_unet.dataset.sample import Sample
from nucleus_unet.errors import NucleusError
from nucleus_unet.events import EventLog, epochs
from nucleus_unet.interruption import StoppedError
from nucleus_unet.losses import bce_dice_loss, mask_dice, nuclei_loss
from nucleus_unet.metrics import MaskMeanIoU
from nucleus_unet.normalization import apply_table, normalizing_table
from nucleus_unet.recipe import Recipe, Training
from nucleus_unet.targets import CHANNELS, targets
from nucleus_unet.unet import build_segmenter

LOADING_THREADS = 4
BATCHES_AHEAD = 2
STEP_EVENT_S = 2.0
CHECKPOINT_S = 120.0
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch; `val_` is on the validation images, `epoch` from 1."""

    epoch: int
    loss: float
    dice: float
    mean_iou: float
    val_loss: float
    val_dice: float
    val_mean_iou: float
    learning_rate: float
    seconds: float
    images_per_s: float


def train(
    recipe: Recipe,
    training_samples: Sequence[Sample],
    validation_samples: Sequence[Sample],
    folder: Path,
    start_weights: Path | None = None,
) -> None:
    """Train a network in this process; goes on from the checkpoint in `folder` where there is one.

    Writes into `folder`, as it goes, ``events.jsonl`` (a line for each thing that happened: ``start``,
    ``damaged``, ``estimate``, ``step``, ``epoch``, ``end``) and checkpoints, and at the end
    ``model.keras`` with the weights of the epoch that the recipe keeps. SIGTERM and Ctrl-C are
    heeded between steps. For the main thread of a process.

    Parameters
    ----------
    recipe : Recipe
        Resolved.
    training_samples, validation_samples : sequence of Sample
        In the order that the split gives them.
    folder : Path
        Where the files go.
    start_weights : Path, optional
        A ``model.keras`` of the same network whose weights are the first ones.

    Raises
    ------
    NucleusError
        The training diverged, or the network does not fit the image size.
    StoppedError
        It was asked to stop, and saved what it has.
    """
    settings = recipe.training
    backend.configure(
        settings.cpu_threads,
        settings.seed,
        settings.precision,
        deterministic=settings.deterministic,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with backend.all_devices():
        model = _segmenter(recipe)
        if start_weights:
            model.set_weights(keras.models.load_model(start_weights, compile=False).get_weights())
        model.compile(
            optimizer=_optimizer(settings),
            loss=nuclei_loss if recipe.network.outputs == "nuclei" else bce_dice_loss,
            metrics=[_named(mask_dice, "dice"), MaskMeanIoU()],
        )
    model.optimizer.build(model.trainable_variables)
    # The mean of weights takes their place while the epoch is validated, and is what is kept.
    averaging = [keras.callbacks.SwapEMAWeights()] if settings.ema else []
    validation = validation_arrays(recipe, validation_samples)
    with interruption.deferred() as asked_to_stop:
        journal = _Journal(model, recipe, len(validation_samples), folder, asked_to_stop)
        while not journal.finished:
            journal.restore()  # the end of `fit` may leave other weights than it trained
            # The rest of an epoch that was cut short is a `fit` of its own.
            epoch, done = divmod(journal.step, settings.steps_per_epoch)
            batch_size = recipe.inference.batch_size
            if done:  # makes the variables of the metrics, which hold what is done
                model.evaluate(*validation, batch_size=batch_size, steps=1, verbose=0)
            model.fit(
                batches(recipe, training_samples, journal.step),
                steps_per_epoch=settings.steps_per_epoch - done,
                epochs=epoch + 1 if done else settings.epochs,
                initial_epoch=epoch,
                validation_data=validation,
                validation_batch_size=batch_size,
                callbacks=[journal, *averaging],
                shuffle=False,
                verbose=0,
            )
    kept = _segmenter(recipe)
    kept.set_weights(journal.kept_weights)
    kept.save(folder / "model.keras")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    journal.events.tell("end", kept_epoch=journal.kept_epoch, peak_memory_bytes=peak)


def batches(
    recipe: Recipe, samples: Sequence[Sample], first_step: int = 0
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Augmented batches from `first_step` to the end of the training, in order.

    Every draw comes from (seed, epoch, position in the epoch): neither the threads that load nor a
    restart change a batch. Where kinds are not balanced each image is seen once before any is seen
    again.

    Yields
    ------
    tuple of (N, S, S, 3) uint8 and (N, S, S, C) float32 in [0, 1]
    """
    settings = recipe.training
    last_step = settings.epochs * settings.steps_per_epoch
    tables = _tables(recipe, samples)
    odds = _odds(samples, recipe.data.balance)

    def load(step: int, position: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        epoch, step_in_epoch = divmod(step, settings.steps_per_epoch)
        # The leading number keeps the two kinds of draws apart.
        draws = np.random.default_rng(
            (1, settings.seed, epoch, step_in_epoch * settings.batch_size + position)
        )
        if odds is None:
            turn, place = divmod(step * settings.batch_size + position, len(samples))
            order = np.random.default_rng((0, settings.seed, turn)).permutation(len(samples))
            index = order[place]
        else:
            index = draws.choice(len(samples), p=odds)
        return training_view(recipe, samples[index], tables[index] if tables else None, draws)

    def collect(pending: list[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        images, maps = zip(*(future.result() for future in pending), strict=True)
        return np.stack(images), np.stack(maps)

    with ThreadPoolExecutor(LOADING_THREADS) as pool:
        ahead: deque[list[Any]] = deque()
        for step in range(first_step, last_step):
            ahead.append([pool.submit(load, step, i) for i in range(settings.batch_size)])
            if len(ahead) > BATCHES_AHEAD:
                yield collect(ahead.popleft())
        while ahead:
            yield collect(ahead.popleft())


def training_view(
    recipe: Recipe, sample: Sample, table: NDArray[np.uint8] | None, draws: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One augmented look at a sample: (S, S, 3) uint8 and (S, S, C) float32 in [0, 1]."""
    image, labels = sample.load()
    size, augmentation = recipe.data.image_size, recipe.augmentation
    matrix, crop = random_matrix(augmentation, draws), recipe.data.framing == "crop"
    if crop:
        matrix = random_window(augmentation, labels.shape, size, draws) @ matrix
    image, labels = warp(image, labels, matrix, size, mirrored=crop)
    if table is not None:
        image = apply_table(image, table)
    if augmentation.intensity_range:
        image = random_intensities(image, augmentation, draws)
    return image, targets(labels, recipe.network.outputs)


def validation_arrays(
    recipe: Recipe, samples: Sequence[Sample]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """All validation images and maps, not augmented, in order; of crops the one in the middle.

    Returns
    -------
    tuple of (N, S, S, 3) uint8 and (N, S, S, C) float32 in [0, 1]
    """
    size, crop = recipe.data.image_size, recipe.data.framing == "crop"
    images = np.empty((len(samples), size, size, 3), np.uint8)
    maps = np.empty((len(samples), size, size, CHANNELS[recipe.network.outputs]), np.float32)
    tables = _tables(recipe, samples)
    for index, sample in enumerate(samples):
        image, labels = sample.load()
        matrix = window(labels.shape, size) if crop else np.eye(3)
        warped, labels = warp(image, labels, matrix, size, mirrored=crop)
        images[index] = warped if crop else resize(image, size)
        if tables:
            images[index] = apply_table(images[index], tables[index])
        maps[index] = targets(labels, recipe.network.outputs)
    return images, maps


def _tables(recipe: Recipe, samples: Sequence[Sample]) -> list[NDArray[np.uint8]] | None:
    """What normalises each whole image, where the recipe says so."""
    if not recipe.data.normalize:
        return None
    return [normalizing_table(np.ascontiguousarray(sample.load()[0])) for sample in samples]


def _odds(samples: Sequence[Sample], balance: float) -> NDArray[np.float64] | None:
    """How likely each image is drawn: its kind in proportion to its count to the 1 - balance."""
    if not balance:
        return None
    counts = Counter(sample.kind for sample in samples)
    odds = np.array([counts[sample.kind] ** -balance for sample in samples])
    normed: NDArray[np.float64] = odds / odds.sum()
    return normed


@keras.saving.register_keras_serializable("nucleus_unet")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear rise over `warmup_steps`, then constant, or half a cosine to 0 at `last_step`."""

    def __init__(self, peak: float, warmup_steps: int, last_step: int, cosine: bool) -> None:
        self.peak, self.warmup_steps = peak, warmup_steps
        self.last_step, self.cosine = last_step, cosine

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32")
        rise = (step + 1) / max(self.warmup_steps, 1)
        done = (step - self.warmup_steps) / max(self.last_step - self.warmup_steps, 1)
        fall = 0.5 * (1 + keras.ops.cos(np.pi * done)) if self.cosine else 1.0
        return self.peak * keras.ops.minimum(1.0, rise) * keras.ops.where(done > 0, fall, 1.0)

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


class _Journal(keras.callbacks.Callback):
    """Writes down what happens and the state from which training goes on, and stops early.

    The state is that of the model, its optimizer and its metrics, the weights that are kept, and
    the history. It is written after each epoch, and within one every few minutes and when asked to stop.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        validation_images: int,
        folder: Path,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.folder, self.settings = folder, recipe.training
        self.validation_images = validation_images
        self.asked_to_stop = asked_to_stop
        self._model = model
        self._step_started: list[float] = []
        self._epoch_started = self._told_step = 0.0
        self._training_ended: float | None = None
        self.events = EventLog(folder / EVENTS)
        self.events.mend()
        told = {event["epoch"] for event in epochs(self.events.new())}
        self.restore()
        start = {"parameters": model.count_params(), "step": self.step}
        self.events.tell("start", **start, **backend.hardware())
        for epoch in self.history:
            if epoch.epoch not in told:
                self.events.tell("epoch", **asdict(epoch))

    def restore(self) -> None:
        """Go back to the last checkpoint; without any, stay at the start."""
        found = checkpoints.load(self.folder)
        if found.damaged:
            self.events.tell("damaged", files=list(found.damaged), step=found.step)
        self.step, arrays = found.step, found.arrays
        for name, variable in _named_variables(self._model).items() if arrays else ():
            variable.assign(arrays[name])
        self._metrics = [arrays[name] for name in sorted(arrays) if name.startswith("metrics/")]
        self.kept_weights = [arrays[name] for name in sorted(arrays) if name.startswith("kept/")]
        history, self._epoch_s = json.loads(str(arrays.get("history", "[[], 0.0]")))
        self.history = [Epoch(**line) for line in history]
        self._saved = time.monotonic()

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation mean IoU; 0 before any."""
        best = max(self.history, key=lambda epoch: epoch.val_mean_iou, default=None)
        return best.epoch if best else 0

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept."""
        return len(self.history) if self.settings.keep == "last" else self.best_epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or none was better for as long as the recipe allows."""
        done, patience = len(self.history), self.settings.early_stopping_epochs
        return done >= self.settings.epochs or done - self.best_epoch >= (patience or done + 1)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch_started, self._training_ended = time.monotonic() - self._epoch_s, None
        if self._metrics:  # of the part of the epoch that is done
            for variable, value in zip(self._model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)
        self._metrics, self._epoch_s = [], 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # The first two steps compile and fill caches; the next three are timed.
        if len(self._step_started) <= 5:
            self._step_started.append(time.monotonic())
            if len(self._step_started) == 6:
                self._estimate((self._step_started[5] - self._step_started[2]) / 3)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        now = time.monotonic()
        if now - self._told_step > STEP_EVENT_S:
            self._told_step = now
            self.events.tell("step", step=self.step)
        if self.step % self.settings.steps_per_epoch == 0:
            return  # the end of the epoch saves more
        if self.asked_to_stop() or now - self._saved > CHECKPOINT_S:
            backend.synchronize(self._model)
            metrics = {
                f"metrics/{i:04d}": np.asarray(variable)
                for i, variable in enumerate(self._model.metrics_variables)
            }
            self._save(metrics, now - self._epoch_started)

    def on_test_begin(self, logs: Any = None) -> None:
        self._training_ended = time.monotonic()

    def on_test_end(self, logs: Any = None) -> None:
        # What was validated: with a mean of weights not those that training goes on with.
        self._validated = [np.asarray(weight) for weight in self._model.weights]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        settings, now = self.settings, time.monotonic()
        if not np.isfinite(logs["val_loss"]):
            raise NucleusError(
                f"epoch {epoch + 1}: the loss is not a number any more; lower "
                f"training.learning_rate, which is {settings.learning_rate}"
            )
        images = settings.steps_per_epoch * settings.batch_size
        seconds = (self._training_ended or now) - self._epoch_started
        self.history.append(
            Epoch(
                epoch=epoch + 1,
                learning_rate=float(self._model.optimizer.learning_rate),
                seconds=round(now - self._epoch_started, 3),
                images_per_s=round(images / seconds, 3),
                **{name: float(value) for name, value in logs.items()},
            )
        )
        if self.kept_epoch == epoch + 1:
            self.kept_weights = self._validated
        self._model.stop_training = self.finished
        self._save({}, 0.0)
        self.events.tell("epoch", **asdict(self.history[-1]))

    def _save(self, metrics: dict[str, NDArray[Any]], epoch_s: float) -> None:
        """Write a checkpoint, and end here if that was asked for."""
        kept = {f"kept/{i:04d}": weight for i, weight in enumerate(self.kept_weights)}
        state = {name: np.asarray(v) for name, v in _named_variables(self._model).items()}
        history = json.dumps([[asdict(epoch) for epoch in self.history], epoch_s])
        arrays = state | metrics | kept | {"history": np.asarray(history)}
        checkpoints.save(self.folder, self.step, arrays)
        self._saved = time.monotonic()
        if self.asked_to_stop() and not self.finished:
            raise StoppedError(f"stopped after {self.step} steps, from where it goes on")

    def _estimate(self, seconds_per_step: float) -> None:
        # A step is a forward pass and two as costly ones back; validation is the forward pass alone.
        validation_steps = self.validation_images / self.settings.batch_size / 3
        epoch_s = (self.settings.steps_per_epoch + validation_steps) * seconds_per_step
        weights = 4 * self._model.count_params()
        # Of each checkpoint: the weights, the optimizer's variables, those that are kept.
        state = 2 * weights + 4 * sum(
            int(np.prod(v.shape)) for v in self._model.optimizer.variables
        )
        self.events.tell(
            "estimate",
            seconds_per_step=seconds_per_step,
            seconds=(self.settings.epochs - self.step / self.settings.steps_per_epoch) * epoch_s,
            disk_bytes=checkpoints.KEPT * state + weights,
        )


def _optimizer(settings: Training) -> keras.optimizers.Optimizer:
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine" or settings.warmup_steps:
        last_step = settings.epochs * settings.steps_per_epoch
        rate = WarmupSchedule(rate, settings.warmup_steps, last_step, settings.schedule == "cosine")
    ema = {"use_ema": True, "ema_momentum": settings.ema} if settings.ema else {}
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=settings.momentum, **ema)
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(rate, **ema)
    return keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, **ema)


def _segmenter(recipe: Recipe) -> keras.Model:
    size = recipe.data.image_size if recipe.data.framing == "resize" else None
    return build_segmenter(recipe.network, size)


def _named(function: Any, name: str) -> keras.metrics.Metric:
    return keras.metrics.MeanMetricWrapper(function, name=name)


def _named_variables(model: keras.Model) -> dict[str, Any]:
    """All state that training changes: weights, dropout's generators, optimizer."""
    kinds = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{kind}/{index:04d}/{variable.path}": variable
        for kind, variables in kinds.items()
        for index, variable in enumerate(variables)
    }
