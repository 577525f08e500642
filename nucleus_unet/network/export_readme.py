"""The text that goes with an exported network: what to do before and after it, in words and numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from nucleus_unet.data.images import STRETCH_PERCENTILES
from nucleus_unet.network.normalization import DARKEST, LEAST_RANGE, PERCENTILES
from nucleus_unet.nuclei.instances import MOST_COVERED
from nucleus_unet.recipe import Inference, Recipe

OPSET = 13
"""Version of ONNX's operators that programs of the last years run."""
CHANNEL_NAMES = {"mask": ("nucleus",), "borders": ("nucleus", "border")}
"""What each output channel is the probability of, for each value of ``network.outputs``."""


@dataclass(frozen=True)
class ModelOrigin:
    """Where a model comes from, for the people who get it."""

    run_id: str
    """The run that trained it, or ``builtin``."""
    description: str
    """What it was trained on and how it scores, in a few words."""
    commit: str
    """Revision of the program that trained it."""
    card: str
    """The model card, in markdown."""


def export_readme(recipe: Recipe, origin: ModelOrigin, network_sha256: str, file: str) -> str:
    """Describe an exported network.

    Parameters
    ----------
    recipe : Recipe
        Resolved, with the tuned values.
    origin : ModelOrigin
    network_sha256 : str
        SHA-256 of the ``model.keras``.
    file : str
        A sentence about the file of the network.

    Returns
    -------
    str
        Markdown. Equal arguments give equal text with one version of the program.
    """
    return "\n\n".join(
        [
            f"# Cell nuclei: U-Net of the recipe {recipe.name}",
            f"This is {origin.description}. Run: {origin.run_id}. Revision of the program that trained "
            f"it: {origin.commit}. SHA-256 of its `model.keras`: {network_sha256}. Exported by "
            f"nucleus-unet {metadata.version('nucleus-unet')}.",
            "## The network",
            f"{file} It computes in float32 and holds no step before or after the network.",
            _listed(_tensors(recipe), "-"),
            "## Before the network",
            _listed(_steps_before(recipe)),
            "## After the network",
            _listed(_steps_after(recipe)),
            "## Validation and training",
            # The card becomes a part of this page.
            re.sub(r"^(#+ )", r"##\1", origin.card.strip(), flags=re.MULTILINE),
            "## Recipe",
            f"```toml\n{recipe.to_toml().strip()}\n```\n",
        ]
    )


def _tensors(recipe: Recipe) -> list[str]:
    step = recipe.network.step_px
    side = recipe.data.image_size
    size = (
        f"H and W are {side}."
        if recipe.data.framing == "resize"
        else f"H and W are multiples of {step}, of any size."
    )
    names = " and ".join(CHANNEL_NAMES[recipe.network.outputs])
    return [
        f"Input: (N, H, W, 3) float32, RGB, values 0 to 255; the network divides them by 255. {size}",
        f"Output: (N, H, W, {len(CHANNEL_NAMES[recipe.network.outputs])}) float32, probabilities from 0 "
        f"to 1. Channels: {names}.",
    ]


def _steps_before(recipe: Recipe) -> list[str]:
    darkest, brightest = STRETCH_PERCENTILES
    steps = [
        "Take an RGB image with 8 bits. A gray image gets three equal channels. Stretch an image with "
        f"more bits from its percentiles {darkest:g} and {brightest:g} to 0 and 255."
    ]
    if recipe.data.normalize:
        low, high = PERCENTILES
        steps += [
            f"Find, for each channel of the complete image, the percentiles {low:g} and {high:g}: the "
            "smallest value that at least this percentage of the pixels does not exceed. Replace each "
            f"value v by 255 × (v - p{low:g}) / max(p{high:g} - p{low:g}, {LEAST_RANGE:g}), rounded and "
            "limited to 0 to 255.",
            "If the background is bright, replace each value v by 255 - v after that. Look at the "
            "values of all channels together, as they were before the last step. The background is "
            f"bright if their median is closer to their percentile {100 - DARKEST:g} than to their "
            f"percentile {DARKEST:g}. For the latter, leave out the value 0, unless the median is 0.",
        ]
    if recipe.data.framing == "resize":
        steps.append(
            f"Resize the image bilinearly to {recipe.data.image_size} × {recipe.data.image_size}."
        )
    else:
        steps += _steps_of_crops(recipe)
    if recipe.inference.flips:
        steps.append(
            "Predict the eight flips and quarter turns, turn the maps back, and average them."
        )
    return steps


def _steps_of_crops(recipe: Recipe) -> list[str]:
    scales = _factors(recipe.inference)
    steps = []
    if scales != "1":
        steps.append(
            f"Predict the image at each of these magnifications: {scales}. Reduce it by the mean over "
            "areas, and enlarge it bilinearly."
        )
    steps.append(
        "Mirror the image at its lower and right edge, the edge included, until the sides are "
        f"multiples of 64. If a side is longer than {recipe.inference.tile_px} pixels, predict tiles of "
        "at most this size that overlap by at least 256 pixels, and blend them in the middle of the "
        "overlap."
    )
    return steps


def _steps_after(recipe: Recipe) -> list[str]:
    inference = recipe.inference
    steps = ["Resize the maps bilinearly to the size of the image."]
    if recipe.data.framing == "crop":
        steps = ["Cut off what was mirrored.", *steps]
    if recipe.network.outputs == "mask":
        steps.append(
            f"Nuclei are the pieces of the pixels above {inference.cutoff:g}. Pixels that touch only at "
            "a corner are connected."
        )
    else:
        steps += _steps_with_borders(inference)
    magnified = " at this magnification" if recipe.data.framing == "crop" else ""
    steps.append(
        f"Remove nuclei with fewer than {inference.min_area_px} pixels{magnified}, and nuclei whose "
        f"confidence is not above {inference.min_confidence:g}. The confidence is the mean probability "
        "× area / (A + C / 2 + 1), where A and C are the area and the circumference of the convex hull "
        "of the pixel centres."
    )
    if len(inference.scales) > 1:
        steps.append(
            "Join the nuclei of all magnifications, in the order of their confidence. A nucleus that "
            f"loses more than {MOST_COVERED:.0%} of its pixels to nuclei of higher confidence is "
            "removed. If it loses fewer, it keeps its largest piece."
        )
    if recipe.network.outputs == "borders":
        steps.append("Background that a nucleus encloses becomes part of the nucleus.")
    return steps


def _steps_with_borders(inference: Inference) -> list[str]:
    return [
        f"The mask is where nucleus is above {inference.cutoff:g}. Seeds are the pieces of the mask "
        f"where nucleus × (1 - border) is above {inference.seed_cutoff:g}. A piece of the mask without "
        "a seed is a seed itself. Pixels that touch only at a corner are not connected.",
        "A watershed of nucleus × (1 - border) grows the seeds, from high to low values, within the "
        "mask. Each basin is a nucleus.",
    ]


def _factors(inference: Inference) -> str:
    return ", ".join(f"{inference.scale * scale:g}" for scale in inference.scales)


def _listed(texts: Sequence[str], mark: str = "1.") -> str:
    return "\n".join(f"{mark} {text}" for text in texts)
