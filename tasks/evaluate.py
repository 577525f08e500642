"""Score the model on the validation images, at their original size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect.artifacts import create_table_artifact

from nucleus_unet.data import SPLIT_FILE, Split, read_images, read_labels, read_split
from nucleus_unet.engine import Stage
from nucleus_unet.files import sha256_file, write_atomically
from nucleus_unet.network import KERAS_LIBRARIES, prediction_key
from nucleus_unet.nuclei import table_csv
from nucleus_unet.recipe import Inference, Recipe
from nucleus_unet.reports import (
    SUSPECT_COLUMNS,
    evaluate_model,
    find_suspects,
    pictures,
    score_interval,
    suspects_sheet,
)
from nucleus_unet.runs import records
from tasks.reporting import (
    StageResult,
    cached_stage,
    finished,
    progress,
    short,
    show,
    uncached_task,
)
from tasks.train import NETWORK_FILE

SCORES = "scores.json"
BY_IMAGE, SUSPECTED = records.SCORES_BY_IMAGE, records.SUSPECTS
TUNED = "inference.json"
LEAST_SLIDES_OF_INTERVAL = 5
EVALUATION_LIBRARIES = (*KERAS_LIBRARIES, "scikit-image", "scipy", "matplotlib")
"""Distributions whose version changes what a model finds, how it scores, or how that is drawn."""


@uncached_task("evaluate {recipe.name} on validation images")
def evaluate(
    recipe: Recipe, images: Stage, labels: Stage, folds: Sequence[tuple[Stage, Stage]]
) -> StageResult:
    """Tune the model if the recipe says so, score it, and draw its best and worst images.

    Parameters
    ----------
    folds : sequence of (Stage, Stage)
        Split and model of each fold, or of the one training. Each predicts its validation images.
    """
    indices = read_images(images.folder), read_labels(labels.folder)
    splits = [read_split(split.folder) for split, _ in folds]
    parts = [
        (model.folder / NETWORK_FILE, split.samples("validation", *indices, images.home))
        for split, (_, model) in zip(splits, folds, strict=True)
    ]
    samples = [sample for _, own in parts for sample in own]

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as maps:
            made = evaluate_model(recipe, parts, Path(maps), progress)
            suspects = find_suspects(samples, made)
            sheets = pictures(samples, made) | {"suspects": suspects_sheet(samples, made, suspects)}
        scores = {**made.scores, "interval": _interval(made.by_id, splits)}
        write_atomically(folder / BY_IMAGE, json.dumps(scores.pop("by_image"), indent=1))
        write_atomically(folder / SCORES, json.dumps(scores, indent=1))
        write_atomically(folder / TUNED, made.inference.model_dump_json(indent=1))
        write_atomically(folder / SUSPECTED, table_csv(SUSPECT_COLUMNS, suspects))
        for name, png in sheets.items():
            if png:
                write_atomically(folder / f"validation_{name}.png", png)

    stage = cached_stage(
        images.home,
        "evaluate",
        {
            "folds": [prediction_key(recipe, network) for network, _ in parts],
            "labels": labels.digest,
            "splits": [sha256_file(split.folder / SPLIT_FILE) for split, _ in folds],
            "inference": recipe.inference.model_dump(mode="json"),
        },
        build,
        code=[
            "reports.evaluation",
            "reports.champion",
            "reports.suspects",
            "nuclei.measurements",
            "data.split",
            "data.prepared",
            __name__,
        ],
        libraries=EVALUATION_LIBRARIES,
    )
    by_image = json.loads((stage.folder / BY_IMAGE).read_text())
    scores = scores_of(stage)
    create_table_artifact([short(scores)], key="scores", description="Scores on validation images")
    create_table_artifact(
        [short(row) for row in by_image],
        key="scores-by-image",
        description="Scores of each validation image, worst first",
    )
    for name in ("worst", "best"):
        picture = (stage.folder / f"validation_{name}.png").read_bytes()
        description = f"The {name} validation images: annotated nuclei left, predicted right"
        show(picture, f"{name}-images", description)
    return finished(stage, f"score {scores['score']:.4f} on {len(by_image)} validation images")


def _interval(scores: Mapping[str, float], splits: Sequence[Split]) -> tuple[float, float] | None:
    """The `score_interval`; None if the slides are too few, or not new to the network."""
    slides = {image.id: image.slide for split in splits for image in split.validation}
    known = any(split.slides_of("validation") & split.slides_of("training") for split in splits)
    too_few = len({*slides.values()}) < LEAST_SLIDES_OF_INTERVAL
    return None if known or too_few else score_interval(scores, slides)


def scores_of(stage: Stage) -> dict[str, float]:
    """The scores over all validation images, by name, and the score of each imaging kind."""
    scores = json.loads((stage.folder / SCORES).read_text())
    interval = scores.pop("interval")
    by_threshold, by_kind = scores.pop("by_threshold"), scores.pop("by_kind")
    lost = {f"lost by {cause}": value for cause, value in scores.pop("losses").items()}
    sizes = {
        f"AP at 0.50 of nuclei from {row['diameter_px'][0]} px": row["average_precision"]
        for row in scores.pop("by_size")
    }
    bias = scores.pop("radius_bias_px")
    radius = {} if bias is None else {"radius bias in px": bias}  # None without matches
    names = {"true": "annotated", "predicted": "predicted", "split": "split", "merged": "merged"}
    counts = {f"nuclei {name}": scores.pop(key) for key, name in names.items()}
    precisions = {f"AP at {row['iou_above']:.2f}": row["average_precision"] for row in by_threshold}
    f1 = {
        f"F1 at {row['iou_above']:.2f}": row["f1"]
        for row in by_threshold
        if row["iou_above"] == 0.7
    }
    kinds = {f"score of {kind}": row["score"] for kind, row in by_kind.items()}
    limits = dict(zip(("score low", "score high"), interval or (), strict=False))
    return scores | limits | counts | radius | kinds | lost | precisions | f1 | sizes


def tuned_by(stage: Stage, recipe: Recipe) -> Recipe:
    """The recipe with the inference settings that the evaluation chose."""
    tuned = Inference.model_validate_json((stage.folder / TUNED).read_bytes())
    return recipe.model_copy(update={"inference": tuned})
