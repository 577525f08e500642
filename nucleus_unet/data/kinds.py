"""The imaging kind of an image, told from its pixels alone."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["fluorescence", "bright-field", "stained on white", "stained on colour"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Measured on the Data Science Bowl's images, of which none lies near a limit: medians are up to 52
# or from 131; bright ones have spreads of 0 or from 79, on a ground of up to 25 or from 39.
BRIGHT_MEDIAN = 90.0
STAINED_SPREAD = 30.0
COLOURED_GROUND_SPREAD = 32.0


def imaging_kind(image: NDArray[np.uint8]) -> Kind:
    """Tell fluorescence, unstained bright-field and stained tissue apart.

    A dark image (median luminance up to 90) is fluorescence, whatever its colour. The spread of a
    pixel is its largest channel minus its smallest; a bright image is bright-field if 99 % of it
    have a spread up to 30. Others are stained, on colour if the brighter 40 % of them, the ground,
    have a median spread above 32.

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
    if np.median(luminance) <= BRIGHT_MEDIAN:
        return "fluorescence"
    if np.percentile(spread, 99) <= STAINED_SPREAD:
        return "bright-field"
    ground = luminance >= np.percentile(luminance, 60)
    tinted = np.median(spread[ground]) > COLOURED_GROUND_SPREAD
    return "stained on colour" if tinted else "stained on white"
