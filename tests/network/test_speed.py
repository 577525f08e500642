from pathlib import Path

import numpy as np
import pytest

from nucleus_unet.network import speed
from nucleus_unet.network.speed import Speed, measure_speed
from nucleus_unet.recipe import Recipe


@pytest.mark.slow
def test_a_measurement(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PREDICTED_PX", 64)
    found = measure_speed(tiny)
    assert isinstance(found, Speed)
    assert found.device.startswith(("cpu:", "gpu:"))
    assert 0 < found.step_s < 10
    assert 0 < found.prediction_s < 100


def test_the_predicted_image_has_its_size(tmp_path: Path) -> None:
    image, labels = speed._sample(tmp_path).load()
    assert (image.shape, image.dtype) == ((512, 512, 3), np.uint8)
    assert labels.shape == (512, 512)
    assert labels.max() > 0
