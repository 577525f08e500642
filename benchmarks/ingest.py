"""Compare the time to read a training set with that of the original notebook.

The notebook needs the unpacked zip. It reads one file after the other, resizes to 256 x 256 and
merges the masks of an image, all in memory. Unpacking has its own line and does not count in the
ratio. This package reads the zip directly, labels each nucleus, keeps the original size and stores
arrays and digests on disk, where a second run finds them. Both read from a warm disk cache. The
program checks that both give equal results for the images of 256 x 256.
"""

import argparse
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import (
    Images,
    Labels,
    load_image,
    load_labels,
    prepare_images,
    prepare_labels,
)

SIZE = 256


def plain(folder: Path) -> tuple[list[str], NDArray[np.uint8], NDArray[np.bool_]]:
    """Read ids, images and masks as the notebook's `make_df` does."""
    ids = next(os.walk(folder))[1]
    x_train = np.zeros((len(ids), SIZE, SIZE, 3), np.uint8)
    y_train = np.zeros((len(ids), SIZE, SIZE, 1), np.bool_)
    for i, id_ in enumerate(ids):
        path = f"{folder}/{id_}"
        image: Any = cv2.imread(f"{path}/images/{id_}.png")
        x_train[i] = cv2.resize(image, (SIZE, SIZE))
        mask = np.zeros((SIZE, SIZE, 1), np.bool_)
        for mask_file in next(os.walk(f"{path}/masks/"))[2]:
            mask_: Any = cv2.imread(f"{path}/masks/{mask_file}", 0)
            mask_ = cv2.resize(mask_, (SIZE, SIZE))[:, :, np.newaxis]
            mask = np.maximum(mask, mask_)
        y_train[i] = mask
    return ids, x_train, y_train


def check(
    read: tuple[list[str], NDArray[np.uint8], NDArray[np.bool_]],
    images: Images,
    labels: Labels,
    store: Path,
) -> int:
    """Check that all images of 256 x 256 are equal; return their number. The notebook uses BGR."""
    index = {id_: i for i, id_ in enumerate(read[0])}
    if sorted(index) != [image.id for image in images.entries]:
        raise SystemExit("the notebook's way and ours found different images")
    same_size = 0
    for image, nuclei in zip(images.entries, labels.entries, strict=True):
        if (image.height, image.width) == (SIZE, SIZE):
            same_size += 1
            bgr, mask = (array[index[image.id]] for array in read[1:])
            if not np.array_equal(load_image(store, image), bgr[..., ::-1]) or not np.array_equal(
                load_labels(store, nuclei) > 0, mask[..., 0]
            ):
                raise SystemExit(f"{image.id}: the results differ")
    return same_size


def timed(what: str, function: Callable[[], Any]) -> tuple[Any, float]:
    start = perf_counter()
    result = function()
    seconds = perf_counter() - start
    print(f"{what:44}{seconds:>9.2f} s", flush=True)
    return result, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(__file__).parents[2] / "shared" / "data"
    default = Path(os.environ.get("NUCLEUS_DSB2018", shared)) / "stage1_train.zip"
    parser.add_argument(
        "zip", type=Path, nargs="?", default=default, help=f"training set; default {default}"
    )
    path = parser.parse_args().zip
    path.read_bytes()  # warms the disk cache
    with tempfile.TemporaryDirectory() as temporary:
        folder, store = Path(temporary, "unpacked"), Path(temporary, "store")
        with zipfile.ZipFile(path) as archive:
            timed("notebook: unpack", lambda: archive.extractall(folder))
        [*tops] = folder.iterdir()
        root = tops[0] if len(tops) == 1 else folder
        read, plain_s = timed("notebook: read, resize, merge masks", lambda: plain(root))
        images, ingest_s = timed("ours: ingest", lambda: prepare_images([path], store, "benchmark"))
        labels, merge_s = timed(
            "ours: merge masks", lambda: prepare_labels([path], images, store, "benchmark")
        )
        timed(
            "ours: both again, nothing changed",
            lambda: prepare_labels(
                [path], prepare_images([path], store, "benchmark"), store, "benchmark"
            ),
        )
        equal = check(read, images, labels, store)
    print(f"{'ratio, notebook without unpacking to ours':44}{plain_s / (ingest_s + merge_s):>9.2f}")
    nuclei = sum(entry.nuclei for entry in labels.entries)
    print(f"{len(images.entries)} images, {nuclei} nuclei; {equal} images of 256x256 are equal")


if __name__ == "__main__":
    main()
