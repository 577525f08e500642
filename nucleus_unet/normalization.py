"""Intensities made comparable between images, from each whole image alone."""

import cv2
import numpy as np
from numpy.typing import NDArray

PERCENTILES = (1.0, 99.7)
GROUND_PERCENTILES = (0.01, 50, 99.99)
LEAST_RANGE = 8.0
"""An image that spans fewer of the 255 grey levels is noise, and is not stretched further."""


def normalizing_table(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each value of each channel becomes: its percentiles 1 and 99.7 go to 0 and 255.

    Where the median is nearer the brightest than the darkest pixels, a few aside, the result is
    inverted, so that nuclei are brighter than the ground in every kind of image of which they cover
    less than half, and more than those few.

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
    limits = [np.searchsorted(100 * c.cumsum() / c.sum(), PERCENTILES) for c in counts]
    stretched = np.stack(
        [255 * (values - low) / max(high - low, LEAST_RANGE) for low, high in limits], axis=1
    )
    table = np.clip(np.rint(stretched), 0, 255).astype(np.uint8)
    total = np.sum(counts, axis=0).cumsum()
    dark, median, bright = np.searchsorted(100 * total / total[-1], GROUND_PERCENTILES)
    return 255 - table if bright - median < median - dark else table


def apply_table(image: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace the values of an image, or of a piece of it, (H, W, 3) uint8, by its table's."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table[None]), np.uint8)
