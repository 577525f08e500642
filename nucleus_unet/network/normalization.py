"""Intensities made comparable between images, from each whole image alone."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

PERCENTILES = (1.0, 99.7)
DARKEST = 0.01
"""Percent of pixels, and as many of the brightest, that do not say what the ground is."""
LEAST_RANGE = 8.0
"""An image that spans fewer of the 255 grey levels is noise, and is not stretched further."""


def normalizing_table(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each value of each channel becomes: its percentiles 1 and 99.7 go to 0 and 255.

    Where the median is nearer the brightest than the darkest pixels, a few aside, the result is
    inverted, so that nuclei are brighter than the ground in every kind of image of which they cover
    less than half, and more than those few. Pixels of 0 in an image whose median is more are padding
    or dead, and do not count as the darkest.

    Parameters
    ----------
    image : (H, W, 3) uint8
        The whole image, never a piece of it.

    Returns
    -------
    (256, 3) uint8
        For `apply_table`.
    """
    values = np.arange(256)
    counts = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
    limits = [_percentiles(count, PERCENTILES) for count in counts]
    stretched = np.stack(
        [255 * (values - low) / max(high - low, LEAST_RANGE) for low, high in limits], axis=1
    )
    table = np.clip(np.rint(stretched), 0, 255).astype(np.uint8)
    ground = np.sum(counts, axis=0)
    median, bright = _percentiles(ground, (50, 100 - DARKEST))
    if median:
        ground[0] = 0
    (dark,) = _percentiles(ground, (DARKEST,))
    return 255 - table if bright - median < median - dark else table


def _percentiles(counts: NDArray[np.int64], percentiles: Sequence[float]) -> NDArray[np.int64]:
    """Of values 0..255 that occur so many times each."""
    return np.searchsorted(100 * counts.cumsum() / counts.sum(), percentiles)


def apply_table(image: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace the values of an image, or of a piece of it, (H, W, 3) uint8, by its table's."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table[None]), np.uint8)
