"""The model that comes with the package is the one that its card describes."""

from pathlib import Path

import pytest

from nucleus_unet.data import (
    SplitImage,
    group_by_slide,
    images_code,
    imaging_kind,
    labels_code,
    load_image,
    make_split,
    prepare_images,
    prepare_labels,
)
from nucleus_unet.files import sha256_file
from nucleus_unet.network.backend import resolve
from nucleus_unet.network.builtin import BUILTIN_CARD, BUILTIN_NETWORK, builtin_model
from nucleus_unet.reports import evaluate_model

LARGEST_BYTES = 5 * 10**6


def test_the_weights_are_those_of_the_card() -> None:
    model, card = builtin_model(), BUILTIN_CARD.read_text()
    digest = sha256_file(BUILTIN_NETWORK)
    assert digest == model.network_sha256
    assert f"SHA-256 of `model.keras`: {digest}" in card
    assert f"**Score {model.score:.4f}**" in card
    assert f"at revision {model.commit}" in card
    assert BUILTIN_NETWORK.stat().st_size < LARGEST_BYTES


def test_what_is_said_of_it() -> None:
    model = builtin_model()
    of = f"best of revision {model.commit[:7]}, trained on the 2018 Data Science Bowl, score 0."
    assert str(model).startswith(f"the built-in model: {of}")
    assert str(model).endswith(" images of other slides")


def test_each_machine_predicts_with_all_of_its_cores() -> None:
    training = builtin_model().recipe.training
    assert training.threads == "auto"


@pytest.mark.slow
def test_the_score_is_that_of_the_validation_images(dsb2018: Path, tmp_path: Path) -> None:
    raws, recipe = [dsb2018 / "stage1_train.zip"], resolve(builtin_model().recipe)
    images = prepare_images(raws, tmp_path, images_code(), annotated=True)
    labels = prepare_labels(raws, images, tmp_path, labels_code())
    shown = {entry.id: load_image(tmp_path, entry) for entry in images.entries}
    slides = group_by_slide(
        (e.id, e.source_sha256, e.pixels_sha256, shown[e.id]) for e in images.entries
    )
    rows = [SplitImage(id=id_, kind=imaging_kind(shown[id_]), slide=slides[id_]) for id_ in shown]
    split = make_split(rows, recipe.data)
    trained = {image.id for image in split.training}
    seen = {entry.pixels_sha256 for entry in images.entries if entry.id in trained}
    assert seen == builtin_model().seen
    fixed = recipe.with_overrides(["inference.tune=false"])
    validation = split.samples("validation", images, labels, tmp_path)
    found = evaluate_model(
        fixed, [(BUILTIN_NETWORK, validation)], tmp_path / "maps", lambda *_: lambda *_: None
    )
    assert len(validation) == builtin_model().images
    assert found.scores["score"] == pytest.approx(builtin_model().score, abs=0.002)
