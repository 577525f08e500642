from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data.images import pixel_digest
from nucleus_unet.data.leaks import shared_images
from nucleus_unet.data.prepared import Images, prepare_images


def pixels(rows: list[list[int]]) -> NDArray[np.uint8]:
    """A gray image in RGB."""
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1)


IMAGE = pixels([[1, 2, 3], [4, 5, 6]])
SAME = {
    "unchanged": [[1, 2, 3], [4, 5, 6]],
    "mirrored": [[3, 2, 1], [6, 5, 4]],
    "upside down": [[4, 5, 6], [1, 2, 3]],
    "turned once": [[3, 6], [2, 5], [1, 4]],
    "turned twice": [[6, 5, 4], [3, 2, 1]],
    "turned three times": [[4, 1], [5, 2], [6, 3]],
    "transposed": [[1, 4], [2, 5], [3, 6]],
    "transposed and turned twice": [[6, 3], [5, 2], [4, 1]],
}
OTHERS = {
    "one pixel": [[1, 2, 3], [4, 5, 7]],
    "two pixels swapped": [[2, 1, 3], [4, 5, 6]],
    "another shape": [[1, 2, 3, 4, 5, 6]],
    "a part": [[1, 2], [4, 5]],
}


@pytest.mark.parametrize("name", SAME)
def test_flips_and_turns_have_the_same_digest(name: str) -> None:
    assert pixel_digest(pixels(SAME[name])) == pixel_digest(IMAGE)


@pytest.mark.parametrize("name", OTHERS)
def test_other_images_have_another_digest(name: str) -> None:
    assert pixel_digest(pixels(OTHERS[name])) != pixel_digest(IMAGE)


def test_another_colour_is_another_image() -> None:
    red, blue = np.zeros((2, 2, 2, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 9
    assert pixel_digest(red) != pixel_digest(blue)


def prepared(folder: Path, images: dict[str, list[list[int]]]) -> Images:
    (folder / "raw").mkdir(parents=True)
    for name, rows in images.items():
        cv2.imwrite(str(folder / "raw" / f"{name}.png"), np.array(rows, np.uint8))
    return prepare_images([folder / "raw"], folder.parent / "store", "code")


def test_test_images_that_are_also_training_images(tmp_path: Path) -> None:
    training = prepared(tmp_path / "training", {"a": SAME["unchanged"], "b": OTHERS["a part"]})
    test = prepared(
        tmp_path / "test",
        {"p": OTHERS["one pixel"], "q": SAME["turned once"], "r": SAME["mirrored"]},
    )
    assert shared_images(training, test) == [("q", "a"), ("r", "a")]
    assert shared_images(test, training) == [("a", "r")]
    assert shared_images(Images(entries=test.entries[:1]), training) == []
    assert shared_images(training, Images(entries=())) == []
