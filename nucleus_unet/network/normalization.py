"""Normalisation: makes the intensities of different images comparable."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

PERCENTILES = (1.0, 99.7)
"""Percentiles of a channel that become 0 and 255."""
DARKEST = 0.01
"""Percent of the darkest and of the brightest pixels that are ignored as outliers."""
LEAST_RANGE = 8.0
"""Smallest range of grey levels that is stretched to 255; a smaller range is only noise."""


def normalizing_table(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the lookup table that normalises an image.

    The percentiles 1 and 99.7 of each channel become 0 and 255. Images with a bright background are
    inverted, so that nuclei are always brighter than the background.

    Parameters
    ----------
    image : (H, W, 3) uint8
        The complete image. A crop would give another table.

    Returns
    -------
    (256, 3) uint8
        New value of each old value, for each channel; the argument of `apply_table`.

    Notes
    -----
    The background is bright if the median is closer to the brightest than to the darkest pixels.

    - The darkest and the brightest 0.01 % of the pixels are ignored.
    - Pixels of value 0 are ignored unless the median is 0: they are padding or dead pixels.
    - The rule holds if nuclei cover less than half of the image, and more than 0.01 % of it.
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
    """Percentiles of the values 0..255, from how often each value occurs."""
    return np.searchsorted(100 * counts.cumsum() / counts.sum(), percentiles)


def apply_table(image: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace the values of an image or of a crop, (H, W, 3) uint8, by those in its table."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table[None]), np.uint8)
