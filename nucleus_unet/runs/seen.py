"""Which images a logged model knows from its training, so that no comparison rests on them."""

import json
from collections.abc import Sequence
from typing import Any

from nucleus_unet.data import SPLIT_FILE, Images, Sample, Split, images_of_known_slides
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import BUILTIN, builtin_model
from nucleus_unet.recipe import Recipe, Training
from nucleus_unet.runs import records

KNOWS_EVERY = "The champion or this model knows every validation image from its training."


def chooses_epoch(training: Training) -> bool:
    """Whether a training chooses its epoch by the scores of the validation images."""
    return training.keep == "best" or training.early_stopping_epochs is not None


def images_seen(run_id: str | None) -> set[str]:
    """SHA-256 of the image files, or of the pixels, of the images that a model knows; none for None.

    A model knows the images that it was trained on, those that its epoch was chosen on, and those that
    the model knows from which its training started.

    Parameters
    ----------
    run_id : str, optional
        Id of the run that trained the model, or `BUILTIN`.

    Raises
    ------
    NucleusError
        If the run or its records cannot be fetched.
    """
    seen: set[str] = set()
    while run_id:
        if run_id == BUILTIN:
            return seen | builtin_model().seen
        record = records.fetch_record(run_id)
        split = Split.model_validate_json(records.fetch_artifact(run_id, SPLIT_FILE).read_bytes())
        digests = {file["id"]: file["image_sha256"] for file in record.data["training"].files}
        training = Training.model_validate(record.recipe["training"])
        validation = split.validation if chooses_epoch(training) else ()
        seen |= {digests[image.id] for image in (*split.training, *validation)}
        run_id = training.start_from
    return seen


def slides_seen(split: Split, images: Images, seen: set[str]) -> set[str]:
    """The slides that have at least one image whose file or pixels are among those seen."""
    slides = split.slides
    return {
        slides[entry.id]
        for entry in images.entries
        # Others were left out of the split.
        if entry.id in slides and seen & {entry.source_sha256, entry.pixels_sha256}
    }


def unseen_samples(
    validation: Sequence[Sample], split: Split, recipe: Recipe, known: set[str]
) -> list[Sample] | str:
    """The validation samples that a new model can be compared on, or why there are none.

    Parameters
    ----------
    validation : sequence of Sample
    split : Split
    recipe : Recipe
        Of the new model.
    known : set of str
        The slides that the model knows from an earlier training.
    """
    if chooses_epoch(recipe.training):
        return (
            "Its epoch was chosen on the validation images, so a comparison on them would favour it. "
            "Train with training.keep=last and without early stopping, or promote it by hand."
        )
    slides, left_out = split.slides, images_of_known_slides(split, recipe)
    unseen = [
        sample
        for sample in validation
        if sample.id not in left_out and slides[sample.id] not in known
    ]
    return unseen or KNOWS_EVERY


def out_of_fold_scores(run_id: str, like: Recipe) -> dict[tuple[str, str], float]:
    """The score of each image by a network that does not know its slide, if a model has several folds.

    Parameters
    ----------
    run_id : str
        Id of the run that trained the model, or `BUILTIN`.
    like : Recipe
        Another model. Scores that cannot be compared with its scores are left out: those of images
        that were read in another way, of settings that were tuned if its settings were not, and of a
        model whose epoch was chosen by them.

    Returns
    -------
    dict of (str, str) to float
        SHA-256 of the image file and of its annotation, and the score.
    """
    if run_id == BUILTIN:
        return {}
    record = records.fetch_record(run_id)
    recipe = records.recipe_of(run_id, record.recipe)
    if not recipe.training.folds or chooses_epoch(recipe.training) or _read(recipe) != _read(like):
        return {}
    split = Split.model_validate_json(records.fetch_artifact(run_id, SPLIT_FILE).read_bytes())
    files = {file["id"]: file for file in record.data["training"].files}
    earlier = images_seen(recipe.training.start_from)
    known = {image.slide for image in split.training if files[image.id]["image_sha256"] in earlier}
    left_out = images_of_known_slides(split, recipe)
    left_out |= {image.id for image in split.training if image.slide in known}
    rows = json.loads(records.fetch_artifact(run_id, records.SCORES_BY_IMAGE).read_bytes())
    return {
        (files[row["id"]]["image_sha256"], files[row["id"]]["masks_sha256"]): row["score"]
        for row in rows
        if row["id"] not in left_out
    }


def _read(recipe: Recipe) -> tuple[Any, ...]:
    """What decides how the images are read, and whether the settings were tuned on their scores."""
    data = recipe.data
    return data.plane, data.ignore_value, data.on_bad, recipe.inference.tune


def validation_warning(split: Split, images: Images, start_from: str | None) -> str | None:
    """What to warn of if the model that a training starts from knows validation images."""
    try:
        known = slides_seen(split, images, images_seen(start_from))
    except (NucleusError, LookupError, ValueError) as error:  # of a deleted or an older run
        return (
            f"Run {start_from}, from which this training starts, may know some validation images: its "
            f"records cannot be read ({error})"
        )
    seen = sum(image.slide in known for image in split.validation)
    if not seen:
        return None
    return (
        f"{seen} of {len(split.validation)} validation images come from slides that run {start_from}, "
        "from which this training starts, was trained on. The scores are too high"
    )
