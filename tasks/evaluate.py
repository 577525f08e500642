"""Scores on the validation images, at their original size."""

import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact

from nucleus_unet import evaluation
from nucleus_unet.files import write_atomically
from nucleus_unet.home import home
from nucleus_unet.recipe import Recipe
from nucleus_unet.stages import Stage, run_stage
from tasks.predict import prediction_key, write_probabilities
from tasks.reporting import progress, short, state_of
from tasks.split import samples
from tasks.train import LIBRARIES, MODEL

SCORES = "scores.json"
BY_IMAGE = "scores_by_image.json"


@task
def evaluate(recipe: Recipe, images: Stage, labels: Stage, split: Stage, model: Stage) -> Any:
    """Score the model on the validation images and draw the best and the worst; the `Stage`."""
    validation = samples(split, images, labels, "validation")
    network, cutoff = model.folder / MODEL, recipe.inference.cutoff

    def build(folder: Path) -> None:
        arrays = {sample.id: sample.image for sample in validation}
        probabilities = write_probabilities(recipe, network, arrays, folder)
        scores = evaluation.score(validation, probabilities, cutoff, progress("scoring"))
        sheets = evaluation.pictures(validation, probabilities, cutoff, scores)
        for name, png in sheets.items():
            write_atomically(folder / f"validation_{name}.png", png)
        for path in probabilities:
            path.unlink()
        write_atomically(folder / BY_IMAGE, json.dumps(scores.pop("by_image"), indent=1))
        write_atomically(folder / SCORES, json.dumps(scores, indent=1))

    stage = run_stage(
        home(),
        "evaluate",
        prediction_key(recipe, network) | {"labels": labels.digest, "split": split.digest},
        build,
        code=["inference", "evaluation"],
        libraries=LIBRARIES,
    )
    by_image = json.loads((stage.folder / BY_IMAGE).read_text())
    create_table_artifact(
        [short(scores_of(stage))], key="scores", description="Scores on validation images"
    )
    create_table_artifact(
        [short(row) | {"id": row["id"][:8]} for row in by_image],
        key="scores-by-image",
        description="Scores of each validation image, lowest IoU first",
    )
    return state_of(stage)


def scores_of(stage: Stage) -> dict[str, float]:
    """The scores of an evaluate stage over all its images."""
    scores: dict[str, float] = json.loads((stage.folder / SCORES).read_text())
    return scores
