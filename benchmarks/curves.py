"""Annotated images at another magnification or brightness, to see what a model makes of them."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Pair = tuple[NDArray[np.uint8], NDArray[Any]]
"""Image, (H, W, 3), and labels, (H, W)."""
DIMMEST = 0.1
DEBRIS = 3


def magnified(pair: Pair, by: float) -> Pair:
    """Enlarge or reduce an image and its labels."""
    if by == 1:
        return pair
    image, labels = pair
    height, width = (max(1, round(by * side)) for side in labels.shape)
    how = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    numbers = cv2.resize(
        labels.astype(np.float32), (width, height), None, 0, 0, cv2.INTER_NEAREST_EXACT
    )
    resized = cv2.resize(image, (width, height), interpolation=how)
    return np.asarray(resized, np.uint8), numbers.astype(np.int32)


def dimmed(pair: Pair, draws: np.random.Generator) -> tuple[Pair, NDArray[np.float64]]:
    """Dim each nucleus of a fluorescence image by a factor of its own, and add bright debris.

    Returns
    -------
    tuple of ((H, W, 3) uint8 and (H, W) int, (n + 1,) float64)
        Image and labels, and the factor of each label, from `DIMMEST` to 1; that of 0 means nothing.
    """
    image, labels = pair
    factors = DIMMEST ** draws.random(int(labels.max(initial=0)) + 1)
    # Light around a nucleus belongs to the nearest nucleus.
    at = distance_transform_edt(labels <= 0, return_distances=False, return_indices=True)
    factor = cv2.GaussianBlur(factors[labels[tuple(at)]], (0, 0), 1)[..., None]
    outside = labels == 0
    dark = np.median(image[outside], axis=0) if outside.any() else image.min((0, 1))
    stretched = (image - dark) * (255 / max(1.0, float((image - dark).max())))
    made = np.clip(dark + stretched * factor, 0, 255)
    diameter = 2 * np.sqrt(np.median(np.bincount(labels[labels > 0])[1:]) / np.pi)
    for _ in range(DEBRIS):
        free = np.argwhere(cv2.erode(outside.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0)
        if len(free):
            row, column = free[draws.integers(len(free))].tolist()
            disc = np.zeros(labels.shape, np.float32)
            cv2.circle(disc, (column, row), max(1, round(diameter / 8)), 1.0, -1)
            spot = cv2.GaussianBlur(disc, (0, 0), 1)[..., None]
            made = made * (1 - spot) + 255 * spot
    return (made.round().astype(np.uint8), labels), factors
