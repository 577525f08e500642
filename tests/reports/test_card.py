from typing import Any

import pytest

from nucleus_unet.data.split import Split, SplitImage
from nucleus_unet.recipe import Recipe, load_recipe
from nucleus_unet.reports.card import markdown_table, model_card

EVENTS: list[dict[str, Any]] = [
    {"event": "start", "parameters": 1234567, "backend": "tensorflow 2", "cores": 2}
    | {"device": "cpu:0"},
    {"event": "epoch", "epoch": 1, "seconds": 60.0},
    {"event": "epoch", "epoch": 2, "seconds": 30.0},
    {"event": "end", "kept_epoch": 2, "peak_memory_bytes": 1_500_000_000},
]
SPLIT = Split(
    training=(
        SplitImage(id="a", kind="stained on white", slide="s"),
        SplitImage(id="b", kind="stained on white", slide="s"),
        SplitImage(id="c", kind="stained on white", slide="u"),
        SplitImage(id="d", kind="bright-field", slide="s"),
    ),
    validation=(SplitImage(id="e", kind="stained on white", slide="t"),),
)
OF_KIND = {"ap_50": 0.75, "f1_70": 0.5, "split": 3, "merged": 4, "radius_bias_px": -0.25}
SCORES: dict[str, Any] = {
    "score": 0.5,
    "interval": (0.4125, 0.5875),
    "mean_iou": 0.8,
    "images": 2,
    "true": 1200,
    "predicted": 30,
    "split": 1,
    "merged": 2,
    "by_threshold": [
        {"iou_above": 0.5, "average_precision": 0.7, "precision": 0.8, "recall": 0.9, "f1": 0.85}
    ],
    "by_kind": {
        "fluorescence": {"score": 0.6, "images": 1} | OF_KIND,
        "stained on white": {"score": 0.3, "images": 1} | OF_KIND | {"radius_bias_px": None},
    },
}
BY_IMAGE = [
    {"id": f"image{n}", "kind": "fluorescence", "score": n / 10}
    | {"true": 4, "predicted": 3, "split": 0, "merged": 1}
    for n in range(7)
]


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("quick", ["training.epochs=2"])


def card(recipe: Recipe, split: Split = SPLIT, warning: str | None = "1 of 1 is known") -> str:
    return model_card(recipe, "train.zip", split, EVENTS, SCORES, BY_IMAGE, warning)


@pytest.mark.parametrize(
    "line",
    [
        "# Nuclei with the recipe quick",
        "train.zip, split by random with seed 3: 4 images of 2 slides for training, 1 images of 1 "
        "slides for validation.",
        "`quick` with training.epochs = 2.",
        "| stained on white | 3 | 1 | 0.300 | 0.750 | 0.500 | 3 | 4 | unknown |",
        "| fluorescence | 0 | 1 | 0.600 | 0.750 | 0.500 | 3 | 4 | -0.250 |",
        "| bright-field | 1 | 0 |" + " unknown |" * 6,
        "1 of 1 is known.",
        "No bright-field image was validated.",
        "**Score 0.5000** on the validation images (mean average precision over IoU 0.50:0.05:0.95). "
        "With other slides like these it would probably lie between 0.412 and 0.588. Mean IoU of "
        "pixels: 0.8000.",
        "| IoU above | average precision | precision | recall | f1 |",
        "| 0.50 | 0.700 | 0.800 | 0.900 | 0.850 |",
        "1,200 nuclei are annotated and 30 were predicted. 1 annotated nuclei were split, and 2 "
        "predicted nuclei merge several annotated ones.",
        "2 epochs in 1.5 minutes, 1,234,567 parameters, 1.5 GB of memory; tensorflow 2 on cpu:0, 2 "
        "cores, auto.",
        "The model is weak on stained on white. The worst of 2 validation images:",
        "| image | kind | score | annotated | predicted | split | merged |",
        "| image0 | fluorescence | 0.000 | 4 | 3 | 0 | 1 |",
    ],
)
def test_what_it_says(recipe: Recipe, line: str) -> None:
    assert line in card(recipe).splitlines()


def test_it_says_that_the_settings_were_tuned_on_the_same_images(recipe: Recipe) -> None:
    tuned = recipe.with_overrides(["inference.tune=true"])
    said = "over IoU 0.50:0.05:0.95, with settings tuned on the same images). With other"
    assert said in card(tuned)
    assert "tuned" not in card(recipe)


def test_a_model_of_several_folds_says_how_it_was_scored(recipe: Recipe) -> None:
    folds = recipe.with_overrides(["training.folds=3"])
    both = Split(training=SPLIT.training, validation=SPLIT.training)
    assert (
        "train.zip, 4 images of 2 slides, in 3 folds by random with seed 3. Each image was scored by "
        "the network of its fold, which does not know it. The model is the mean of all these networks."
    ) in card(folds, both).splitlines()
    lone = "The network that scored the bright-field images was trained on none."
    assert lone in card(folds, both).splitlines()


def test_a_score_without_interval(recipe: Recipe) -> None:
    said = model_card(recipe, "", SPLIT, EVENTS, SCORES | {"interval": None}, BY_IMAGE, None)
    assert "over IoU 0.50:0.05:0.95). Mean IoU of pixels: 0.8000." in said


def test_it_names_kinds_that_were_not_trained_on(recipe: Recipe) -> None:
    other = Split(training=SPLIT.validation, validation=SPLIT.training)
    assert "No bright-field image was trained on." in card(recipe, other).splitlines()
    assert "No stained" not in card(recipe, other)


def test_without_a_warning(recipe: Recipe) -> None:
    assert "1 of 1 is known." in card(recipe)
    assert "## Known weaknesses\n\nNo bright-field" in card(recipe, warning=None)


def test_it_names_the_five_worst(recipe: Recipe) -> None:
    assert "| image4 |" in card(recipe)
    assert "| image5 |" not in card(recipe)


def test_a_recipe_of_ones_own_is_written_completely(recipe: Recipe) -> None:
    own = recipe.model_copy(update={"name": "mine"})
    for key, value in own.flat().items():
        assert f"{key} = {value}" in card(own)


def test_a_named_recipe_as_it_is() -> None:
    assert "`quick`." in card(load_recipe("quick")).splitlines()


def test_cells_of_a_table_may_hold_any_text() -> None:
    assert markdown_table(["a", "b"], [("x|y", 1), ("[z](w)", "<_>")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1 |",
        r"| \[z\](w) | \<_\> |",
    ]
