"""From probabilities to nuclei: back to the original size, cut, and told apart."""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import label


def upsample(probability: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize a probability map bilinearly, as the network's output to an image's own size.

    Parameters
    ----------
    probability : float32 array (h, w)
        In [0, 1].
    height, width : int
        Size of the result in pixels; smaller than (h, w) is allowed.

    Returns
    -------
    float32 array (height, width)
        In [0, 1].
    """
    resized = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(resized, 0, 1)  # interpolation may round past the ends


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
