"""Compare the speed of data augmentation with that of the original notebook.

The notebook zips two ImageDataGenerators of Keras with the same seed, one for images and one for masks.
Each transforms one channel at a time with SciPy. This package draws one matrix for each image and warps
image and labels with it. Both read 256 x 256 arrays from memory in one thread, and take turns batch by
batch. `tests/network/test_augment.py` shows that both apply the same transforms.
"""

import argparse
import os
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.network import random_matrix, warp_sample
from nucleus_unet.recipe import Augmentation

SIZE, BATCH, IMAGES = 256, 32, 128

Batches = Iterator[tuple[NDArray[np.generic], NDArray[np.float32]]]


def plain(images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> Batches:
    """The notebook's `generator` for training, without its call of `fit`, whose result is not used."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    arguments = {
        "horizontal_flip": True,
        "vertical_flip": True,
        "rotation_range": 90.0,
        "width_shift_range": 0.1,
        "height_shift_range": 0.1,
        "zoom_range": 0.1,
    }
    return zip(
        ImageDataGenerator(**arguments).flow(images, batch_size=BATCH, seed=10),
        ImageDataGenerator(**arguments).flow(masks, batch_size=BATCH, seed=10),
        strict=True,
    )


def ours(images: NDArray[np.uint8], labels: NDArray[np.uint16]) -> Batches:
    """The work of one thread of `nucleus_unet.network.batches.training_batches`."""
    augmentation, rng = Augmentation(), np.random.default_rng(10)
    while True:
        for start in range(0, len(images), BATCH):
            warped = [
                warp_sample(image, nuclei, random_matrix(augmentation, rng), SIZE)
                for image, nuclei in zip(
                    images[start : start + BATCH], labels[start : start + BATCH], strict=True
                )
            ]
            x, y = zip(*warped, strict=True)
            yield np.stack(x), (np.stack(y)[..., None] > 0).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=10, help="number of batches of 32 images; default 10"
    )
    steps = parser.parse_args().steps
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)
    labels = rng.integers(0, 2, (IMAGES, SIZE, SIZE)).astype(np.uint16)
    ways = {
        "notebook: two ImageDataGenerators": plain(images, labels[..., None] > 0),
        "ours: one composed warp": ours(images, labels),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(steps + 1):
        for way, batches in ways.items():
            start = perf_counter()
            next(batches)
            seconds[way].append(perf_counter() - start)
    medians = [median(times[1:]) for times in seconds.values()]  # without the first, which warms up
    for way, batch_s in zip(ways, medians, strict=True):
        print(f"{way:44}{BATCH / batch_s:>9.1f} images/s")
    print(f"{'ratio, notebook to ours':44}{medians[0] / medians[1]:>9.2f}")


if __name__ == "__main__":
    main()
