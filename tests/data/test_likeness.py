"""What the training images of a model look like, and which images differ."""

import doctest
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data import likeness
from nucleus_unet.data.images import decode_image
from nucleus_unet.data.likeness import (
    TrainingImages,
    describe_training,
    scale_for,
    unlike,
)
from nucleus_unet.data.prepared import prepare_images, prepare_labels
from nucleus_unet.data.split import Split, SplitImage
from nucleus_unet.errors import NucleusError

SEEN = TrainingImages(kinds={"fluorescence": 9}, diameters_px=(8, 20, 48))
DARK = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_doctests() -> None:
    assert doctest.testmod(likeness).failed == 0


def test_an_image_like_those_of_the_training() -> None:
    assert unlike(DARK, [8, 48], SEEN, 1) == []
    assert unlike(DARK, [], SEEN, 1) == []


@pytest.mark.parametrize(
    ("image", "diameters", "scale", "said"),
    [
        (255 - DARK, [20.0], 1, "looks bright-field; the model was trained on fluorescence"),
        (DARK // 8, [20.0], 1, "has almost no contrast: 5 of 255 grey levels"),
        (DARK, [5.0, 7, 99], 1, "nuclei are 7 px wide, and the model was trained on 8 to 48 px: "),
        (DARK, [40.0], 2, "nuclei are 40 px wide, and the model was trained on 4 to 24 px: try "),
    ],
)
def test_an_image_that_differs(
    image: NDArray[np.uint8], diameters: list[float], scale: float, said: str
) -> None:
    [found] = unlike(image, diameters, SEEN, scale)
    assert found.startswith(said)


def test_noise_that_is_stretched_to_all_grey_levels_is_not_taken_for_contrast() -> None:
    noise = np.random.default_rng(0).normal(300, 8, (256, 256))
    mostly_noise = "is mostly noise: its grey levels vary {} times as much as the noise"
    assert mostly_noise.format(0.7) in unlike(as_read(noise), [], SEEN, 1)
    disc = cv2.circle(np.zeros_like(noise), (99, 99), 60, 8, -1)  # as bright as the noise
    assert mostly_noise.format(4.5) in unlike(as_read(noise + 4 * disc), [], SEEN, 1)
    assert unlike(as_read(noise + 40 * disc), [], SEEN, 1) == []


def as_read(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """An image of a camera with 16 bits as it is read from its file."""
    _, content = cv2.imencode(".png", pixels.round().astype(np.uint16))
    return decode_image(content.tobytes(), "a.png").image


def test_without_the_sizes_of_the_training_no_scale_is_known() -> None:
    with pytest.raises(NucleusError, match=r"did not log the size .* Use --scale\.$"):
        scale_for(20, None)


def test_the_training_side_is_described(tmp_path: Path) -> None:
    for id_, side in (("a", 10), ("b", 30)):
        labels = np.zeros((40, 80), np.uint16)
        labels[:side, :side], labels[:20, 40:60] = 7, 9
        (tmp_path / "raw" / id_ / "images").mkdir(parents=True)
        cv2.imwrite(f"{tmp_path}/raw/{id_}/images/{id_}.png", labels)
        cv2.imwrite(f"{tmp_path}/raw/{id_}/labels.png", labels)
    raws, store = [tmp_path / "raw"], tmp_path / "store"
    images = prepare_images(raws, store, "code")
    labels_of_all = prepare_labels(raws, images, store, "code")
    a, b = (SplitImage(id=id_, kind="fluorescence", slide=id_) for id_ in "ab")
    described = describe_training(Split(training=(a,), validation=(b,)), labels_of_all, store)
    assert described.kinds == {"fluorescence": 1}
    # Diameters of 11.28 and 22.57 px; the percentiles are between them.
    assert described.diameters_px == pytest.approx((11.8, 16.9, 22.0))
