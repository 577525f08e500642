"""Training of one network, from the first step or from the last checkpoint to the end."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from numpy.typing import NDArray

from nucleus_unet.data import Sample
from nucleus_unet.engine import EVENTS, EventLog, interruption
from nucleus_unet.network import backend
from nucleus_unet.network.batches import training_batches, validation_arrays
from nucleus_unet.network.journal import Journal
from nucleus_unet.network.losses import maps_loss, mask_dice
from nucleus_unet.network.metrics import MaskMeanIoU
from nucleus_unet.network.unet import build_segmenter, read_network
from nucleus_unet.recipe import Recipe, Training


def train_network(
    recipe: Recipe,
    training_samples: Sequence[Sample],
    validation_samples: Sequence[Sample],
    folder: Path,
    start_weights: Path | None = None,
) -> None:
    """Train a network; continue from the last checkpoint in `folder` if there is one.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    training_samples, validation_samples : sequence of Sample
        Samples in the order of the split.
    folder : Path
        Folder for the files below; created if missing.
    start_weights : Path, optional
        A ``model.keras`` of the same network. Training starts from its weights.

    Raises
    ------
    NucleusError
        If the validation loss is no longer finite, or if the network does not fit the image size.
    StoppedError
        If the process was asked to stop. A checkpoint is saved first.

    Notes
    -----
    Call this in the main thread of a process of its own. SIGTERM and Ctrl-C take effect after the
    current step. The function writes these files:

    - ``events.jsonl``, one line for each event: ``start``, ``waits``, ``damaged``, ``estimate``,
      ``step``, ``epoch``, ``end``,
    - checkpoints, see `nucleus_unet.network.checkpoints`,
    - at the end ``model.keras``, with the weights of the epoch that the recipe keeps.
    """
    settings = recipe.training
    backend.configure_training(settings)
    folder.mkdir(parents=True, exist_ok=True)
    events = EventLog(folder / EVENTS)
    events.repair()
    with backend.gpu_held(lambda: events.tell("waits")):
        model = _compiled(recipe, start_weights)
        validation = validation_arrays(recipe, validation_samples)
        with interruption.deferred() as asked_to_stop:
            journal = Journal(model, recipe, len(validation_samples), folder, events, asked_to_stop)
            while not journal.finished:
                # An epoch that was interrupted is completed by a `fit` of its own.
                epoch, done = divmod(journal.step, settings.steps_per_epoch)
                if done:  # creates the metrics' variables, which the journal restores
                    model.evaluate(*validation, batch_size=settings.batch_size, steps=1, verbose=0)
                model.fit(
                    training_batches(recipe, training_samples, journal.step),
                    steps_per_epoch=settings.steps_per_epoch - done,
                    epochs=epoch + 1 if done else settings.epochs,
                    initial_epoch=epoch,
                    validation_data=validation,
                    validation_batch_size=settings.batch_size,
                    callbacks=[journal],
                    shuffle=False,
                    verbose=0,
                )
        kept = _segmenter(recipe)
        kept.set_weights(_with_start(journal.kept_weights, start_weights, settings.start_share))
        kept.save(folder / "model.keras")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
        events.tell("end", kept_epoch=journal.kept_epoch, peak_memory_bytes=peak)


def _compiled(recipe: Recipe, start_weights: Path | None) -> keras.Model:
    model = _segmenter(recipe)
    if start_weights:
        model.set_weights(_weights_in(start_weights))
    model.compile(
        optimizer=_optimizer(recipe.training),
        loss=maps_loss,
        metrics=[keras.metrics.MeanMetricWrapper(mask_dice, name="dice"), MaskMeanIoU()],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _weights_in(path: Path) -> list[NDArray[Any]]:
    return list(read_network(path).get_weights())


def _with_start(
    trained: list[NDArray[Any]], start: Path | None, share: float
) -> list[NDArray[Any]]:
    """The mean of the weights before and after a training, in its shares.

    Wortsman et al. 2022 (https://arxiv.org/abs/2109.01903) found that it keeps more of what the first
    model knew, and is also better on the new images.
    """
    if start is None or not share:
        return trained
    return [share * a + (1 - share) * b for a, b in zip(_weights_in(start), trained, strict=True)]


def _optimizer(settings: Training) -> keras.optimizers.Optimizer:
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        last_step = settings.epochs * settings.steps_per_epoch
        rate = keras.optimizers.schedules.CosineDecay(rate, last_step)
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=settings.momentum)
    return keras.optimizers.Adam(rate)


def _segmenter(recipe: Recipe) -> keras.Model:
    size = recipe.data.image_size if recipe.data.framing == "resize" else None
    return build_segmenter(recipe.network, size)
