"""One image with its labels, as training and evaluation take it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One prepared image with its labels, each a ``.npy`` file that is mapped and not read."""

    id: str
    image: Path
    labels: Path
    kind: str

    def load(self) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """(H, W, 3) uint8 and (H, W) int."""
        return np.load(self.image, mmap_mode="r"), np.load(self.labels, mmap_mode="r")
