"""Score the built-in model on enlarged and reduced validation images, with and without fitting.

    python benchmarks/magnification.py stage1_train.zip      # half an hour on two cores

Takes two images of each validation slide of the recipe `best`, enlarges or reduces them, and predicts
them without flips, at their own size and at the size that `inference.fit_scale` chooses. Prints the mean
average precision at IoU 0.50. Images with more than 1.3 megapixels after that are left out.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import (
    TrainingImages,
    fitting_scale,
    group_by_slide,
    images_code,
    imaging_kind,
    labels_code,
    load_image,
    load_labels,
    make_split,
    prepare_images,
    prepare_labels,
)
from nucleus_unet.engine import home_folder, prepare_environment
from nucleus_unet.network import BUILTIN, builtin_model, configure, load_model, segment_images
from nucleus_unet.nuclei import match_nuclei
from nucleus_unet.recipe import Recipe, load_recipe
from nucleus_unet.runs import records
from tasks.measure import FIRST_SCALES

MAGNIFICATIONS = (0.25, 0.5, 1, 2, 3, 4)
OF_EACH_SLIDE = 2
MOST_PIXELS = 1.3e6

Pair = tuple[NDArray[np.uint8], NDArray[Any]]


def validation_images(archive: Path) -> Iterator[Pair]:
    """Images of the validation slides, with their labels."""
    store = home_folder()
    images = prepare_images([archive], store, images_code(), annotated=True)
    labels = prepare_labels([archive], images, store, labels_code())
    shown = {entry.id: np.array(load_image(store, entry)) for entry in images.entries}
    slides = group_by_slide(
        (e.id, e.source_sha256, e.pixels_sha256, shown[e.id]) for e in images.entries
    )
    rows = [(id_, imaging_kind(image), slides[id_]) for id_, image in shown.items()]
    entries = {entry.id: entry for entry in labels.entries}
    seen: Counter[str] = Counter()
    for image in make_split(rows, load_recipe("best").data).validation:
        seen[image.slide] += 1
        if seen[image.slide] <= OF_EACH_SLIDE:
            yield shown[image.id], np.array(load_labels(store, entries[image.id])).astype(np.int32)


def magnified(pair: Pair, by: float) -> Pair:
    image, labels = pair
    height, width = (max(1, round(by * side)) for side in labels.shape)
    how = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    numbers = cv2.resize(labels.astype(np.float32), (width, height), None, 0, 0, cv2.INTER_NEAREST)
    resized = cv2.resize(image, (width, height), interpolation=how)
    return np.asarray(resized, np.uint8), numbers.astype(np.int32)


def average_precision(
    model: keras.Model, recipe: Recipe, pair: Pair, trained_on: TrainingImages
) -> tuple[float, float, bool]:
    """At IoU 0.50, without and with fitting, and whether fitting changes anything."""
    image, labels = pair

    def predicted(**settings: Any) -> NDArray[np.int32]:
        inference = recipe.inference.model_copy(update={"flips": False, **settings})
        [found] = segment_images(model, [image], recipe.model_copy(update={"inference": inference}))
        return found

    areas = np.bincount(predicted(scales=FIRST_SCALES).ravel())[1:]
    scale = fitting_scale((2 * np.sqrt(areas / np.pi)).tolist(), trained_on)
    plain = match_nuclei(labels, predicted()).average_precision[0]
    if scale == 1 or labels.size * scale**2 > MOST_PIXELS:
        return plain, plain, False
    return plain, match_nuclei(labels, predicted(scale=scale)).average_precision[0], True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    archive = parser.parse_args().archive
    prepare_environment()
    recipe, network = records.fetch_model(BUILTIN)
    configure(recipe.training.cpu_threads)
    model, trained_on = load_model(network), builtin_model().trained_on
    pairs = [*validation_images(archive)]
    print(
        "| magnification | images | own size | fitted | images that change |\n|---|---|---|---|---|"
    )
    for by in MAGNIFICATIONS:
        kept = [pair for pair in pairs if pair[1].size * by**2 <= MOST_PIXELS]
        found = [average_precision(model, recipe, magnified(pair, by), trained_on) for pair in kept]
        plain, fitted, changed = np.mean(found, axis=0)
        print(f"| {by:g} | {len(kept)} | {plain:.3f} | {fitted:.3f} | {changed:.0%} |", flush=True)


if __name__ == "__main__":
    main()
