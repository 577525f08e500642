"""The model card: what a model was trained on, how it scores, what it cost and where it fails."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nucleus_unet.data import SIDES, Split, folds_of
from nucleus_unet.engine import epochs
from nucleus_unet.recipe import Recipe, load_recipe, recipe_names

FAILURES = 5
"""Number of the worst images that are listed."""


def model_card(
    recipe: Recipe,
    data: str,
    split: Split,
    events: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    by_image: Sequence[Mapping[str, Any]],
    warning: str | None,
) -> str:
    """Write the card of a trained model, in markdown.

    Parameters
    ----------
    recipe : Recipe
        Resolved, with the tuned values.
    data : str
        Name of the raw data.
    split : Split
    events : sequence of mappings
        Events of the training, as `train_network` writes them.
    scores, by_image
        As `score_maps` returns them, the rows of the images apart, and with the ``interval`` of the
        score, or None.
    warning : str, optional
        Why the scores may be too high.
    """
    history, interval = epochs(events), scores["interval"]
    likely = (
        "With other slides like these it would probably lie between {:.3f} and {:.3f}. "
        if interval
        else ""
    )
    start = next(event for event in events if event["event"] == "start")
    end = next(event for event in events if event["event"] == "end")
    minutes = sum(epoch["seconds"] for epoch in history) / 60
    folds = folds_of(split, recipe) if recipe.training.folds else []
    lone = sorted({k for one in folds for k in one.kinds("validation") - one.kinds("training")})
    trained, validated = (split.kinds(side) for side in SIDES)
    tuned = ", with settings tuned on the same images" * recipe.inference.tune
    columns = ("id", "kind", "score", "true", "predicted", "split", "merged")
    worst = [
        [f"{row[key]:.3f}" if key == "score" else row[key] for key in columns]
        for row in by_image[:FAILURES]
    ]
    return "\n\n".join(
        [
            f"# Nuclei with the recipe {recipe.name}",
            f"**Score {scores['score']:.4f}** on the validation images (mean average precision over "
            f"IoU 0.50:0.05:0.95{tuned}). {likely.format(*interval or ())}Mean IoU of pixels: "
            f"{scores['mean_iou']:.4f}.",
            "## Data",
            f"{data}, {_sides(recipe, split)}",
            "## Recipe",
            _changes(recipe),
            "## Scores",
            _kinds_table(split, scores),
            _thresholds_table(scores),
            f"{scores['true']:,} nuclei are annotated and {scores['predicted']:,} were predicted. "
            f"{scores['split']:,} annotated nuclei were split, and {scores['merged']:,} predicted "
            "nuclei merge several annotated ones.",
            "## Cost",
            f"{len(history)} epochs in {minutes:.1f} minutes, {start['parameters']:,} parameters, "
            f"{end['peak_memory_bytes'] / 1e9:.1f} GB of memory; {start['backend']} on "
            f"{start['device']}, {start['cores']} cores, {recipe.training.precision}.",
            "## Known weaknesses",
            *([f"{warning}."] if warning else []),
            *(f"No {kind} image was validated." for kind in sorted(trained - validated)),
            *(f"No {kind} image was trained on." for kind in sorted(validated - trained)),
            *(f"The network that scored the {kind} images was trained on none." for kind in lone),
            f"{_weak(scores)}The worst of {scores['images']} validation images:",
            markdown_table(["image", "kind", "score", "annotated", *columns[4:]], worst),
        ]
    )


def _sides(recipe: Recipe, split: Split) -> str:
    images, validated = (
        f"{len(rows)} images of {len({row.slide for row in rows})} slides"
        for rows in map(split.side, SIDES)
    )
    how = f"by {recipe.data.split} with seed {recipe.data.split_seed}"
    if recipe.training.folds:
        return (
            f"{images}, in {recipe.training.folds} folds {how}. Each image was scored by the network of "
            "its fold, which does not know it. The model is the mean of all these networks."
        )
    return f"split {how}: {images} for training, {validated} for validation."


def _kinds_table(split: Split, scores: Mapping[str, Any]) -> str:
    trained = Counter(image.kind for image in split.training)
    by_kind = scores["by_kind"]
    measured = ("score", "ap_50", "f1_70", "split", "merged", "radius_bias_px")
    rows: list[list[object]] = [
        [kind, trained[kind], row["images"], *(_shown(row[key]) for key in measured)]
        for kind, row in by_kind.items()
    ]
    rows += [
        [kind, trained[kind], 0, *["unknown"] * len(measured)]
        for kind in sorted(trained.keys() - by_kind.keys())
    ]
    names = ("score", "AP at 0.50", "F1 at 0.70", "split", "merged", "radius bias in px")
    return markdown_table(["kind", "training images", "validation images", *names], rows)


def _shown(value: float | None) -> str:
    if value is None:  # a bias without matches
        return "unknown"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _thresholds_table(scores: Mapping[str, Any]) -> str:
    rows = [
        [f"{row[key]:.2f}" if key == "iou_above" else f"{row[key]:.3f}" for key in row]
        for row in scores["by_threshold"]
    ]
    head = [key.replace("iou", "IoU").replace("_", " ") for key in scores["by_threshold"][0]]
    return markdown_table(head, rows)


def _changes(recipe: Recipe) -> str:
    """The values that differ from the named recipe; all values if it does not come with the package."""
    own = load_recipe(recipe.name).flat().items() if recipe.name in recipe_names() else ()
    changed = [item for item in recipe.flat().items() if item not in own]
    values = ", ".join(f"{key} = {value}" for key, value in changed)
    return f"`{recipe.name}`" + (f" with {values}" if values else "") + "."


def _weak(scores: Mapping[str, Any]) -> str:
    weak = [
        kind for kind, row in scores["by_kind"].items() if row["score"] < 0.75 * scores["score"]
    ]
    return f"The model is weak on {' and '.join(weak)}. " if weak else ""


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in markdown. Cells may hold any text, for example image ids."""
    shown = ([re.sub(r"([\\|\[\]<>*`])", r"\\\1", str(cell)) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *shown]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
