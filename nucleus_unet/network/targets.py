"""What the network is to predict of annotated nuclei."""

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER_REACH_PX = 2
CHANNELS = {"mask": 1, "borders": 2}
"""Output channels by ``network.outputs``."""


def training_targets(labels: NDArray[np.integer], outputs: str) -> NDArray[np.float32]:
    """The maps that the network is to predict.

    Parameters
    ----------
    labels : (H, W) int
    outputs : str
        ``mask``: nucleus or background. ``borders``: that, and the `border_map` between touching nuclei.

    Returns
    -------
    (H, W, 1 or 2) float32 in {0, 1}
    """
    mask = (labels > 0).astype(np.float32)
    if outputs == "mask":
        return mask[..., None]
    return np.stack([mask, border_map(labels)], axis=-1)


def border_map(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """1 where two nuclei are within 2 px, whether the pixel is theirs or background between them.

    Parameters
    ----------
    labels : (H, W) int, below 2²⁴

    Returns
    -------
    (H, W) float32 in {0, 1}
    """
    square = np.ones((2 * BORDER_REACH_PX + 1,) * 2, np.uint8)
    # float32 holds whole numbers up to 2²⁴, and is what OpenCV takes beyond 65,535.
    numbers = labels.astype(np.float32)
    largest = cv2.dilate(numbers, square)
    # Background must not be the least, so it is taken for the largest number.
    least = cv2.erode(np.where(labels, numbers, np.float32(2**24)), square)
    return ((largest > least) & (largest > 0)).astype(np.float32)
