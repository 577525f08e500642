"""Augmented training batches, and the arrays of the validation images."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import Sample
from nucleus_unet.network.augment import (
    crop_matrix,
    dim_nuclei,
    random_crop_matrix,
    random_glow,
    random_matrix,
    random_stain,
    resize_image,
    warp_sample,
)
from nucleus_unet.network.normalization import apply_table, normalizing_table
from nucleus_unet.network.targets import CHANNELS, training_targets
from nucleus_unet.recipe import Recipe

DIMMED = 0.5
"""Share of the fluorescence images in which ``augmentation.dim_range`` dims nuclei."""
LOADING_THREADS = 2
"""Threads that load images. More than two are not faster, see `benchmarks/gpu.py load`."""
BATCHES_AHEAD = 2
"""Batches that are loaded before they are needed."""


def training_batches(
    recipe: Recipe, samples: Sequence[Sample], first_step: int = 0
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Generate the augmented batches from `first_step` to the end of the training, in order.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    samples : sequence of Sample
        The training samples.
    first_step : int
        Number of the first batch, from 0.

    Yields
    ------
    tuple of (N, S, S, 3) uint8 and (N, S, S, C) float32 in [0, 1]
        Images and target maps.

    Notes
    -----
    Every random draw depends only on the seed, the epoch and the position in the epoch. The number of
    threads and a restart therefore change no batch. If ``data.balance`` is 0, every image is used once
    before any image is used again.
    """
    settings = recipe.training
    last_step = settings.epochs * settings.steps_per_epoch
    tables = _tables(recipe, samples)
    odds = _odds(samples, recipe.data.balance)

    def load(step: int, position: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        epoch, step_in_epoch = divmod(step, settings.steps_per_epoch)
        # The leading 1 separates these draws from those of the order, which start with 0.
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
    """Augment one sample.

    Parameters
    ----------
    recipe : Recipe
        The resolved recipe.
    sample : Sample
        The sample.
    table : (256, 3) uint8, optional
        Normalises the image, see `nucleus_unet.network.normalization.normalizing_table`.
    draws : numpy.random.Generator
        Random generator.

    Returns
    -------
    tuple of (S, S, 3) uint8 and (S, S, C) float32 in [0, 1]
        Image and target maps.
    """
    image, labels = sample.load()
    size, augmentation = recipe.data.image_size, recipe.augmentation
    matrix, crop = random_matrix(augmentation, draws), recipe.data.framing == "crop"
    if crop:
        matrix = random_crop_matrix(augmentation, labels.shape, size, draws) @ matrix
    image, labels = warp_sample(image, labels, matrix, size, mirrored=crop)
    if table is not None:
        image = apply_table(image, table)
    fluorescent = augmentation.dim_range and sample.kind == "fluorescence"
    if fluorescent and draws.random() < DIMMED:
        image = random_glow(dim_nuclei(image, labels, augmentation.dim_range, draws), draws)
    if augmentation.stain_range:
        image = random_stain(image, augmentation.stain_range, draws)
    return image, training_targets(labels, recipe.network.outputs)


def validation_arrays(
    recipe: Recipe, samples: Sequence[Sample]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Load all validation images and their target maps, without augmentation.

    If ``data.framing`` is ``crop``, the crop in the middle of each image is used.

    Returns
    -------
    tuple of (N, S, S, 3) uint8 and (N, S, S, C) float32 in [0, 1]
        Images and target maps, in the order of the samples.
    """
    size, crop = recipe.data.image_size, recipe.data.framing == "crop"
    images = np.empty((len(samples), size, size, 3), np.uint8)
    maps = np.empty((len(samples), size, size, CHANNELS[recipe.network.outputs]), np.float32)
    tables = _tables(recipe, samples)
    for index, sample in enumerate(samples):
        image, labels = sample.load()
        matrix = crop_matrix(labels.shape, size) if crop else np.eye(3)
        warped, labels = warp_sample(image, labels, matrix, size, mirrored=crop)
        images[index] = warped if crop else resize_image(image, size)
        if tables:
            images[index] = apply_table(images[index], tables[index])
        maps[index] = training_targets(labels, recipe.network.outputs)
    return images, maps


def _tables(recipe: Recipe, samples: Sequence[Sample]) -> list[NDArray[np.uint8]] | None:
    """Normalising table of each complete image; None if ``data.normalize`` is not set."""
    if not recipe.data.normalize:
        return None
    return [normalizing_table(np.ascontiguousarray(sample.load()[0])) for sample in samples]


def _odds(samples: Sequence[Sample], balance: float) -> NDArray[np.float64] | None:
    """Probability of drawing each image: a kind of n images gets a share like n ** (1 - balance)."""
    if not balance:
        return None
    counts = Counter(sample.kind for sample in samples)
    odds = np.array([counts[sample.kind] ** -balance for sample in samples])
    return odds / odds.sum()
