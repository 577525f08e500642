"""Data augmentation: random geometry of an image and its labels, and random stains."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.recipe import Augmentation

MOST_GLOW = 0.2
"""Largest brightness of a glow, as a share of that of large objects."""


def random_matrix(augmentation: Augmentation, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a random affine transform, as Keras' ImageDataGenerator does.

    The transform rotates, shifts and zooms about the centre of the image, with separate zooms of x
    and y, and then flips.

    Parameters
    ----------
    augmentation : Augmentation
        Ranges of the draws.
    rng : numpy.random.Generator
        Random generator. The same draws are taken for all ranges, so changing one range does not
        change the draws of another.

    Returns
    -------
    (3, 3) float64
        Matrix from output (x, y, 1) to input (x, y, 1). Coordinates go from -1/2 to 1/2 across the
        image on each axis.
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


def crop_matrix(
    shape: tuple[int, ...], size: int, scale: float = 1, place: tuple[float, float] = (0.5, 0.5)
) -> NDArray[np.float64]:
    """Compute the transform that crops a square from an image.

    To augment the crop, multiply: ``crop_matrix(...) @ random_matrix(...)``.

    Parameters
    ----------
    shape : tuple of int
        Height and width of the image in pixels.
    size : int
        Side of the square in output pixels.
    scale : float
        Magnification: output pixels for each pixel of the image.
    place : tuple of two floats in [0, 1]
        Vertical and horizontal position of the square: 0 is the top or left end of the image, 1 the
        bottom or right end, 0.5 the middle. On an axis where the square is larger than the image it
        is always centred.

    Returns
    -------
    (3, 3) float64
        Matrix from (x, y, 1) in the square to (x, y, 1) in the image. Coordinates go from -1/2 to 1/2
        on each axis.
    """
    share_y, share_x = size / scale / shape[0], size / scale / shape[1]
    offset_y, offset_x = (
        (p - 0.5) * max(1 - s, 0) for p, s in zip(place, (share_y, share_x), strict=True)
    )
    return np.array([[share_x, 0, offset_x], [0, share_y, offset_y], [0, 0, 1]])


def random_crop_matrix(
    augmentation: Augmentation, shape: tuple[int, ...], size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a `crop_matrix`: a uniform place, and a log-uniform scale in ``scale_range``."""
    low, high = np.log(augmentation.scale_range)
    down, right, scale = rng.random(3)
    return crop_matrix(shape, size, np.exp(low + scale * (high - low)), (down, right))


def random_stain(
    image: NDArray[np.uint8], stain_range: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Recolour an image at random, as if it had another stain.

    Each channel gets its own random gamma, contrast and brightness. In half of the cases the channels
    are also mixed.

    Parameters
    ----------
    image : (S, S, 3) uint8
        The image; it is not changed.
    stain_range : float
        Strength of all changes; 0 leaves the image as it is.
    rng : numpy.random.Generator
        Random generator.

    Returns
    -------
    (S, S, 3) uint8
    """
    draws = stain_range * rng.uniform(-1, 1, (3, 3))
    mixing, mixed = rng.uniform(-1, 1, (3, 3)), rng.random() < 0.5
    gamma, contrast, brightness = np.exp(draws[:, 0]), np.exp(0.6 * draws[:, 1]), 0.2 * draws[:, 2]
    values = np.arange(256)[:, None] / 255
    table = (values**gamma - 0.5) * contrast + 0.5 + brightness
    changed: Any = cv2.LUT(image, np.clip(np.rint(255 * table), 0, 255).astype(np.uint8)[None])
    if mixed:
        matrix = np.eye(3) + stain_range * mixing
        changed = cv2.transform(changed, matrix / matrix.sum(1, keepdims=True))
    return np.asarray(changed, np.uint8)


def dim_nuclei(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    dim_range: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Dim each nucleus by a random factor of its own, and add up to three spots of debris.

    Parameters
    ----------
    image : (S, S, 3) uint8
        The image; it is not changed.
    labels : (S, S) int
        0 background, every positive value one nucleus.
    dim_range : float in [0, 1)
        The factors lie between ``1 - dim_range`` and 1, with an even distribution of their logarithms.
    rng : numpy.random.Generator
        Random generator.

    Returns
    -------
    (S, S, 3) uint8

    Notes
    -----
    This is for fluorescence. The light around a nucleus is dimmed like the nearest nucleus; the median
    of the pixels outside all nuclei stays as it is. Debris have the largest brightness, 255, and are 3
    or 5 px wide, smaller than nearly all nuclei.
    """
    inside, spots = labels > 0, rng.integers(4)
    if not inside.any() or inside.all():
        return image
    factors = (1 - dim_range) ** rng.random(int(labels.max()) + 1)
    background = (~inside).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(
        background, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    factor_of = np.ones(int(nearest.max()) + 1)
    factor_of[nearest[inside]] = factors[labels[inside]]
    factor = cv2.GaussianBlur(factor_of[nearest], (0, 0), 1)[..., None]
    ground = np.median(image[~inside], axis=0)
    changed = ground + (image - ground) * factor
    size = image.shape[0]
    for row, column, radius in rng.integers((0, 0, 1), (size, size, 3), (spots, 3)):
        disc: NDArray[Any] = np.zeros(labels.shape, np.float32)
        cv2.circle(disc, (int(column), int(row)), int(radius), 1.0, -1)
        spot = np.where(inside, 0, cv2.GaussianBlur(disc, (0, 0), 1))[..., None]
        changed = changed * (1 - spot) + 255 * spot
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def random_glow(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add a glow around what is bright, as thick specimens and lenses do.

    Parameters
    ----------
    image : (S, S, 3) uint8
        An image with a dark background; it is not changed.
    rng : numpy.random.Generator
        Random generator.

    Returns
    -------
    (S, S, 3) uint8
        The image, and what is brighter than its median, blurred by S/32 to S/8 and dimmed to at most
        `MOST_GLOW`.
    """
    reach, strength = image.shape[0] * rng.uniform(1 / 32, 1 / 8), rng.uniform(0, MOST_GLOW)
    bright = np.maximum(image - np.median(image, axis=(0, 1)).astype(np.float32), 0)
    glow = strength * cv2.GaussianBlur(bright, (0, 0), reach)
    return np.clip(np.rint(image + glow), 0, 255).astype(np.uint8)


def warp_sample(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    matrix: NDArray[np.float64],
    size: int,
    *,
    mirrored: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """Resize and transform an image and its labels, each in one pass.

    The image is interpolated bilinearly; labels take the value of the nearest pixel.

    Parameters
    ----------
    image : (H, W, 3) uint8
        The image.
    labels : (H, W) uint16 or int32
        The labels of the image.
    matrix : (3, 3) float64
        Matrix from output to input, as `random_matrix` returns it. The identity only resizes.
    size : int
        Side of the square output in pixels.
    mirrored : bool
        Fill for pixels outside the image: True mirrors the image, False repeats its border, which is
        the default of ImageDataGenerator.

    Returns
    -------
    tuple of (size, size, 3) uint8 and (size, size) in the dtype of `labels`
    """
    height, width = labels.shape
    # Rotate the square that the network sees, not the rectangular image.
    pixels = _to_pixels(width, height) @ matrix @ np.linalg.inv(_to_pixels(size, size))
    border = cv2.BORDER_REFLECT_101 if mirrored else cv2.BORDER_REPLICATE
    warped, moved = (
        cv2.warpAffine(
            array, pixels[:2], (size, size), flags=cv2.WARP_INVERSE_MAP | how, borderMode=border
        )
        for array, how in ((image, cv2.INTER_LINEAR), (labels, cv2.INTER_NEAREST))
    )
    return warped.astype(image.dtype, copy=False), moved.astype(labels.dtype, copy=False)


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (size, size, 3), bilinearly; `warp_sample` rounds differently."""
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def _to_pixels(width: int, height: int) -> NDArray[np.float64]:
    """Matrix from coordinates in -1/2..1/2 to pixels; the centre of the first pixel is 0."""
    return np.array(
        [[width, 0, (width - 1) / 2], [0, height, (height - 1) / 2], [0, 0, 1]], dtype=np.float64
    )
