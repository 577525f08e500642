"""Scores on the validation images, at their original size."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from nucleus_unet.data.sample import Sample
from nucleus_unet.engine.stages import Stage
from nucleus_unet.files import sha256_file, write_atomically
from nucleus_unet.recipe import Inference, Recipe
from nucleus_unet.reports import evaluation
from tasks.predict import prediction_key, write_maps
from tasks.reporting import progress, short, show, stage_in_home, state_of
from tasks.split import SPLIT_FILE, samples
from tasks.train import LIBRARIES as TRAINING_LIBRARIES
from tasks.train import NETWORK_FILE

SCORES = "scores.json"
BY_IMAGE = "scores_by_image.json"
TUNED = "inference.json"
LIBRARIES = (*TRAINING_LIBRARIES, "scikit-image", "scipy", "matplotlib")
"""Distributions whose version changes what a model finds, how it scores, or how that is drawn."""


@task(cache_policy=NO_CACHE)
def evaluate(recipe: Recipe, images: Stage, labels: Stage, split: Stage, model: Stage) -> Any:
    """Tune the model where the recipe says so, score it, draw the best and worst; the `Stage`."""
    validation = samples(split, images, labels, "validation")
    network = model.folder / NETWORK_FILE

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as maps:
            judged = judge(recipe, network, validation, recipe.inference.tune, Path(maps))
            scores, inference = dict(judged.scores), judged.inference
            by_image = scores.pop("by_image")
            sheets = evaluation.pictures(validation, judged.maps, inference, by_image)
        for name, png in sheets.items():
            write_atomically(folder / f"validation_{name}.png", png)
        write_atomically(folder / BY_IMAGE, json.dumps(by_image, indent=1))
        write_atomically(folder / SCORES, json.dumps(scores, indent=1))
        write_atomically(folder / TUNED, inference.model_dump_json(indent=1))

    stage = stage_in_home(
        "evaluate",
        prediction_key(recipe, network)
        | {
            "labels": labels.digest,
            "split": sha256_file(split.folder / SPLIT_FILE),
            "inference": recipe.inference.model_dump(mode="json"),
        },
        build,
        code=["network.inference", "reports.evaluation", "tasks.predict", __name__],
        libraries=LIBRARIES,
    )
    by_image = json.loads((stage.folder / BY_IMAGE).read_text())
    scores = scores_of(stage)
    create_table_artifact([short(scores)], key="scores", description="Scores on validation images")
    create_table_artifact(
        [short(row) for row in by_image],
        key="scores-by-image",
        description="Scores by validation image, worst first",
    )
    for name in ("worst", "best"):
        picture = (stage.folder / f"validation_{name}.png").read_bytes()
        show(picture, f"{name}-images", f"The {name} validation images: annotated beside predicted")
    return state_of(stage)


@dataclass(frozen=True)
class Judged:
    """What a model finds on images whose nuclei are known, and how it scores."""

    maps: Sequence[Path]
    inference: Inference
    """With the cutoffs that were tuned."""
    scores: Mapping[str, Any]
    """As `evaluation.score_maps` returns them."""

    @property
    def by_id(self) -> dict[str, float]:
        """The score of each image."""
        return {row["id"]: row["score"] for row in self.scores["by_image"]}


def judge(
    recipe: Recipe, network: Path, samples: Sequence[Sample], tune: bool, folder: Path
) -> Judged:
    """Predict samples, tune the cutoffs by them where asked, and score them; maps go to the folder."""
    folder.mkdir(exist_ok=True)
    maps = write_maps(recipe, network, {sample.id: sample.image for sample in samples}, folder)
    inference = recipe.inference
    if tune:
        inference = evaluation.tune_inference(
            samples, maps, inference, progress("tuning", "settings")
        )
    return Judged(
        maps, inference, evaluation.score_maps(samples, maps, inference, progress("scoring"))
    )


def scores_of(stage: Stage) -> dict[str, float]:
    """The scores of an evaluate stage over all its images, by name, and by imaging kind."""
    scores = json.loads((stage.folder / SCORES).read_text())
    by_threshold, by_kind = scores.pop("by_threshold"), scores.pop("by_kind")
    names = {"true": "annotated", "predicted": "predicted", "split": "split", "merged": "merged"}
    counts = {f"nuclei {name}": scores.pop(key) for key, name in names.items()}
    precisions = {f"AP at {row['iou_above']:.2f}": row["average_precision"] for row in by_threshold}
    kinds = {f"score of {kind}": row["score"] for kind, row in by_kind.items()}
    return scores | counts | kinds | precisions


def tuned_by(stage: Stage, recipe: Recipe) -> Recipe:
    """The recipe with the cutoffs that the evaluate stage chose."""
    tuned = Inference.model_validate_json((stage.folder / TUNED).read_bytes())
    return recipe.model_copy(update={"inference": tuned})
