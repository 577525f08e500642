"""What a network learns from: augmented batches by position, and the validation images."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.sample import Sample
from nucleus_unet.network.augment import (
    crop_matrix,
    random_crop_matrix,
    random_matrix,
    random_stain,
    resize_image,
    warp_sample,
)
from nucleus_unet.network.normalization import apply_table, normalizing_table
from nucleus_unet.network.targets import CHANNELS, training_targets
from nucleus_unet.recipe import Recipe

LOADING_THREADS = 2  # one may wait for a file; more wait for one another: `benchmarks/gpu.py load`
BATCHES_AHEAD = 2


def training_batches(
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
        matrix = random_crop_matrix(augmentation, labels.shape, size, draws) @ matrix
    image, labels = warp_sample(image, labels, matrix, size, mirrored=crop)
    if table is not None:
        image = apply_table(image, table)
    if augmentation.stain_range:
        image = random_stain(image, augmentation.stain_range, draws)
    return image, training_targets(labels, recipe.network.outputs)


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
        matrix = crop_matrix(labels.shape, size) if crop else np.eye(3)
        warped, labels = warp_sample(image, labels, matrix, size, mirrored=crop)
        images[index] = warped if crop else resize_image(image, size)
        if tables:
            images[index] = apply_table(images[index], tables[index])
        maps[index] = training_targets(labels, recipe.network.outputs)
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
