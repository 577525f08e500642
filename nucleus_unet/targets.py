"""What the network is to predict of annotated nuclei."""

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER_REACH_PX = 2
RAYS, LONGEST_RAY_PX = 16, 64
CHANNELS = {"mask": 1, "nuclei": 3, "centre": 3, "flow": 4, "star": 2 + RAYS}
"""Output channels by ``network.outputs``."""


def targets(labels: NDArray[np.integer], outputs: str) -> NDArray[np.float32]:
    """The maps that the network is to predict.

    Parameters
    ----------
    labels : (H, W) int
    outputs : str
        ``mask``: nucleus or background. ``nuclei``: that, the `borders` between touching nuclei, and
        the `distance` to the nucleus' edge.

    Returns
    -------
    (H, W, 1 or 3) float32 in [0, 1]
    """
    mask = (labels > 0).astype(np.float32)
    if outputs == "mask":
        return mask[..., None]
    if outputs == "star":
        return np.dstack([mask, distance(labels), rays(labels)])
    third = {"nuclei": distance, "centre": centre, "flow": flow}[outputs](labels)
    return np.dstack([mask, borders(labels), third])


def borders(labels: NDArray[np.integer]) -> NDArray[np.float32]:
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
    largest = cv2.dilate(labels.astype(np.float32), square)
    # Background must not be the least, so it is taken for the largest number.
    least = cv2.erode(np.where(labels, labels, 2**24).astype(np.float32), square)
    return ((largest > least) & (largest > 0)).astype(np.float32)


def distance(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Distance to the edge of the pixel's nucleus, over the largest in that nucleus.

    A nucleus that the image's end cuts has no edge there.

    Parameters
    ----------
    labels : (H, W) int

    Returns
    -------
    (H, W) float32 in [0, 1]
        0 on background, 1 in the middle of each nucleus.
    """
    padded = np.pad(labels, 1, mode="edge")
    inner = labels > 0
    for shifted in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        inner &= shifted == labels
    # An outermost pixel is 1 away from what is not its nucleus.
    away = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, 5) + 1
    away[labels == 0] = 0
    furthest = np.ones(int(labels.max(initial=0)) + 1, np.float32)
    np.maximum.at(furthest, labels.ravel(), away.ravel())
    return away / furthest[labels]


def _middles(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Row and column of the deepest pixel of each pixel's nucleus, (H, W, 2); zeros on background."""
    deepest = np.zeros((int(labels.max(initial=0)) + 1, 2), np.float32)
    inside = np.argwhere(distance(labels) == 1)
    deepest[labels[tuple(inside.T)]] = inside
    return deepest[labels]


def centre(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """A Gaussian about the middle of each nucleus, half as wide as the nucleus is deep."""
    places = np.moveaxis(np.indices(labels.shape), 0, -1)
    away = np.linalg.norm(places - _middles(labels), axis=-1)
    nuclei_only = distance(labels)
    nuclei_only[nuclei_only == 0] = 1
    # distance = away from the edge / depth, so that depth is unknown where it is 0: take it anew
    depth = np.ones(int(labels.max(initial=0)) + 1, np.float32)
    padded = np.pad(labels, 1, mode="edge")
    inner = labels > 0
    for shifted in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        inner &= shifted == labels
    np.maximum.at(
        depth,
        labels.ravel(),
        (cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, 5) + 1).ravel(),
    )
    bump = np.exp(-0.5 * (away / (0.5 * depth[labels])) ** 2)
    return np.where(labels > 0, bump, 0).astype(np.float32)


def flow(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Down and right parts of the unit vector to the middle, -1..1 as 0..1, (H, W, 2)."""
    towards = _middles(labels) - np.moveaxis(np.indices(labels.shape), 0, -1)
    length = np.linalg.norm(towards, axis=-1, keepdims=True)
    unit = towards / np.maximum(length, 1)
    return np.where(labels[..., None] > 0, (1 + unit) / 2, 0.5).astype(np.float32)


def rays(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Pixels to the nucleus' end in each direction, over the longest that is told, (H, W, RAYS)."""
    lengths = np.zeros((*labels.shape, RAYS), np.float32)
    y, x = np.nonzero(labels)
    own, height, width = labels[y, x], *labels.shape
    for k in range(RAYS):
        down, right = np.sin(2 * np.pi * k / RAYS), np.cos(2 * np.pi * k / RAYS)
        alive = np.arange(len(y))
        reached = np.full(len(y), 1, np.float32)
        for step in range(1, LONGEST_RAY_PX):
            yy = np.rint(y[alive] + step * down).astype(int)
            xx = np.rint(x[alive] + step * right).astype(int)
            within = (yy >= 0) & (yy < height) & (xx >= 0) & (xx < width)
            alive, yy, xx = alive[within], yy[within], xx[within]
            alive = alive[labels[yy, xx] == own[alive]]
            if not len(alive):
                break
            reached[alive] = step + 1
        lengths[y, x, k] = reached
    return lengths / LONGEST_RAY_PX
