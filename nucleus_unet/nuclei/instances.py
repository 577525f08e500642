"""From the network's maps to nuclei: back to the original size, cut, and told apart."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import label
from skimage.segmentation import watershed

from nucleus_unet.recipe import Inference

SMALL_PX, LARGE_PX = 200, 800
"""Between these areas the cutoff goes over from that of small to that of large nuclei."""
USUAL_PX = 400
"""An area of which the network sees nuclei well: it was trained on mostly 100 to 600 px."""
UNUSUAL_COST = 0.03
"""Of mean probability, for an area e times as large or as small."""
MOST_COVERED = 1 / 3
"""Share of a nucleus that may be of those that were preferred to it."""
# All were chosen on validation slides, and on microscopes left out of the training.


def separate_nuclei(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.int32]:
    """Labels from the maps that the network predicts, at the image's size.

    Parameters
    ----------
    maps : (H, W, C for each of the scales) float32 in [0, 1]
        One channel, the mask: nuclei are its connected components. Two, mask and borders: nuclei
        grow from where mask times 1 - border is high, downhill, until they meet or reach the end of
        the mask, which is at `large_cutoff` for the large ones. Where several scales found nuclei at
        one place, the likelier one is preferred, and one whose area is usual at its scale; of equals
        that of the earlier scale. The other loses what they share, or all if that is more than a
        third; of the pieces that are left it keeps the largest.
    inference : Inference
        The part of the recipe. The least area is in pixels of each scale, before a nucleus loses any.

    Returns
    -------
    (H, W) int32
        0 background, 1..n one nucleus each, those of an earlier scale first.
    """
    candidates, last = [], 0
    parts = np.split(maps, len(inference.scales), axis=-1)
    for scale, part in zip(inference.scales, parts, strict=True):
        labels = _of_one_scale(part, inference)
        areas = np.maximum(np.bincount(labels.ravel()), 1)
        means = np.bincount(labels.ravel(), part[..., 0].ravel()) / areas
        kept = (areas >= inference.min_area_px / scale**2) & (means > inference.min_confidence)
        worth = means - UNUSUAL_COST * np.abs(np.log(areas * scale**2 / USUAL_PX))
        boxes = find_objects(labels)
        for number in np.flatnonzero(kept[1:]) + 1:
            box = boxes[number - 1]
            candidates.append((-worth[number], last + number, box, labels[box] == number))
        last += len(boxes)
    found = np.zeros(maps.shape[:2], np.int32)
    for _, number, box, pixels in sorted(candidates, key=lambda candidate: candidate[:2]):
        free = pixels & (found[box] == 0)
        covered = pixels.sum() - free.sum()
        if covered <= MOST_COVERED * pixels.sum():
            found[box][largest_piece(free) if covered else free] = number
    present = np.bincount(found.ravel()) > 0
    present[0] = False
    return present.cumsum().astype(np.int32)[found]


def largest_piece(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the 8-connected pieces of (H, W) pixels, one at least, the largest; of equals the first."""
    pieces = label(pixels, connectivity=2)
    largest: NDArray[np.bool_] = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return largest


def _of_one_scale(maps: NDArray[np.float32], inference: Inference) -> NDArray[np.integer]:
    mask = maps[..., 0]
    if maps.shape[-1] == 1:
        return connected_components(mask, inference.cutoff)
    height = mask * (1 - maps[..., 1])
    small = inference.cutoff
    large = inference.large_cutoff or small
    ground = label(mask > min(small, large), connectivity=1)
    seeds = label((height > inference.seed_cutoff) & (ground > 0), connectivity=1)
    # A piece of mask in which nothing is high enough is one nucleus all the same.
    seeded = np.unique(ground[seeds > 0])
    alone = ~np.isin(ground, seeded) & (ground > 0)
    seeds[alone] = seeds.max(initial=0) + ground[alone]
    grown = watershed(-height, seeds, mask=ground > 0)
    areas = np.maximum(np.bincount(grown.ravel()), 1)
    cutoffs = np.interp(np.log(areas), np.log((SMALL_PX, LARGE_PX)), (small, large))
    kept = mask > cutoffs.astype(np.float32)[grown]
    cut: NDArray[np.integer] = label(np.where(kept, grown, 0), connectivity=1)
    return cut


def resize_maps(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
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
