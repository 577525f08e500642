"""From the network's maps to nuclei: back to the original size, cut, and told apart."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import label
from skimage.segmentation import watershed

from nucleus_unet.recipe import Inference
from nucleus_unet.targets import CHANNELS, LONGEST_RAY_PX, RAYS


def nuclei(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.int32]:
    """Labels from the maps that the network predicts, at the image's size.

    Parameters
    ----------
    maps : (H, W, C) float32 in [0, 1]
        One channel, the mask: nuclei are its connected components. Three, as
        `nucleus_unet.targets` gives them: nuclei grow from where the distance is high and no border
        is seen, downhill in distance, until they meet or reach the end of the mask.
    inference : Inference
        The part of the recipe.

    Returns
    -------
    (H, W) int32
        0 background, 1..n one nucleus each.
    """
    mask = maps[..., 0]
    if maps.shape[-1] == 1:
        found = connected_components(mask, inference.cutoff)
    elif maps.shape[-1] == CHANNELS["flow"]:
        found = _by_flow(maps, inference)
    elif maps.shape[-1] == CHANNELS["star"]:
        found = _by_stars(maps, inference)
    else:
        border, height = maps[..., 1], maps[..., 2]
        ground = label(mask > inference.cutoff, connectivity=1)
        seeds = label(
            (height * (1 - border) > inference.seed_cutoff) & (ground > 0), connectivity=1
        )
        # A piece of mask in which nothing is high enough is one nucleus all the same.
        seeded = np.unique(ground[seeds > 0])
        alone = ~np.isin(ground, seeded) & (ground > 0)
        seeds[alone] = seeds.max(initial=0) + ground[alone]
        found = watershed(-height, seeds, mask=ground > 0)
    return _without_small(found, inference.min_area_px)


def _grown(
    seeds: NDArray[np.integer], mask: NDArray[np.float32], cutoff: float
) -> NDArray[np.integer]:
    """Seeds grow over the mask; a piece of it without any is one nucleus."""
    ground = label(mask > cutoff, connectivity=1)
    seeds = np.where(ground > 0, seeds, 0)
    alone = ~np.isin(ground, np.unique(ground[seeds > 0])) & (ground > 0)
    seeds[alone] = seeds.max(initial=0) + ground[alone]
    return watershed(-mask, seeds, mask=ground > 0)


def _by_flow(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.integer]:
    """Pixels that arrive at one place by going 64 px along the directions are one nucleus."""
    ground = maps[..., 0] > inference.cutoff
    step = np.where(ground[..., None], 2 * maps[..., 2:] - 1, 0)
    start = np.argwhere(ground)
    place, last = start.astype(np.float32), np.array(ground.shape) - 1
    for _ in range(64):
        y, x = np.rint(place).astype(int).T
        place = np.clip(place + step[y, x], 0, last)
    y, x = np.rint(place).astype(int).T
    arrived = np.zeros(ground.shape, np.float32)
    np.add.at(arrived, (y, x), 1)
    dense = cv2.boxFilter(arrived, -1, (3, 3), normalize=False) > 40 * inference.seed_cutoff
    sinks = label(cv2.dilate(dense.astype(np.uint8), np.ones((3, 3), np.uint8)), connectivity=2)
    seeds = np.zeros(ground.shape, np.int32)
    seeds[tuple(start.T)] = sinks[y, x]
    return _grown(seeds, maps[..., 0], inference.cutoff)


def _by_stars(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.integer]:
    """Polygons from the likeliest middle on, where none lies yet; what they leave goes to a neighbour."""
    likely = maps[..., 1]
    candidates = np.argwhere((maps[..., 0] > inference.cutoff) & (likely > inference.seed_cutoff))
    order = np.argsort(-likely[tuple(candidates.T)], kind="stable")
    angles = 2 * np.pi * np.arange(RAYS) / RAYS
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    painted = np.zeros(likely.shape, np.int32)
    count = 0
    for y, x in candidates[order]:
        if painted[y, x]:
            continue
        lengths = LONGEST_RAY_PX * maps[y, x, 2:, None] - 1
        corners = np.rint([x, y] + lengths * direction).astype(np.int32)
        low = np.maximum(corners.min(0), 0)
        high = np.minimum(corners.max(0) + 1, likely.shape[::-1])
        piece = np.zeros(np.maximum(high - low, 1)[::-1], np.uint8)
        cv2.fillPoly(piece, [corners - low], 1)
        view = painted[low[1] : low[1] + piece.shape[0], low[0] : low[0] + piece.shape[1]]
        inside = piece[: view.shape[0], : view.shape[1]] > 0
        if (view[inside] > 0).sum() > 0.4 * inside.sum():  # another look at a nucleus that is found
            continue
        count += 1
        view[inside & (view == 0)] = count
    return _grown(painted, maps[..., 0], inference.cutoff)


def _without_small(labels: NDArray[np.integer], min_area_px: int) -> NDArray[np.int32]:
    """The labels of at least so many pixels, numbered anew in the same order."""
    areas = np.bincount(labels.ravel())
    kept = areas >= max(min_area_px, 1)
    kept[0] = False
    numbers = np.where(kept, kept.cumsum(), 0).astype(np.int32)
    return numbers[labels]


def upsample(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize maps bilinearly, from the network's output to an image's own size, where it is another.

    Parameters
    ----------
    maps : float32 array (h, w, C)
        In [0, 1].
    height, width : int
        Size of the result in pixels; smaller than (h, w) is allowed.

    Returns
    -------
    float32 array (height, width, C)
        In [0, 1].
    """
    if maps.shape[:2] == (height, width):
        return maps
    resized: Any = cv2.resize(maps, (width, height), interpolation=cv2.INTER_LINEAR)
    # Interpolation may round past the ends.
    larger: NDArray[np.float32] = np.clip(resized, 0, 1).reshape(height, width, maps.shape[-1])
    return larger


def connected_components(probability: NDArray[np.float32], cutoff: float) -> NDArray[np.int32]:
    """Label the 8-connected components of the pixels above a cutoff, each one nucleus.

    A pixel counts if its probability is greater than the cutoff, not if it is equal. Pixels that
    touch at a corner are one nucleus, one pixel alone is a nucleus, and nothing above the cutoff
    gives background only.

    Parameters
    ----------
    probability : float32 array (H, W)
        In [0, 1].
    cutoff : float
        In [0, 1].

    Returns
    -------
    int32 array (H, W)
        0 background, 1..n the nuclei in the order in which their first pixels come, row by row
        (OpenCV's own numbering goes by blocks of pixels, and may change with its version).

    Examples
    --------
    >>> connected_components(np.array([[0.9, 0.5, 0.1], [0.2, 0.6, 0.1], [0.1, 0.1, 0.1]]), 0.5)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 0]], dtype=int32)
    """
    return label(probability > cutoff, connectivity=2).astype(np.int32, copy=False)
