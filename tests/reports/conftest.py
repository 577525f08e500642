from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from nucleus_unet.data.sample import Sample

Case = tuple[Sample, Path]


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str, ArrayLike, ArrayLike], Case]:
    """Writes a gray image with labels and a probability, which may be smaller."""

    def case(id_: str, labels: ArrayLike, probability: ArrayLike) -> Case:
        sample = Sample(id_, tmp_path / f"{id_}.npy", tmp_path / f"{id_}_labels.npy", f"kind {id_}")
        y_true = np.array(labels, np.uint16)
        np.save(sample.image, np.full((*y_true.shape, 3), 128, np.uint8))
        np.save(sample.labels, y_true)
        np.save(tmp_path / f"{id_}_p.npy", np.array(probability, np.float32)[..., None])
        return sample, tmp_path / f"{id_}_p.npy"

    return case
