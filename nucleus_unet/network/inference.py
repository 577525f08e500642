"""From images to probabilities, with a trained network."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.network import backend
from nucleus_unet.network import unet as unet
from nucleus_unet.network.augment import resize_image
from nucleus_unet.network.normalization import apply_table, normalizing_table
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.nuclei.instances import resize_maps, separate_nuclei
from nucleus_unet.recipe import Data, Inference, Recipe

OVERLAP_PX, BLENDED_PX = 256, 32
"""Of neighbouring tiles, and the part in the middle over which one goes over into the other.

A pixel there has 112 px on all sides in either tile, more than a network of depth 4 looks at: both say
the same.
"""
STEP_PX = 64
"""Sides and places of tiles are multiples, so that they can be halved and few shapes are compiled."""
FLIPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def predict_maps(
    model: keras.Model, images: Iterable[NDArray[np.uint8]], recipe: Recipe
) -> Iterator[NDArray[np.float32]]:
    """The network's maps of images of any size.

    Parameters
    ----------
    model : keras.Model
        As `nucleus_unet.network.unet.build_segmenter` makes it for this recipe.
    images : iterable of (H, W, 3) uint8
        May be memory-mapped: each is read when its turn comes.
    recipe : Recipe
        Resolved.

    Yields
    ------
    (S, S, C) float32 in [0, 1], or where the recipe trains on crops (H, W, C for each scale); in
    order
    """
    seen = (normalized(image, recipe.data) for image in images)
    if recipe.data.framing == "crop":
        channels, scales = CHANNELS[recipe.network.outputs], recipe.inference.scales
        for image in seen:
            height, width = image.shape[:2]
            maps = np.empty((height, width, len(scales), channels), np.float32)
            for place, by in enumerate(scales):
                scaled = _predict_whole(model, _scaled(image, by), channels, recipe.inference)
                maps[:, :, place] = resize_maps(scaled, height, width)
            yield maps.reshape(height, width, -1)
    else:
        yield from _predict_resized(model, seen, recipe.inference)


def normalized(image: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    """The image as the network sees it: normalised where the recipe says so."""
    return apply_table(image, normalizing_table(image)) if data.normalize else image


def _scaled(image: NDArray[np.uint8], by: float) -> NDArray[np.uint8]:
    if by == 1:
        return image
    height, width = (max(1, round(by * side)) for side in image.shape[:2])
    how = cv2.INTER_AREA if by < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def _predict_resized(
    model: keras.Model, images: Iterator[NDArray[np.uint8]], inference: Inference
) -> Iterator[NDArray[np.float32]]:
    """Maps at the network's own size, each the mean over its flips and turns where asked.

    Every batch has the same shape, the last one filled up with black: some kernels depend on it, and
    so would the last bits of the result.
    """
    size = model.input_shape[1]
    resized = (resize_image(image, size) for image in images)
    if inference.flips:
        yield from (_predict_tile(model, image, flips=True) for image in resized)
        return
    while chunk := list(itertools.islice(resized, inference.batch_size)):
        batch = np.zeros((inference.batch_size, size, size, 3), np.uint8)
        batch[: len(chunk)] = chunk
        yield from np.asarray(model.predict_on_batch(batch))[: len(chunk)]


def _predict_whole(
    model: keras.Model, image: NDArray[np.uint8], channels: int, inference: Inference
) -> NDArray[np.float32]:
    """Maps at the image's size, tile by tile, each the mean over its flips and turns."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % STEP_PX), (0, -width % STEP_PX), (0, 0)), "symmetric")
    rows, columns = (_tiles(length, inference.tile_px) for length in padded.shape[:2])
    maps = np.zeros((*padded.shape[:2], channels), np.float32)
    for (down, share_down), (right, share_right) in itertools.product(rows, columns):
        share = share_down[:, None, None] * share_right[:, None]
        maps[down, right] += share * _predict_tile(model, padded[down, right], inference.flips)
    return maps[:height, :width]


def _tiles(length: int, tile: int) -> list[tuple[slice, NDArray[np.float32]]]:
    """Where tiles lie along an axis, and what each counts there; together 1 everywhere."""
    if length <= tile:
        return [(slice(0, length), np.ones(length, np.float32))]
    count = -(-(length - OVERLAP_PX) // (tile - OVERLAP_PX))
    # Where the network halves its maps it does so at multiples, in each tile as in the whole.
    last = (length - tile) // STEP_PX
    starts = [STEP_PX * round(k * last / (count - 1)) for k in range(count)]
    places = [slice(start, start + tile) for start in starts]
    outer = (OVERLAP_PX - BLENDED_PX) / 2
    rise = np.clip((np.arange(tile) - outer + 0.5) / BLENDED_PX, 0, 1).astype(np.float32)
    shares = [
        (rise if place.start > 0 else 1)
        * (rise[::-1] if place.stop < length else np.ones_like(rise))
        for place in places
    ]
    total = np.zeros(length, np.float32)
    for place, share in zip(places, shares, strict=True):
        total[place] += share
    return [(place, share / total[place]) for place, share in zip(places, shares, strict=True)]


def _predict_tile(model: keras.Model, tile: NDArray[np.uint8], flips: bool) -> NDArray[np.float32]:
    if not flips:
        return np.asarray(model.predict_on_batch(tile[None]))[0]
    total: Any = 0
    for turned in (False, True):
        square = tile.transpose(1, 0, 2) if turned else tile
        batch = np.stack([square[::y, ::x] for y, x in FLIPS])
        maps = np.asarray(model.predict_on_batch(batch))
        back = sum(m[::y, ::x] for m, (y, x) in zip(maps, FLIPS, strict=True))
        total = total + (back.transpose(1, 0, 2) if turned else back)
    mean: NDArray[np.float32] = total / (2 * len(FLIPS))
    return mean


def predict_to_files(
    model_path: Path, recipe: Recipe, images: Sequence[Path], to: Sequence[Path]
) -> None:
    """Predict prepared images and save one ``.npy`` each; runs in a process set up for it.

    Parameters
    ----------
    model_path : Path
        A ``model.keras``.
    recipe : Recipe
        Resolved.
    images, to : sequence of Path
        ``.npy`` files, (H, W, 3) uint8 in, and out what `predict_maps` gives.
    """
    backend.configure(recipe.training.cpu_threads)
    model = load_model(model_path)
    mapped = (np.load(path, mmap_mode="r") for path in images)
    for path, maps in zip(to, predict_maps(model, mapped, recipe), strict=True):
        np.save(path, maps)


def segment_images(
    model: keras.Model, images: Sequence[NDArray[np.uint8]], recipe: Recipe
) -> list[NDArray[np.int32]]:
    """Labels at the original size of each image: prediction, upsampling and nuclei in one go."""
    return [
        separate_nuclei(resize_maps(maps, *image.shape[:2]), recipe.inference)
        for image, maps in zip(images, predict_maps(model, images, recipe), strict=True)
    ]


@functools.lru_cache(maxsize=2)
def load_model(path: Path) -> keras.Model:
    """Read a ``model.keras`` for prediction; it is kept for the next call."""
    return keras.models.load_model(path, compile=False)


def weights_digest(path: Path, threads: int) -> str:
    """SHA-256 over the named arrays of a ``model.keras``, which itself holds a date.

    Runs in a process set up for so many CPU threads, as `predict_to_files` does.
    """
    backend.configure(threads)
    digest = hashlib.sha256()
    for weight in load_model(path).weights:
        array = np.asarray(weight)
        digest.update(f"{weight.path} {array.shape} {array.dtype}\0".encode() + array.tobytes())
    return digest.hexdigest()
