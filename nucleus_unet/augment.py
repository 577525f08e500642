"""Random geometry of an image and its labels, in one composed warp."""

import cv2
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.recipe import Augmentation


def random_matrix(augmentation: Augmentation, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a transform with the ranges and the meaning of Keras' ImageDataGenerator.

    The generator turns, then shifts, then zooms about the image's centre, x and y apart, and flips
    the outcome: one affine map from output to input.

    Parameters
    ----------
    augmentation : Augmentation
        Ranges; see there.
    rng : numpy.random.Generator
        All draws are taken whatever the ranges, so that one range never moves another's draws.

    Returns
    -------
    (3, 3) float64
        Output (x, y, 1) to input (x, y, 1), both with the image from -1/2 to 1/2 on each axis.
    """
    turn, shift_x, shift_y, zoom_x, zoom_y = rng.uniform(-1, 1, 5)
    mirror_x, mirror_y = rng.integers(2, size=2)
    angle = np.deg2rad(turn * augmentation.rotation_range_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shift = np.array(
        [
            [1, 0, shift_x * augmentation.width_shift_range],
            [0, 1, shift_y * augmentation.height_shift_range],
            [0, 0, 1],
        ]
    )
    zoom_x, zoom_y = 1 + augmentation.zoom_range * np.array([zoom_x, zoom_y])
    flip_x = -1 if augmentation.horizontal_flip and mirror_x else 1
    flip_y = -1 if augmentation.vertical_flip and mirror_y else 1
    return rotation @ shift @ np.diag([zoom_x * flip_x, zoom_y * flip_y, 1.0])


def warp(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    matrix: NDArray[np.float64],
    size: int,
) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """Resize and transform an image (bilinear) and its labels (nearest), each in one pass.

    Pixels from outside repeat the border, the fill that ImageDataGenerator has by default.

    Parameters
    ----------
    image : (H, W, 3) uint8
    labels : (H, W) uint16 or int32
    matrix : (3, 3) float64
        Output to input, as `random_matrix` gives it; the identity only resizes.
    size : int
        Side of the square output, in px.

    Returns
    -------
    tuple of (size, size, 3) uint8 and (size, size) in the dtype of `labels`
    """
    height, width = labels.shape
    # The image is turned as the square that the network sees, not as the rectangle it was.
    pixels = _to_pixels(width, height) @ matrix @ np.linalg.inv(_to_pixels(size, size))
    warped, moved = (
        cv2.warpAffine(
            image,
            pixels[:2],
            (size, size),
            flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        cv2.warpAffine(
            labels,
            pixels[:2],
            (size, size),
            flags=cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REPLICATE,
        ),
    )
    return warped.astype(image.dtype, copy=False), moved.astype(labels.dtype, copy=False)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (size, size, 3), bilinear, as `warp` by the identity does."""
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def _to_pixels(width: int, height: int) -> NDArray[np.float64]:
    """Coordinates from -1/2 to 1/2 to pixel centres, of which the first is 0."""
    return np.array(
        [[width, 0, (width - 1) / 2], [0, height, (height - 1) / 2], [0, 0, 1]], dtype=np.float64
    )
