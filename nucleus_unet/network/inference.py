"""Prediction: from images of any size to probability maps, with a trained network."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.files import write_atomically
from nucleus_unet.network import backend
from nucleus_unet.network.augment import resize_image
from nucleus_unet.network.ensemble import with_spread
from nucleus_unet.network.normalization import apply_table, normalizing_table
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.network.unet import read_network
from nucleus_unet.nuclei import SPREAD, resize_maps, separate_nuclei
from nucleus_unet.recipe import Data, Inference, Recipe

OVERLAP_PX, BLENDED_PX = 256, 32
"""Least overlap of neighbouring tiles, and the width of the strip in its middle where they are blended.

Each pixel of the strip is at least 112 px away from the edge of both tiles. A network of depth 4 does
not look that far, so both tiles predict the same value.
"""
STEP_PX = 64
"""Sizes and positions of tiles are multiples of this: they can be halved, and few shapes compile."""
FLIPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Steps along y and x: a step of -1 flips the axis."""


def predict_maps(
    model: keras.Model, images: Iterable[NDArray[np.uint8]], recipe: Recipe
) -> Iterator[NDArray[np.float32]]:
    """Predict the maps of images of any size.

    Parameters
    ----------
    model : keras.Model
        A model built by `nucleus_unet.network.unet.build_segmenter` for this recipe.
    images : iterable of (H, W, 3) uint8
        Images. They can be memory-mapped; each is read only when it is predicted.
    recipe : Recipe
        The resolved recipe.

    Yields
    ------
    (S, S, C) or (H, W, scales * C) float32 in [0, 1]
        Maps of each image, in order; C is the number of channels of `model`. (S, S, C), at the size
        of the network, if ``recipe.data.framing`` is ``resize``. (H, W, scales * C), at the size of
        the image and with the C channels of each scale in turn, if it is ``crop``.
    """
    seen = (normalized(image, recipe.data) for image in images)
    if recipe.data.framing == "crop":
        channels, scales = model.output_shape[-1], recipe.inference.scales
        for image in seen:
            height, width = image.shape[:2]
            maps = np.empty((height, width, len(scales), channels), np.float32)
            for index, scale in enumerate(scales):
                enlarged = _scaled(image, recipe.inference.scale * scale)
                scaled = _predict_in_tiles(model, enlarged, channels, recipe.inference)
                maps[:, :, index] = resize_maps(scaled, height, width)
            yield maps.reshape(height, width, -1)
    else:
        yield from _predict_resized(model, seen, recipe.inference)


def normalized(image: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    """Return the image as the network sees it: normalised if ``data.normalize`` is set."""
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
    """Maps at the size of the network; each is the mean over flips and rotations if `flips` is set.

    The last batch is filled up with black images. All batches have the same shape because the last
    bits of a result can depend on the batch size.
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


def _predict_in_tiles(
    model: keras.Model, image: NDArray[np.uint8], channels: int, inference: Inference
) -> NDArray[np.float32]:
    """Maps at the size of the image, predicted in tiles."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % STEP_PX), (0, -width % STEP_PX), (0, 0)), "symmetric")
    rows, columns = (_tiles(length, inference.tile_px) for length in padded.shape[:2])
    maps = np.zeros((*padded.shape[:2], channels), np.float32)
    for (down, share_down), (right, share_right) in itertools.product(rows, columns):
        share = share_down[:, None, None] * share_right[:, None]
        maps[down, right] += share * _predict_tile(model, padded[down, right], inference.flips)
    return maps[:height, :width]


def _tiles(length: int, tile: int) -> list[tuple[slice, NDArray[np.float32]]]:
    """Position of each tile along an axis, and its weights; the weights of all tiles add up to 1."""
    if length <= tile:
        return [(slice(0, length), np.ones(length, np.float32))]
    count = -(-(length - OVERLAP_PX) // (tile - OVERLAP_PX))
    # As many tiles, but no larger than they must be to overlap.
    tile = STEP_PX * -(-(length + (count - 1) * OVERLAP_PX) // (count * STEP_PX))
    # Starts are multiples of STEP_PX: a tile is pooled at the same pixels as the complete image.
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
    return total / (2 * len(FLIPS))


def predict_to_files(
    model_path: Path, recipe: Recipe, images: Sequence[Path], to: Sequence[Path]
) -> None:
    """Predict images from files and save the maps of each one; call this in a new process.

    Parameters
    ----------
    model_path : Path
        Path of a ``model.keras``.
    recipe : Recipe
        The resolved recipe.
    images : sequence of Path
        ``.npy`` files of images, (H, W, 3) uint8.
    to : sequence of Path
        ``.npy`` files to write: the maps from `predict_maps`, one file for each image. A file is
        complete if it exists. If the network is the mean of several, how much they disagree
        is written to a second file for each image, ``.spread``: (h, w, 1) float32, see `with_spread`.
    """
    backend.configure(recipe.training.cpu_threads)
    model = _load_with_spread(model_path)
    mapped = (np.load(path, mmap_mode="r") for path in images)
    channels = CHANNELS[recipe.network.outputs]
    for path, maps in zip(to, predict_maps(model, mapped, recipe), strict=True):
        if model.output_shape[-1] > channels:
            by_scale = maps.reshape(*maps.shape[:2], -1, channels + 1)
            _save(path.with_suffix(SPREAD), by_scale[..., channels:].mean(2))
            maps = by_scale[..., :channels].reshape(*maps.shape[:2], -1)
        _save(path, maps)


def _save(path: Path, array: NDArray[np.float32]) -> None:
    np.save(content := BytesIO(), array)
    write_atomically(path, content.getvalue())


def segment_images(
    model: keras.Model, images: Sequence[NDArray[np.uint8]], recipe: Recipe
) -> list[NDArray[np.int32]]:
    """Predict the labels of images, each at its original size.

    Parameters
    ----------
    model : keras.Model
        A model built by `nucleus_unet.network.unet.build_segmenter` for this recipe.
    images : sequence of (H, W, 3) uint8
        Images.
    recipe : Recipe
        The resolved recipe.

    Returns
    -------
    list of (H, W) int32
        0 background, 1..n one nucleus each.
    """
    return [
        separate_nuclei(resize_maps(maps, *image.shape[:2]), recipe.inference)
        for image, maps in zip(images, predict_maps(model, images, recipe), strict=True)
    ]


@functools.lru_cache(maxsize=2)
def load_model(path: Path) -> keras.Model:
    """Load a network as `read_network` does; the last two stay in memory."""
    return read_network(path)


@functools.lru_cache(maxsize=2)
def _load_with_spread(path: Path) -> keras.Model:
    return with_spread(load_model(path))


def weights_digest(path: Path, threads: int) -> str:
    """Compute the SHA-256 of the weights in a ``model.keras``; call this in a new process.

    Two files with the same weights have different bytes, because a file contains a date. The digest
    covers the name, shape, dtype and values of each weight.

    Parameters
    ----------
    path : Path
        Path of a ``model.keras``.
    threads : int
        Number of CPU threads.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    backend.configure(threads)
    digest = hashlib.sha256()
    for weight in load_model(path).weights:
        array = np.asarray(weight)
        digest.update(f"{weight.path} {array.shape} {array.dtype}\0".encode() + array.tobytes())
    return digest.hexdigest()
