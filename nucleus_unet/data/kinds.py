"""Classify the imaging kind of an image from its pixels."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["fluorescence", "bright-field", "stained on white", "stained on colour"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# These limits come from the images of the Data Science Bowl. No image is close to one of them: medians
# are at most 52 or at least 131; bright images have spreads of 0 or of at least 79, and their
# backgrounds have spreads of at most 25 or of at least 39.
BRIGHT_MEDIAN = 90.0
STAINED_SPREAD = 30.0
COLOURED_BACKGROUND_SPREAD = 32.0


def imaging_kind(image: NDArray[np.uint8]) -> Kind:
    """Classify an image as fluorescence, unstained bright-field or stained tissue.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB.

    Returns
    -------
    str
        One of `KINDS`.

    Notes
    -----
    The spread of a pixel is its largest channel minus its smallest channel. The first rule that
    applies decides:

    1. ``fluorescence`` if the median luminance is at most 90, whatever the colour.
    2. ``bright-field`` if 99 % of the pixels have a spread of at most 30.
    3. ``stained on colour`` if the background, the brightest 40 % of the pixels, has a median spread
       above 32.
    4. ``stained on white`` if not.

    Examples
    --------
    >>> imaging_kind(np.full((40, 60, 3), 8, np.uint8))
    'fluorescence'
    """
    # A large image is sampled: every n-th pixel gives the same result in less time.
    step = max(1, round((image.shape[0] * image.shape[1] / 2**14) ** 0.5))
    pixels = image[::step, ::step].reshape(-1, 3)
    spread = pixels.max(1) - pixels.min(1)
    luminance = pixels.mean(1)
    if np.median(luminance) <= BRIGHT_MEDIAN:
        return "fluorescence"
    if np.percentile(spread, 99) <= STAINED_SPREAD:
        return "bright-field"
    background = luminance >= np.percentile(luminance, 60)
    tinted = np.median(spread[background]) > COLOURED_BACKGROUND_SPREAD
    return "stained on colour" if tinted else "stained on white"
