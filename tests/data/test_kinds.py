from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data.kinds import KINDS, Kind, imaging_kind


def picture(ground: tuple[int, int, int], nucleus: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = np.full((40, 60, 3), ground, np.uint8)
    image[10:20, 10:30] = nucleus
    return image


@pytest.mark.parametrize(
    ("ground", "nucleus", "kind"),
    [
        ((8, 8, 8), (90, 90, 90), "fluorescence"),
        ((0, 0, 0), (0, 0, 0), "fluorescence"),
        ((228, 228, 228), (90, 90, 90), "bright-field"),
        ((215, 225, 215), (110, 40, 130), "stained on white"),
        ((190, 160, 210), (70, 20, 160), "stained on colour"),
        ((0, 0, 10), (0, 30, 250), "fluorescence"),  # DAPI shown in blue
        ((0, 0, 0), (20, 250, 20), "fluorescence"),
        (
            (228, 230, 231),
            (90, 90, 95),
            "bright-field",
        ),  # the white of a camera is slightly coloured
    ],
)
def test_the_kind_follows_from_background_and_colour(
    ground: tuple[int, int, int], nucleus: tuple[int, int, int], kind: Kind
) -> None:
    assert imaging_kind(picture(ground, nucleus)) == kind
    assert kind in KINDS


def test_an_image_with_little_tissue_is_stained() -> None:
    image = np.full((100, 100, 3), (230, 228, 232), np.uint8)
    image[:2] = (110, 40, 130)
    assert imaging_kind(image) == "stained on white"


def test_the_kind_does_not_depend_on_the_size() -> None:
    small = picture((190, 160, 210), (70, 20, 160))
    large = small.repeat(40, axis=0).repeat(40, axis=1)
    assert imaging_kind(large) == imaging_kind(small)


def test_the_kinds_of_the_real_training_set(dsb2018: Path) -> None:
    from collections import Counter

    from nucleus_unet.data.images import decode_image
    from nucleus_unet.data.raw import open_raw

    with open_raw(dsb2018 / "stage1_train.zip", annotated=True) as raw:
        images = (decode_image(raw.read(s.image), s.image).image for s in raw.samples)
        counts = Counter(imaging_kind(image) for image in images)
    assert counts == {
        "fluorescence": 541,
        "stained on colour": 69,
        "stained on white": 38,
        "bright-field": 16,
    }
