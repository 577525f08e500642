"""The model card: what a model was made of, how it scores, what it cost and where it fails."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nucleus_unet.engine.events import epochs
from nucleus_unet.recipe import Recipe, load_recipe, recipe_names

FAILURES = 5
"""How many of the worst images are named."""


def model_card(
    recipe: Recipe,
    data: str,
    sides: Mapping[str, Sequence[Mapping[str, str]]],
    events: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    by_image: Sequence[Mapping[str, Any]],
    seen: str | None,
) -> str:
    """Write the card of a trained model, in markdown.

    Parameters
    ----------
    recipe : Recipe
        Resolved, with the cutoffs that were tuned.
    data : str
        What the raw data sets are called.
    sides : mapping of str to sequence of mappings
        ``training`` and ``validation``: ``id``, ``kind`` and ``slide`` of each image.
    events : sequence of mappings
        Of the training, as `nucleus_unet.network.training.train_network` writes them.
    scores, by_image
        As `nucleus_unet.reports.evaluation.score_maps` gives them.
    seen : str, optional
        What is to be said of validation images that the weights know from an earlier training.
    """
    history = epochs(events)
    start = next(event for event in events if event["event"] == "start")
    end = next(event for event in events if event["event"] == "end")
    minutes = sum(epoch["seconds"] for epoch in history) / 60
    by_kind = scores["by_kind"]
    trained = Counter(row["kind"] for row in sides["training"])
    kinds: list[list[object]] = [
        [kind, trained[kind], row["images"], f"{row['score']:.3f}"] for kind, row in by_kind.items()
    ]
    unseen = sorted(trained.keys() - by_kind.keys())
    untrained = sorted(by_kind.keys() - trained.keys())
    kinds += [[kind, trained[kind], 0, "not known"] for kind in unseen]
    thresholds = [
        [f"{row[key]:.2f}" if key == "iou_above" else f"{row[key]:.3f}" for key in row]
        for row in scores["by_threshold"]
    ]
    columns = ("id", "kind", "score", "true", "predicted", "split", "merged")
    worst = [
        [f"{row[key]:.3f}" if key == "score" else row[key] for key in columns]
        for row in by_image[:FAILURES]
    ]
    return "\n\n".join(
        [
            f"# Nuclei by recipe {recipe.name}",
            f"**Score {scores['score']:.4f}** on the validation images: mean average precision over "
            f"IoU 0.50:0.05:0.95{', cutoffs tuned on these' * recipe.inference.tune}. "
            f"Pixels: mean IoU {scores['mean_iou']:.4f}.",
            "## Data",
            f"{data}. Split by {recipe.data.split}, seed {recipe.data.split_seed}: "
            + " and ".join(
                f"{len(rows)} images of {len({row['slide'] for row in rows})} slides for {side}"
                for side, rows in sides.items()
            )
            + ".",
            "## Recipe",
            _differences(recipe),
            "## Scores",
            markdown_table(["kind", "training images", "validation images", "score"], kinds),
            markdown_table(list(scores["by_threshold"][0]), thresholds),
            f"{scores['true']:,} nuclei annotated, {scores['predicted']:,} predicted; "
            f"{scores['split']:,} annotated ones were split, {scores['merged']:,} predicted ones hold "
            "several.",
            "## Cost",
            f"{len(history)} epochs in {minutes:.1f} minutes, {start['parameters']:,} parameters, "
            f"{end['peak_memory_bytes'] / 1e9:.1f} GB; {start['backend']} on "
            f"{start['device']}, {start['cores']} cores, {recipe.training.precision}.",
            "## Known failures",
            *([f"{seen}."] if seen else []),
            *(f"Not validated: {kind}." for kind in unseen),
            *(f"Not trained on: {kind}." for kind in untrained),
            f"{_weak(scores)}The worst of {scores['images']} validation images:",
            markdown_table(columns, worst),
        ]
    )


def _differences(recipe: Recipe) -> str:
    """The values that are not the named recipe's own; of an unknown recipe all of them."""
    own = load_recipe(recipe.name).flat().items() if recipe.name in recipe_names() else ()
    changed = [item for item in recipe.flat().items() if item not in own]
    values = ", ".join(f"{key} = {value}" for key, value in changed)
    return f"`{recipe.name}`" + (f" with {values}" if values else "") + "."


def _weak(scores: Mapping[str, Any]) -> str:
    weak = [
        kind for kind, row in scores["by_kind"].items() if row["score"] < 0.75 * scores["score"]
    ]
    return f"Weak on {' and '.join(weak)}. " if weak else ""


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in markdown, whatever the cells hold, image ids perhaps."""
    shown = ([re.sub(r"([\\|\[\]<>*`])", r"\\\1", str(cell)) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *shown]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
