"""The text that goes with an exported network follows from its recipe."""

import tomllib

import pytest

from nucleus_unet.network.export_readme import CHANNEL_NAMES, ModelOrigin, export_readme
from nucleus_unet.network.inference import OVERLAP_PX, STEP_PX
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.recipe import Recipe, load_recipe

ORIGIN = ModelOrigin(
    "abc", "run abc: tiny, trained on cells, score 0.500", 40 * "c", "# Card\n\n## Data\n\n#1 ok\n"
)


def steps(text: str, section: str) -> list[str]:
    """The numbered lines of a section."""
    part = text.partition(f"## {section}\n\n")[2].partition("\n\n")[0]
    assert all(line.startswith("1. ") for line in part.splitlines())
    return [line.removeprefix("1. ") for line in part.splitlines()]


def readme(recipe: Recipe) -> str:
    return export_readme(recipe, ORIGIN, 64 * "5", "`network.onnx` is a file.")


def test_it_names_the_origin_and_holds_the_card_and_the_recipe(tiny: Recipe) -> None:
    text = readme(tiny)
    assert "This is run abc: tiny, trained on cells, score 0.500. Run: abc." in text
    assert f"trained it: {40 * 'c'}. SHA-256 of its `model.keras`: {64 * '5'}. Exported by" in text
    assert "`network.onnx` is a file. It computes in float32" in text
    assert "## Validation and training\n\n### Card\n\n#### Data\n\n#1 ok\n\n## Recipe" in text
    recipe = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    assert recipe["inference"]["batch_size"] == 2


def test_a_recipe_that_resizes_and_predicts_the_mask(tiny: Recipe) -> None:
    text = readme(tiny.with_overrides(["inference.cutoff=0.4"]))
    assert "divides them by 255. H and W are 32.\n" in text
    assert "(N, H, W, 1) float32, probabilities from 0 to 1. Channels: nucleus.\n" in text
    first, *others = steps(text, "Before the network")
    assert first.endswith("from its percentiles 0.01 and 99.99 to 0 and 255.")
    assert others == ["Resize the image bilinearly to 32 × 32."]
    assert steps(text, "After the network") == [
        "Resize the maps bilinearly to the size of the image.",
        "Nuclei are the pieces of the pixels above 0.4. Pixels that touch only at a corner are "
        "connected.",
        "Remove nuclei with fewer than 0 pixels, and nuclei whose confidence is not above 0. The "
        "confidence is the mean probability × area / (A + C / 2 + 1), where A and C are the area and "
        "the circumference of the convex hull of the pixel centres.",
    ]


def test_a_recipe_of_crops_with_borders(crops: Recipe) -> None:
    text = readme(
        crops.with_overrides(
            [
                *("inference.scale=2", "inference.scales=[1, 0.5]", "inference.flips=true"),
                *(
                    "inference.cutoff=0.6",
                    "inference.seed_cutoff=0.7",
                ),
                *("inference.min_area_px=30", "inference.min_confidence=0.8"),
            ]
        )
    )
    assert "H and W are multiples of 2, of any size.\n" in text
    assert (
        "(N, H, W, 2) float32, probabilities from 0 to 1. Channels: nucleus and border.\n" in text
    )
    _, stretch, invert, magnify, mirror, flips = steps(text, "Before the network")
    assert "255 × (v - p1) / max(p99.7 - p1, 8), rounded" in stretch
    assert "closer to their percentile 99.99 than to their percentile 0.01." in invert
    assert magnify.startswith("Predict the image at each of these magnifications: 2, 1. ")
    assert f"multiples of {STEP_PX}. If a side is longer than 1536 pixels" in mirror
    assert f"overlap by at least {OVERLAP_PX} pixels" in mirror
    assert flips.startswith("Predict the eight flips and quarter turns")
    cut, _, seeds, basins, small, join, fill = steps(text, "After the network")
    assert cut == "Cut off what was mirrored."
    assert seeds.startswith("The mask is where nucleus is above 0.6. ")
    assert "where nucleus × (1 - border) is above 0.7." in seeds
    assert basins.startswith("A watershed of nucleus × (1 - border)")
    assert small.startswith("Remove nuclei with fewer than 30 pixels at this magnification, and")
    assert (
        "confidence is not above 0.8. The confidence is the mean probability × area / (A" in small
    )
    assert "in the order of their confidence" in join
    assert "more than 33% of its pixels" in join
    assert fill == "Background that a nucleus encloses becomes part of the nucleus."


def test_one_scale_and_one_cutoff_need_fewer_steps(crops: Recipe) -> None:
    text = readme(crops)
    assert "magnifications" not in text
    assert len(steps(text, "After the network")) == 6


@pytest.mark.parametrize("name", ["best", "quick", "seed", "paper"])
def test_every_recipe_has_a_text(name: str) -> None:
    recipe = load_recipe(name)
    assert readme(recipe) == readme(recipe)


def test_every_channel_has_a_name() -> None:
    assert {outputs: len(names) for outputs, names in CHANNEL_NAMES.items()} == CHANNELS
