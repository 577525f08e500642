"""The maps that the network learns to predict, computed from annotated nuclei."""

import cv2
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import IGNORED

BORDER_REACH_PX = 2
"""Nuclei within this distance of a pixel make it a border pixel, if there are at least two."""
CHANNELS = {"mask": 1, "borders": 2}
"""Number of output channels for each value of ``network.outputs``."""


def training_targets(labels: NDArray[np.integer], outputs: str) -> NDArray[np.float32]:
    """Compute the target maps of one image.

    Parameters
    ----------
    labels : (H, W) int
        0 background, 1..n one nucleus each, -1 if nobody annotated the pixel.
    outputs : str
        ``mask``: one map, 1 for nucleus and 0 for background. ``borders``: the same map, and the
        `border_map` between touching nuclei.

    Returns
    -------
    (H, W, 1 or 2) float32 in {0, 1}
        -1 if nobody annotated the pixel.
    """
    ignored, labels = labels < 0, np.maximum(labels, 0)
    maps = [(labels > 0).astype(np.float32)]
    if outputs == "borders":
        maps.append(border_map(labels))
    return np.where(ignored[..., None], np.float32(IGNORED), np.stack(maps, axis=-1))


def border_map(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Mark the pixels that have at least two nuclei within 2 px.

    A border pixel can belong to a nucleus or to the background. The distance is counted along rows
    and columns: the neighbourhood is a square of 5×5 px.

    Parameters
    ----------
    labels : (H, W) int
        0 background, 1..n one nucleus each; values below 2²⁴.

    Returns
    -------
    (H, W) float32 in {0, 1}

    Examples
    --------
    >>> border_map(np.array([[1, 1, 1, 0, 2, 2, 2]]))
    array([[0., 0., 1., 1., 1., 0., 0.]], dtype=float32)
    """
    square = np.ones((2 * BORDER_REACH_PX + 1,) * 2, np.uint8)
    # float32 holds integers up to 2²⁴ exactly; OpenCV takes no integer type above 65,535.
    numbers = labels.astype(np.float32)
    largest = cv2.dilate(numbers, square)
    # Background must not be the smallest value, so it gets the largest one.
    least = cv2.erode(np.where(labels, numbers, np.float32(2**24)), square)
    return ((largest > least) & (largest > 0)).astype(np.float32)
