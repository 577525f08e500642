"""Whether new images look like those that a model was trained on."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nucleus_unet.data.kinds import imaging_kind
from nucleus_unet.data.prepared import Labels, load_labels
from nucleus_unet.data.split import Split
from nucleus_unet.errors import NucleusError

LEAST_CONTRAST = 8
"""Range of grey levels below which an image shows little more than noise, as in normalisation."""
LEAST_SIGNAL = 10
"""Range of grey levels, in units of the noise, below which little can be seen.

Images of more than 8 bits are stretched to all grey levels, so that noise alone looks like contrast. An
image of noise alone has 0.7.
"""
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
"""Takes away edges and slopes, and keeps the standard deviation of noise."""
LEAST_NUCLEI = 3
"""With fewer nuclei their usual size is not known."""
MARGIN = 1.2
"""How far above the smallest nuclei of the training those of an image must lie to be left as they are.

Small nuclei gain much if they are enlarged, and large ones lose detail if they are reduced.
"""


class TrainingImages(BaseModel):
    """What the training images of a model look like."""

    model_config = ConfigDict(frozen=True)

    kinds: dict[str, int]
    """Number of images of each imaging kind."""
    diameters_px: tuple[float, float, float]
    """Percentiles 5, 50 and 95 of the diameters of the nuclei, as of a circle of the same area."""


def describe_training(split: Split, labels: Labels, store: Path) -> TrainingImages:
    """Describe the training side of a split.

    Parameters
    ----------
    split : Split
    labels : Labels
        The labels of its images. Their arrays are in the folder `store`.
    """
    kinds = {image.id: image.kind for image in split.training}
    loaded = (load_labels(store, entry) for entry in labels.entries if entry.id in kinds)
    areas = np.concatenate([np.bincount(one[one > 0].ravel())[1:] for one in loaded])
    low, middle, high = np.percentile(2 * np.sqrt(areas / np.pi), (5, 50, 95)).round(1).tolist()
    return TrainingImages(kinds=Counter(kinds.values()), diameters_px=(low, middle, high))


def scale_for(diameter_px: float, trained_on: TrainingImages | None) -> float:
    """By how much to enlarge images so that nuclei get the usual diameter of a model's training.

    Parameters
    ----------
    diameter_px : float
        Usual diameter of the nuclei in the images.
    trained_on : TrainingImages, optional

    Raises
    ------
    NucleusError
        If it is not known what the model was trained on.

    Examples
    --------
    >>> scale_for(80, TrainingImages(kinds={}, diameters_px=(8, 20, 48)))
    0.25
    """
    if trained_on is None:
        raise NucleusError(
            "This model's run did not log the size of the nuclei it was trained on, so that --diameter "
            "cannot be used. Use --scale."
        )
    return round(trained_on.diameters_px[1] / diameter_px, 4)


def fitting_scale(diameters_px: Sequence[float], trained_on: TrainingImages) -> float:
    """By how much to enlarge an image so that its nuclei look like those of a model's training.

    Parameters
    ----------
    diameters_px : sequence of float
        Diameters of its nuclei, from a first prediction.
    trained_on : TrainingImages

    Returns
    -------
    float
        A power of 2. It is 1 if the median of these lies between the smallest nuclei of the training,
        with a margin, and the largest, or if there are fewer than `LEAST_NUCLEI`.

    Examples
    --------
    >>> seen = TrainingImages(kinds={}, diameters_px=(8, 20, 48))
    >>> [fitting_scale([size] * 9, seen) for size in (5, 11, 47, 60, 90)]
    [4.0, 1.0, 1.0, 0.5, 0.25]
    """
    if len(diameters_px) < LEAST_NUCLEI:
        return 1.0
    smallest, middle, largest = trained_on.diameters_px
    usual = float(np.median(diameters_px))
    if smallest * MARGIN <= usual <= largest:
        return 1.0
    return 2.0 ** int(np.clip(math.log2(middle / usual), -3, 2))  # rather too large than too small


def unlike(
    image: NDArray[np.uint8],
    diameters_px: Sequence[float],
    trained_on: TrainingImages,
    scale: float,
) -> list[str]:
    """Say how an image differs from those that a model was trained on; empty if it does not.

    Parameters
    ----------
    image : (H, W, 3) uint8
    diameters_px : sequence of float
        Diameters of its predicted nuclei.
    trained_on : TrainingImages
    scale : float
        By how much the image was enlarged before prediction.

    Examples
    --------
    >>> seen = TrainingImages(kinds={"fluorescence": 9}, diameters_px=(8, 20, 48))
    >>> unlike(np.uint8([[[0] * 3, [99] * 3, [9] * 3]]), [61.0], seen, 1)
    ['nuclei are 61 px wide, and the model was trained on 8 to 48 px: try --diameter 61']
    """
    found = []
    if (kind := imaging_kind(image)) not in trained_on.kinds:
        found.append(f"looks {kind}; the model was trained on {', '.join(trained_on.kinds)}")
    low, high = np.percentile(image, (1, 99.7))
    if high - low < LEAST_CONTRAST:
        found.append(f"has almost no contrast: {high - low:g} of 255 grey levels")
    elif (signal := _signal_to_noise(image)) < LEAST_SIGNAL:
        found.append(
            f"is mostly noise: its grey levels vary {signal:.1f} times as much as the noise"
        )
    smallest, _, largest = (diameter / scale for diameter in trained_on.diameters_px)
    if diameters_px and not smallest <= (usual := float(np.median(diameters_px))) <= largest:
        found.append(
            f"nuclei are {usual:.0f} px wide, and the model was trained on {smallest:.3g} to "
            f"{largest:.3g} px: try --diameter {usual:.0f}"
        )
    return found


def _signal_to_noise(image: NDArray[np.uint8]) -> float:
    """Range of the smoothed grey levels, divided by the noise as Immerkær 1996 estimates it.

    https://doi.org/10.1006/cviu.1996.0060. It is infinite without noise.
    """
    grey = image.mean(2, dtype=np.float32)
    noise = np.abs(cv2.filter2D(grey, -1, NOISE_KERNEL)).mean() * math.sqrt(math.pi / 2)
    low, high = np.percentile(cv2.GaussianBlur(grey, (0, 0), 2), (1, 99.7))
    return float((high - low) / noise) if noise else math.inf
