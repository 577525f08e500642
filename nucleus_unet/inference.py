"""From images to probabilities, with a trained network."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet import backend
from nucleus_unet import unet as unet  # registers the layers that a saved model names
from nucleus_unet.augment import resize
from nucleus_unet.instances import connected_components, upsample
from nucleus_unet.recipe import Inference


def predict(
    model: keras.Model, images: Sequence[NDArray[np.uint8]], batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Probability of nucleus at the network's own size, for images of any size.

    Every batch has the same shape, the last one filled up with black: some kernels depend on it, and
    so would the last bits of the result.

    Parameters
    ----------
    model : keras.Model
        As `nucleus_unet.unet.build_segmenter` makes it.
    images : sequence of (H, W, 3) uint8
        May be memory-mapped: each is read when its turn comes.
    batch_size : int

    Yields
    ------
    (S, S) float32 in [0, 1], in the order of `images`
    """
    size = model.input_shape[1]
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        batch = np.zeros((batch_size, size, size, 3), np.uint8)
        for index, image in enumerate(chunk):
            batch[index] = resize(image, size)
        yield from np.asarray(model.predict_on_batch(batch))[: len(chunk), ..., 0]


def write_probabilities(
    model_path: Path, inference: Inference, threads: int, images: Sequence[Path], to: Sequence[Path]
) -> None:
    """Predict prepared images and save one ``.npy`` each; runs in a process set up for it.

    Parameters
    ----------
    model_path : Path
        A ``model.keras``.
    inference : Inference
        The part of the recipe.
    threads : int
        CPU threads inside an operation.
    images, to : sequence of Path
        ``.npy`` files, (H, W, 3) uint8 in and (S, S) float32 out.
    """
    backend.configure(threads)
    model = load_model(model_path)
    mapped = [np.load(path, mmap_mode="r") for path in images]
    for path, probability in zip(to, predict(model, mapped, inference.batch_size), strict=True):
        np.save(path, probability)


def segment(
    model: keras.Model, images: Sequence[NDArray[np.uint8]], inference: Inference
) -> list[NDArray[np.int32]]:
    """Labels at the original size of each image: prediction, upsampling and components in one go."""
    return [
        connected_components(upsample(probability, *image.shape[:2]), inference.cutoff)
        for image, probability in zip(
            images, predict(model, images, inference.batch_size), strict=True
        )
    ]


@functools.lru_cache(maxsize=2)
def load_model(path: Path) -> keras.Model:
    """Read a ``model.keras`` for prediction; it is kept for the next call."""
    return keras.models.load_model(path, compile=False)
