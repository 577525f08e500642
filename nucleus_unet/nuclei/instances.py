"""From the network's maps to labelled nuclei: resize the maps, cut them off, separate nuclei."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects
from skimage.measure import label
from skimage.segmentation import expand_labels, find_boundaries, watershed

from nucleus_unet.recipe import Inference

USUAL_PX = 400
"""Area that the network segments well: most nuclei in its training have 100 to 600 px."""
FAINT = 0.1
"""Probability, and difference of probabilities, below which a pixel is background."""
SPREAD = ".spread"
"""Suffix of the file, next to the maps of an image, with the disagreement of the networks."""
MOST_COVERED = 1 / 3
"""Largest share of a nucleus that nuclei of higher rank may cover."""


def separate_nuclei(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.int32]:
    """The labels of `rated_nuclei`, (H, W) int32."""
    return rated_nuclei(maps, inference)[0]


def rated_nuclei(
    maps: NDArray[np.float32], inference: Inference
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Separate the nuclei in the maps of one image, and say how sure each is.

    Parameters
    ----------
    maps : (H, W, scales * C) float32 in [0, 1]
        The network's maps at the size of the image, the C channels of each scale in turn. C is 1 for
        the mask alone, 2 for mask and borders.
    inference : Inference
        The recipe's ``inference`` part. ``min_area_px`` is in pixels of each scale, and is compared
        with the area before nuclei of other scales take pixels away.

    Returns
    -------
    tuple of (H, W) int32 and (n,) float32
        The labels: 0 background, 1..n one nucleus each, nuclei of earlier scales first. And the
        confidence of each nucleus, in [0, 1]: its mean probability at the scale at which it was found,
        multiplied by its `solidity`, because nuclei are convex.

    Notes
    -----
    At each scale:

    - With one channel, the nuclei are the connected components of the mask above ``cutoff``.
    - With two channels, nuclei are the basins of a watershed of mask * (1 - border). It starts from
      seeds above ``seed_cutoff`` and ends at the edge of the mask, the pixels above ``cutoff``. A part
      of the mask without a seed is one nucleus.
    - Nuclei with too small an area or confidence are dropped.

    If nuclei of several scales overlap, the nucleus of higher confidence keeps the shared pixels; of
    equal nuclei the one of the earlier scale. The other nucleus keeps the largest piece of its remaining
    pixels, or is dropped if it lost more than a third of its pixels.

    With two channels, background that a nucleus encloses becomes part of it: nuclei have no holes, but
    coarse chromatin can look like one.

    Finally ``grow_px`` moves all outlines. Of a nucleus that shrinks to several pieces, the largest
    stays.
    """
    candidates, last = [], 0
    parts = np.split(maps, len(inference.scales), axis=-1)
    for part, relative in zip(parts, inference.scales, strict=True):
        scale = inference.scale * relative
        labels = _of_one_scale(part, inference)
        areas = np.maximum(np.bincount(labels.ravel()), 1)
        means = np.bincount(labels.ravel(), part[..., 0].ravel()) / areas
        kept = (areas >= inference.min_area_px / scale**2) & (means > inference.min_confidence)
        boxes = find_objects(labels)
        for number in np.flatnonzero(kept[1:]) + 1:
            pixels = labels[box := boxes[number - 1]] == number
            confidence = float(means[number]) * solidity(pixels)
            if confidence > inference.min_confidence:
                candidates.append((-confidence, last + number, box, pixels))
        last += len(boxes)
    found, rated = np.zeros(maps.shape[:2], np.int32), np.zeros(last + 1, np.float32)
    for negative, number, box, pixels in sorted(candidates, key=lambda candidate: candidate[:2]):
        rated[number] = -negative
        free = pixels & (found[box] == 0)
        covered = pixels.sum() - free.sum()
        if covered <= MOST_COVERED * pixels.sum():
            found[box][largest_piece(free) if covered else free] = number
    if parts[0].shape[-1] > 1:
        _fill_holes(found)
    if inference.grow_px:
        found = _grown(found, inference.grow_px / inference.scale)
    present = np.bincount(found.ravel()) > 0
    present[0] = False
    numbers = np.flatnonzero(present)
    return present.cumsum().astype(np.int32)[found], rated[numbers]


def solidity(pixels: NDArray[np.bool_]) -> float:
    """How convex a mask is: its area divided by that of its convex hull.

    Parameters
    ----------
    pixels : (H, W) bool
        A mask with at least one true pixel, in one piece.

    Returns
    -------
    float
        In (0, 1]. The area of the hull is that of the hull of the pixel centres, plus half its
        circumference, plus 1: small nuclei get a little less than larger ones of the same shape.

    Examples
    --------
    >>> solidity(np.ones((3, 4), bool))
    1.0
    >>> solidity(np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1]], bool)).__round__(2)
    0.78
    """
    outlines, _ = cv2.findContours(
        pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    hull = cv2.convexHull(np.concatenate(outlines))
    return float(pixels.sum() / (cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1))


def largest_piece(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the largest 8-connected piece of a mask; of equal pieces the first.

    Parameters
    ----------
    pixels : (H, W) bool
        A mask with at least one true pixel.

    Returns
    -------
    (H, W) bool
    """
    pieces = label(pixels, connectivity=2)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()


def _fill_holes(labels: NDArray[np.int32]) -> None:
    for number, box in enumerate(find_objects(labels), 1):
        if box:
            inside = binary_fill_holes(labels[box] == number) & (labels[box] == 0)
            labels[box][inside] = number


def _grown(labels: NDArray[np.int32], by_px: float) -> NDArray[np.int32]:
    """Move the outlines of nuclei outwards, or inwards if `by_px` is negative."""
    if by_px > 0:
        return np.asarray(expand_labels(labels, by_px), np.int32)
    edges = find_boundaries(labels, mode="inner", connectivity=1)  # not those of the image
    left = np.where(distance_transform_edt(~edges) > -by_px - 1, labels, 0)
    for number, box in enumerate(find_objects(left), 1):
        if box and (own := left[box] == number).any():
            left[box][own & ~largest_piece(own)] = 0
    return left


def _of_one_scale(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.integer]:
    mask = maps[..., 0]
    if maps.shape[-1] == 1:
        return connected_components(mask, inference.cutoff)
    interior = mask * (1 - maps[..., 1])
    mask_parts = label(mask > inference.cutoff, connectivity=1)
    seeds = label((interior > inference.seed_cutoff) & (mask_parts > 0), connectivity=1)
    # A part of the mask without a seed is one nucleus.
    seeded = np.unique(mask_parts[seeds > 0])
    alone = ~np.isin(mask_parts, seeded) & (mask_parts > 0)
    seeds[alone] = seeds.max(initial=0) + mask_parts[alone]
    return np.asarray(watershed(-interior, seeds, mask=mask_parts > 0))


def mean_spread(
    labels: NDArray[np.int32],
    maps: NDArray[np.float32],
    spread: NDArray[np.float32],
    inference: Inference,
) -> list[float]:
    """How much the networks of a mean disagree on an image, and on each of its nuclei.

    Parameters
    ----------
    labels : (H, W) int32
        0 background, 1..n one nucleus each.
    maps : (H, W, scales * C) float32 in [0, 1]
        As for `rated_nuclei`.
    spread : (H, W) float32
        Standard deviation, over the networks, of the probability of a nucleus.
    inference : Inference
        The recipe's ``inference`` part.

    Returns
    -------
    list of float
        n + 1 numbers. First that of the image: the sum of its spread divided by that of its
        probability, so that a nucleus that only some networks see counts. Both sums are over pixels
        where one of the two is above `FAINT`, and the area of a usual nucleus is added to the second,
        so that specks and an empty background do not count. Then the mean spread of each nucleus.
    """
    channels = maps.shape[-1] // len(inference.scales)
    probability = maps[..., ::channels].mean(-1)
    seen = (probability > FAINT) | (spread > FAINT)
    unsure, sure = (float(array[seen].sum(dtype=np.float64)) for array in (spread, probability))
    areas = np.bincount(labels.ravel())[1:]
    nuclei = np.bincount(labels.ravel(), spread.ravel())[1:] / np.maximum(areas, 1)
    return [round(value, 5) for value in (unsure / (sure + USUAL_PX), *nuclei.tolist())]


def resize_maps(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize maps bilinearly to the size of an image.

    Parameters
    ----------
    maps : (h, w, C) float32 in [0, 1]
        The network's maps.
    height, width : int
        Size of the result in pixels. It can be smaller than (h, w).

    Returns
    -------
    (height, width, C) float32 in [0, 1]
        The resized maps; `maps` itself if it already has this size.
    """
    if maps.shape[:2] == (height, width):
        return maps
    resized: Any = cv2.resize(maps, (width, height), interpolation=cv2.INTER_LINEAR)
    # Rounding can take interpolated values out of [0, 1].
    return np.clip(resized, 0, 1).reshape(height, width, maps.shape[-1])


def connected_components(probability: NDArray[np.float32], cutoff: float) -> NDArray[np.int32]:
    """Label the connected components of the pixels above a cutoff.

    - A pixel belongs to a nucleus if its probability is greater than the cutoff, not if it is equal.
    - Pixels that touch only at a corner are connected.
    - A single pixel is a nucleus.
    - If no pixel is above the cutoff, all labels are 0.

    Parameters
    ----------
    probability : (H, W) float32 in [0, 1]
        Probability that a pixel belongs to a nucleus.
    cutoff : float
        Cutoff in [0, 1].

    Returns
    -------
    (H, W) int32
        0 background, 1..n one nucleus each, numbered row by row in the order of their first pixels.
        (OpenCV numbers them in another order, which may change with its version.)

    Examples
    --------
    >>> connected_components(np.array([[0.9, 0.5, 0.1], [0.2, 0.6, 0.1], [0.1, 0.1, 0.1]]), 0.5)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 0]], dtype=int32)
    """
    return label(probability > cutoff, connectivity=2).astype(np.int32, copy=False)
