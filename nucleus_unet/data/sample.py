"""A prepared image with its labels, as training and evaluation use it."""

import functools
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """An image with its labels, each in a ``.npy`` file that is memory-mapped."""

    id: str
    image: Path
    """File of the image."""
    labels: Path
    """File of the labels."""
    kind: str
    """Imaging kind, as `nucleus_unet.data.kinds.imaging_kind` gives it."""

    def load(self) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """The image, (H, W, 3) uint8 RGB, and its labels, (H, W) int; both read-only."""
        return _mapped(self.image), _mapped(self.labels)


def _mapped(path: Path) -> NDArray[Any]:
    """Do what ``np.load(path, mmap_mode="r")`` does, but read the header of a file only once.

    Reading it takes a third of the time that a training image takes. A header can be kept because
    files are named after their digest and never change.
    """
    shape, dtype, offset, strides = _header(path)
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(shape, dtype, content, offset, strides)


@functools.cache
def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int, tuple[int, ...]]:
    array = np.load(path, mmap_mode="r")
    return array.shape, array.dtype, array.offset, array.strides
