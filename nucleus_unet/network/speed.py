"""How fast this machine trains and predicts, measured in a few seconds."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from nucleus_unet.data import Sample, draw_synthetic
from nucleus_unet.engine import run_in_worker
from nucleus_unet.network import backend
from nucleus_unet.network.builtin import BUILTIN_NETWORK, builtin_model
from nucleus_unet.recipe import Recipe

WARM_UP = 2
"""First training steps that do not count, because they compile and find batches ready."""
MOST_STEPS, MOST_S = 20, 4.0
"""The measurement of training ends after so many steps or seconds, whichever comes first."""
SLOW_S = 8.0
"""A prediction that takes longer is not repeated."""
PREDICTED_PX = 512
"""Side of the image that is predicted."""


@dataclass(frozen=True)
class Speed:
    """How fast a machine computes with a recipe."""

    device: str
    """What Keras computes on, for example ``cpu:0``."""
    step_s: float
    """Seconds of one training step, with the loading of its images."""
    prediction_s: float
    """Seconds to predict an image of 512×512 pixels with the built-in model."""


def measure_speed(recipe: Recipe) -> Speed:
    """Train for a few steps and predict an image, in a worker process.

    Parameters
    ----------
    recipe : Recipe
        Resolved.
    """
    threads, function = recipe.training.cpu_threads, "nucleus_unet.network.speed:time_network"
    with TemporaryDirectory() as folder:
        speed = run_in_worker(threads, function, recipe, _sample(Path(folder)))
    assert isinstance(speed, Speed)
    return speed


def time_network(recipe: Recipe, sample: Sample) -> Speed:
    """What `measure_speed` measures; call this in a new process."""
    backend.configure_training(recipe.training)
    step_s = _time_training(recipe, sample)
    return Speed(backend.hardware()["device"], step_s, _time_prediction(recipe, sample))


def _time_training(recipe: Recipe, sample: Sample) -> float:
    import keras

    from nucleus_unet.network.batches import training_batches
    from nucleus_unet.network.losses import maps_loss
    from nucleus_unet.network.unet import build_segmenter

    size = recipe.data.image_size if recipe.data.framing == "resize" else None
    model = build_segmenter(recipe.network, size)
    model.compile(optimizer=keras.optimizers.Adam(), loss=maps_loss)
    started = 0.0
    for number, batch in enumerate(training_batches(recipe, [sample]), 1 - WARM_UP):
        model.train_on_batch(*batch)  # returns the loss, so it waits for the result
        if number == 0:
            started = perf_counter()
        seconds = perf_counter() - started
        if number == MOST_STEPS or (number > 0 and seconds > MOST_S):
            break
    return seconds / number


def _time_prediction(recipe: Recipe, sample: Sample) -> float:
    from nucleus_unet.network.inference import load_model, predict_maps

    made, (image, _) = builtin_model().recipe, sample.load()
    made = made.model_copy(update={"training": recipe.training})
    model = load_model(BUILTIN_NETWORK)
    for _ in range(2):  # the first prediction compiles, which hardly counts if it is slow
        started = perf_counter()
        list(predict_maps(model, [image], made))
        seconds = perf_counter() - started
        if seconds > SLOW_S:
            break
    return seconds


def _sample(folder: Path) -> Sample:
    """A drawn image of `PREDICTED_PX`, with its labels."""
    kind = "fluorescence"
    sample = Sample("drawn", folder / "image.npy", folder / "labels.npy", kind)
    image, labels = draw_synthetic(kind, np.random.default_rng(0))
    repeats = -(-PREDICTED_PX // min(labels.shape))
    np.save(sample.image, np.tile(image, (repeats, repeats, 1))[:PREDICTED_PX, :PREDICTED_PX])
    np.save(sample.labels, np.tile(labels, (repeats, repeats))[:PREDICTED_PX, :PREDICTED_PX])
    return sample
