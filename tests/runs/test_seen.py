from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nucleus_unet.data.prepared import Images
from nucleus_unet.data.sample import Sample
from nucleus_unet.data.split import Split, SplitImage
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe, Training
from nucleus_unet.runs import records, tracking
from nucleus_unet.runs.logged import LoggedDataset
from nucleus_unet.runs.seen import (
    chooses_epoch,
    images_seen,
    out_of_fold_scores,
    slides_seen,
    unseen_samples,
    validation_warning,
)

OpenRun = Callable[..., AbstractContextManager[tracking.Run]]
LAST = Recipe(name="", training=Training(keep="last"))


def split_of(training: str, validation: str) -> Split:
    """A split of images by id. The slide of an image is the first letter of its id."""

    def side(ids: str) -> tuple[SplitImage, ...]:
        return tuple(SplitImage(id=i, kind="fluorescence", slide=i[0].upper()) for i in ids.split())

    return Split(training=side(training), validation=side(validation))


def sample(id_: str) -> Sample:
    return Sample(id_, Path(f"{id_}.npy"), Path(f"{id_}_labels.npy"), "fluorescence")


@pytest.fixture(scope="module")
def runs(opened: OpenRun, make_images: Callable[..., Images], tiny: Recipe) -> Any:
    """Ids of logged trainings, each with two images: it trained on the first."""

    def train(t: str, v: str, *overrides: str) -> str:
        recipe = tiny.with_overrides(["training.keep=last", *overrides])
        with opened(recipe=recipe) as run:
            tracking.log_dataset(run, "training", [Path("/raw")], make_images(t=t, v=v), None)
            tracking.log_json(run, "split.json", split_of("t", "v").model_dump(mode="json"))
        return run.id

    began = train("file 1", "file 2")
    return SimpleNamespace(
        began=began,
        tuned=train("file 3", "file 4", f"training.start_from={began}"),
        best=train("file 5", "file 6", "training.keep=best"),
        stopped=train("file 7", "file 8", "training.early_stopping_epochs=3"),
    )


@pytest.mark.parametrize(
    ("training", "chosen"),
    [
        (Training(keep="best"), True),
        (Training(keep="last"), False),
        (Training(keep="last", early_stopping_epochs=3), True),
    ],
)
def test_which_trainings_choose_their_epoch(training: Training, chosen: bool) -> None:
    assert chooses_epoch(training) == chosen


def test_the_images_that_a_model_knows(runs: Any) -> None:
    assert images_seen(None) == set()
    assert images_seen(runs.began) == {"file 1"}
    assert images_seen(runs.tuned) == {"file 1", "file 3"}
    # Its epoch was chosen on the validation image.
    assert images_seen(runs.best) == {"file 5", "file 6"}
    assert images_seen(runs.stopped) == {"file 7", "file 8"}


def test_the_images_that_a_deleted_run_knew_are_unknown(folder: Path) -> None:
    with pytest.raises(NucleusError, match=f"^There is no run {'0' * 32} at sqlite:"):
        images_seen("0" * 32)


def test_slides_with_a_known_image(make_images: Callable[..., Images]) -> None:
    split = split_of("d", "a a2 b c")
    # The known image has another id here.
    images = make_images(a="1", a2="9", b="2", c="3", d="4", left_out="7")
    assert slides_seen(split, images, {"1", "4", "7"}) == {"A", "D"}
    assert slides_seen(split, images, set()) == set()


def test_samples_of_slides_that_no_model_knows() -> None:
    split = split_of("d", "a a2 b c d2 e")
    validation = [sample(image.id) for image in split.validation]

    def unseen(known: set[str]) -> list[str]:
        found = unseen_samples(validation, split, LAST, known)
        assert not isinstance(found, str)
        return [sample.id for sample in found]

    # An image of a slide that the new model trained on never counts.
    assert unseen(set()) == ["a", "a2", "b", "c", "e"]
    assert unseen({"A"}) == ["b", "c", "e"]
    assert unseen({"A", "B", "C"}) == ["e"]
    assert unseen_samples(validation, split, LAST, {"A", "B", "C", "E"}) == (
        "The champion or this model knows every validation image from its training."
    )


@pytest.mark.parametrize(
    "training", [Training(keep="best"), Training(keep="last", early_stopping_epochs=3)]
)
def test_no_sample_is_unseen_if_the_epoch_was_chosen_on_them(training: Training) -> None:
    recipe = Recipe(name="", training=training)
    assert unseen_samples([sample("b")], split_of("a", "b"), recipe, set()) == (
        "Its epoch was chosen on the validation images, so a comparison on them would favour it. Train "
        "with training.keep=last and without early stopping, or promote it by hand."
    )


def test_the_scores_that_a_model_of_several_folds_was_given(
    opened: OpenRun, runs: Any, make_images: Callable[..., Images], tiny: Recipe
) -> None:
    ids = ("a", "a2", "b", "c", "d", "e")
    files = dict(zip(ids, ("file 1", "2", "3", "4", "5", "6"), strict=True))
    whole = split_of(" ".join(ids), " ".join(ids))

    def scored(*overrides: str) -> str:
        fold = ("training.folds=2", "training.keep=last", "data.split=slide")
        with opened(recipe=tiny.with_overrides([*fold, *overrides])) as run:
            tracking.log_dataset(run, "training", [Path("/raw")], make_images(**files), None)
            rows = [
                {"id": i, "image_sha256": files[i], "masks_sha256": f"masks of {i}"} for i in ids
            ]
            tracking.log_json(run, "datasets/training.json", asdict(LoggedDataset(["/raw"], rows)))
            tracking.log_json(run, "split.json", whole.model_dump(mode="json"))
            scores = [{"id": id_, "score": number / 10} for number, id_ in enumerate(ids)]
            tracking.log_json(run, records.SCORES_BY_IMAGE, scores)
        return run.id

    every = {(files[id_], f"masks of {id_}"): n / 10 for n, id_ in enumerate(ids)}
    assert out_of_fold_scores(scored(), tiny) == every
    # Networks that started from a model know its slides.
    began = out_of_fold_scores(scored(f"training.start_from={runs.began}"), tiny)
    assert began == {key: n for key, n in every.items() if key[0] not in ("file 1", "2")}
    # This seed puts the two images of slide A into different folds.
    at_random = out_of_fold_scores(scored("data.split=random", "data.split_seed=3"), tiny)
    assert at_random == began
    for change in ("training.keep=best", "inference.tune=true", "data.ignore_value=255"):
        assert out_of_fold_scores(scored(change), tiny) == {}
    assert out_of_fold_scores(runs.began, tiny) == {}
    assert out_of_fold_scores("builtin", tiny) == {}


def test_a_training_from_a_model_that_knows_validation_images_is_warned_of(
    runs: Any, make_images: Callable[..., Images]
) -> None:
    split = split_of("d", "a a2 b c d2 e")
    images = make_images(a="file 1", a2="9", b="file 3", c="file 2", d="8", d2="7", e="5")

    def warning(start_from: str | None) -> str | None:
        return validation_warning(split, images, start_from)

    assert warning(None) is None
    assert warning(runs.best) is None
    assert warning(runs.began) == (
        f"2 of 6 validation images come from slides that run {runs.began}, from which this training "
        "starts, was trained on. The scores are too high"
    )
    assert warning(runs.tuned) == (
        f"3 of 6 validation images come from slides that run {runs.tuned}, from which this training "
        "starts, was trained on. The scores are too high"
    )


def test_a_training_from_a_deleted_model_is_warned_of(
    folder: Path, make_images: Callable[..., Images]
) -> None:
    found = validation_warning(split_of("a", "b"), make_images(a="1", b="2"), "0" * 32)
    assert found
    assert found.startswith(
        f"Run {'0' * 32}, from which this training starts, may know some validation images: its "
        f"records cannot be read (There is no run {'0' * 32} at sqlite:"
    )


def test_a_training_from_a_model_of_an_older_version_is_warned_of(
    opened: OpenRun, make_images: Callable[..., Images]
) -> None:
    images = make_images(a="1", b="2")
    with opened() as run:  # an older split named no slides
        tracking.log_dataset(run, "training", [Path("/raw")], images, None)
        tracking.log_json(run, "split.json", {"training": ["a"], "validation": ["b"]})
    found = validation_warning(split_of("a", "b"), images, run.id)
    assert found
    assert "its records cannot be read (" in found
