"""The imaging kind of an image, told from its pixels alone."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["fluorescence", "bright-field", "stained on white", "stained on colour"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Measured on the Data Science Bowl's training images, where no image lies near a limit: gray ones
# have a spread of 0 and stained ones from 12; the ground of stained ones has up to 15 or from 39.
STAINED_SPREAD = 5.0
COLOURED_GROUND_SPREAD = 25.0
BRIGHT_MEDIAN = 127.0


def imaging_kind(image: NDArray[np.uint8]) -> Kind:
    """Tell fluorescence, unstained bright-field and stained tissue apart.

    The spread of a pixel is its largest channel minus its smallest. An image with a mean spread
    above 5 is stained, on colour if the brighter 40 % of it, its ground, have a median spread above
    25. Of the others the bright ones (median above 127) are bright-field.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB.
    """
    # Every n-th pixel of an image says the same in a fraction of the time.
    step = max(1, round((image.shape[0] * image.shape[1] / 2**14) ** 0.5))
    pixels = image[::step, ::step].reshape(-1, 3)
    spread = pixels.max(1) - pixels.min(1)
    luminance = pixels.mean(1)
    if spread.mean() > STAINED_SPREAD:
        ground = luminance >= np.percentile(luminance, 60)
        tinted = np.median(spread[ground]) > COLOURED_GROUND_SPREAD
        return "stained on colour" if tinted else "stained on white"
    return "bright-field" if np.median(luminance) > BRIGHT_MEDIAN else "fluorescence"
