"""A model, of one network or of several folds, with the images that its networks do not know."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from cases import Case, cases
from curves import Pair
from numpy.typing import NDArray

from nucleus_unet.data import (
    SplitImage,
    TrainingImages,
    fitting_scale,
    folds_of,
    make_split,
    split_of_all_folds,
)
from nucleus_unet.network import BUILTIN, configure, load_model, resolve, segment_images
from nucleus_unet.network.ensemble import members
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import records
from tasks.measure import FIRST_SCALES


@dataclass(frozen=True)
class Predictor:
    """A network, and what it was trained on."""

    model: keras.Model
    recipe: Recipe
    trained_on: TrainingImages

    def labels(self, image: NDArray[np.uint8], **settings: Any) -> NDArray[np.int32]:
        """The nuclei of an image, with other settings of the recipe's ``inference``."""
        inference = self.recipe.inference.model_copy(update=settings)
        recipe = self.recipe.model_copy(update={"inference": inference})
        [found] = segment_images(self.model, [image], recipe)
        return found

    def fitting_scale(self, image: NDArray[np.uint8]) -> float:
        """By how much `nucleus predict` enlarges an image."""
        first = self.labels(image, scales=FIRST_SCALES, flips=False)
        areas = np.bincount(first.ravel())[1:]
        return fitting_scale((2 * np.sqrt(areas / np.pi)).tolist(), self.trained_on)


def held_out(model: str, archive: Path) -> Iterator[tuple[Predictor, list[Case]]]:
    """Each network of a model with the cases of the data set that it does not know.

    Parameters
    ----------
    model : str
        Id of the run that trained the model, on this data set, or ``builtin``.
    archive : Path
        The data set.
    """
    recipe, network = records.fetch_model(model)
    recipe, trained_on = resolve(recipe), records.fetch_training_images(model)
    assert trained_on
    configure(recipe.training.cpu_threads)
    known = {case.sample.id: case for case in cases(archive)}
    rows = [
        SplitImage(id=id_, kind=one.sample.kind, slide=one.slide, source=one.source)
        for id_, one in known.items()
    ]
    split = split_of_all_folds(rows) if recipe.training.folds else make_split(rows, recipe.data)
    for member, fold in zip(members(load_model(network)), folds_of(split, recipe), strict=True):
        own = [known[image.id] for image in fold.validation]
        yield Predictor(member, recipe, trained_on), own


def model_and_archive(doc: str | None) -> argparse.Namespace:
    """Read the path of a data set and ``--model`` from the command line."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default=BUILTIN, help="id of a run; default: the built-in model")
    return parser.parse_args()


def pair_of(case: Case) -> Pair:
    """The image and the labels of a case."""
    image, labels = (np.array(array) for array in case.sample.load())
    return image, labels.astype(np.int32)
