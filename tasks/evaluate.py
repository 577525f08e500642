"""Scores on the validation images, at their original size."""

import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact

from nucleus_unet import evaluation
from nucleus_unet.backend import device_kind
from nucleus_unet.files import sha256_file, write_atomically
from nucleus_unet.home import home
from nucleus_unet.isolation import run_in_worker
from nucleus_unet.recipe import Recipe
from nucleus_unet.stages import Stage, run_stage
from tasks.reporting import progress, short, state_of
from tasks.split import samples
from tasks.train import LIBRARIES, MODEL

SCORES = "scores.json"


@task
def evaluate(recipe: Recipe, images: Stage, labels: Stage, split: Stage, model: Stage) -> Any:
    """Score the model on the validation images and draw the best and the worst; the `Stage`."""
    validation = samples(split, images, labels, "validation")
    cutoff = recipe.inference.cutoff

    def build(folder: Path) -> None:
        probabilities = [folder / f"{sample.id}.npy" for sample in validation]
        run_in_worker(
            recipe.training.cpu_threads,
            "nucleus_unet.inference:write_probabilities",
            model.folder / MODEL,
            recipe.inference,
            recipe.training.cpu_threads,
            [sample.image for sample in validation],
            probabilities,
        )
        scores = evaluation.score(validation, probabilities, cutoff, progress("scoring"))
        sheets = evaluation.pictures(validation, probabilities, cutoff, scores)
        for name, png in sheets.items():
            write_atomically(folder / f"validation_{name}.png", png)
        for path in probabilities:
            path.unlink()
        write_atomically(folder / SCORES, json.dumps(scores, indent=1))

    stage = run_stage(
        home(),
        "evaluate",
        {
            "model": sha256_file(model.folder / MODEL),
            "labels": labels.digest,
            "split": split.digest,
            "inference": recipe.inference.model_dump(mode="json"),
            "threads": recipe.training.cpu_threads,
            "device": device_kind(),
        },
        build,
        code=["inference", "evaluation"],
        libraries=LIBRARIES,
    )
    scores = scores_of(stage)
    by_image = scores.pop("by_image")
    create_table_artifact([short(scores)], key="scores", description="Scores on validation images")
    create_table_artifact(
        [short(row) | {"id": row["id"][:8]} for row in by_image],
        key="scores-by-image",
        description="Scores of each validation image, lowest IoU first",
    )
    return state_of(stage)


def scores_of(stage: Stage) -> dict[str, Any]:
    """The scores of an evaluate stage."""
    scores: dict[str, Any] = json.loads((stage.folder / SCORES).read_text())
    return scores
