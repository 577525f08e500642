"""A new model beside the champion, on images that neither was trained on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from nucleus_unet.data.sample import Sample
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.engine.isolation import OutOfMemoryError
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import write_atomically
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import evaluation, figures
from nucleus_unet.reports.card import markdown_table
from nucleus_unet.reports.champion import LEAST_SLIDES, compare_scores
from nucleus_unet.runs import records, registry, tracking
from nucleus_unet.runs.registry import CHALLENGER, CHAMPION, COPY
from tasks.evaluate import LIBRARIES, Judged, judge, scores_of
from tasks.predict import prediction_key
from tasks.publish import Trained
from tasks.reporting import show, stage_in_home
from tasks.split import samples, sides_of, slide_of, slides_seen
from tasks.train import NETWORK_FILE

SCORES_OF_BOTH = "scores.json"
_PICTURE = "disagreement.png"
NEW_CHAMPION = "nucleus.champion.new"
"""Event of a model that became the champion by its scores."""
_SHOWN = 6
"""Images in the picture of disagreement."""

Model = tuple[Recipe, Path]
"""A recipe with the cutoffs that were tuned, and its ``model.keras``."""


@task(cache_policy=NO_CACHE)
def rank(recipe: Recipe, made: Trained, model_id: str, run: tracking.Run) -> str:
    """Register the model as ``champion`` if it is the first or better than that one; its place.

    One that is the same is a ``copy``, any other the ``challenger``. What was decided of it before, by
    hand or by an attempt that was cut short, stays.

    Better by more than chance: the interval of the paired difference of scores, over slides that
    neither was trained on, is above 0. The cutoffs of both are tuned on these, where the recipe tunes.

    Parameters
    ----------
    recipe : Recipe
        Of the model, with the cutoffs that were tuned.
    """
    tags = {"recipe": recipe.name, "score": f"{scores_of(made.scores)['score']:.4f}"}
    version = registry.register(run, model_id, tags)
    while True:
        before = registry.champion()
        if before and before.number == version.number:
            note = before.tags.get(registry.NOTE, "It is the champion already.")
            return _tag(run, version.number, CHAMPION, note)
        if registry.NOTE in version.tags:
            verdict = f"It was the champion, {version.tags[registry.NOTE]}"
            return _tag(run, version.number, CHALLENGER, verdict)
        place, said = CHAMPION, "It is the first."
        if before:
            place, said = _verdict(before, recipe, made, run)
        elif registry.had_champion():
            place, said = CHALLENGER, "The champion was deleted: promote a version, or roll back."
        if registry.champion() == before:  # else another was promoted meanwhile
            break
    last_line = said.splitlines()[-1]
    page = f"# Version {version.number}: {place}\n\n{said}"
    create_markdown_artifact(page, key="ranking", description="This model and the champion")
    tracking.log_bytes(run, "ranking.md", page.encode())
    _tag(run, version.number, place, last_line)
    if place == CHAMPION:
        registry.promote_version(version.number, "retrain", last_line)
        resource = {"prefect.resource.id": f"nucleus.model.{version.number}"}
        told = {"said": f"Version {version.number}: {last_line}", "url": run.url}
        emit_event(NEW_CHAMPION, resource=resource, payload=told)
    elif place == CHALLENGER:
        registry.challenge(version)
    get_run_logger().info("version %s: %s. %s", version.number, place, last_line)
    return place


def _tag(run: tracking.Run, number: str, place: str, verdict: str) -> str:
    """Tag the run with what became of its model; returns the place."""
    tags = {"model.version": number, "model.place": place, "model.verdict": verdict}
    tracking.log_tags(run, tags)
    return place


def _verdict(
    champion: registry.Version, recipe: Recipe, made: Trained, run: tracking.Run
) -> tuple[str, str]:
    """The place of a new model beside the champion, and what shows it."""
    try:
        theirs, new = (
            records.fetch_model(champion.run_id),
            (recipe, made.model.folder / NETWORK_FILE),
        )
        weights = {records.require_run(one)["weights.sha256"] for one in (champion.run_id, run.id)}
        if theirs[0].digest() == recipe.digest() and len(weights) == 1:
            return COPY, "It is the champion once more: the same weights and cutoffs."
        slides, unseen = _unseen(champion, recipe, made)
        if not unseen:
            return CHALLENGER, "The champion or this model was trained on each validation slide."
        stage = _evaluated(theirs, new, unseen, made.labels)
    except (StoppedError, OutOfMemoryError):
        raise
    # An older model, which this code cannot read; what passes by ends the run, and it is taken up.
    except (NucleusError, LookupError, TypeError, ValueError) as error:
        fault = not isinstance(error, NucleusError)
        get_run_logger().warning("not compared with the champion: %s", error, exc_info=fault)
        why = " ".join(str(error).split())
        return CHALLENGER, f"Version {champion.number}, the champion, cannot be compared: {why}"
    both = json.loads((stage.folder / SCORES_OF_BOTH).read_text())
    old_scores, new_scores = both["champion"], both["new"]
    found = compare_scores(old_scores, new_scores, slides)
    merits = {f"champion/{key}": value for key, value in asdict(found).items()}
    # An earlier attempt may have met another champion.
    tracking.log_metrics(run, merits, step=run.attempt)
    tracking.log_files(run, "pictures", [stage.folder / _PICTURE])
    picture = (stage.folder / _PICTURE).read_bytes()
    show(picture, "disagreement", "Images on which this model and the champion differ most")
    old, new_one = (np.mean([*scores.values()]) for scores in (old_scores, new_scores))
    old_one = f"version {champion.number}, the champion"
    rows = [(old_one, f"{old:.4f}"), ("this one", f"{new_one:.4f}")]
    said = (
        f"{markdown_table(['model', 'score'], rows)}\n\nDifference {found.difference:+.4f}, with chance "
        f"from {found.low:+.4f} to {found.high:+.4f}, on {found.images} images of {found.slides} slides "
        "that neither was trained on."
    )
    if found.slides < LEAST_SLIDES:
        said += f" To tell needs {LEAST_SLIDES} slides."
    return CHAMPION if found.better else CHALLENGER, said


def _unseen(
    champion: registry.Version, recipe: Recipe, made: Trained
) -> tuple[dict[str, str], list[Sample]]:
    """The slide of each image, and the validation images of slides that neither model has seen."""
    slides = slide_of(made.split)
    gone = {row["slide"] for row in sides_of(made.split)["training"]}
    for model in (champion.run_id, recipe.training.start_from):
        gone |= slides_seen(made.split, made.images, model)
    validation = samples(made.split, made.images, made.labels, "validation")
    return slides, [sample for sample in validation if slides[sample.id] not in gone]


def _evaluated(champion: Model, new: Model, unseen: Sequence[Sample], labels: Stage) -> Stage:
    """The scores of both models on images, and a picture of those on which they differ most."""
    recipe = new[0]
    # The champion computes as the new model does; its weights are its own.
    theirs = champion[0].model_copy(update={"training": recipe.training})
    models = {"champion": (theirs, champion[1]), "new": new}

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as maps:
            judged = {
                name: judge(*model, unseen, recipe.inference.tune, Path(maps, name))
                for name, model in models.items()
            }
            write_atomically(folder / _PICTURE, _disagreement(unseen, judged))
        scores = {name: one.by_id for name, one in judged.items()}
        write_atomically(folder / SCORES_OF_BOTH, json.dumps(scores, indent=1))

    return stage_in_home(
        "rank",
        {
            "images": sorted(sample.id for sample in unseen),
            "labels": labels.digest,
            "models": {
                name: prediction_key(*model)
                | {"inference": model[0].inference.model_dump(mode="json")}
                for name, model in models.items()
            },
        },
        build,
        code=[
            "network.inference",
            "reports.evaluation",
            "tasks.predict",
            "tasks.evaluate",
            __name__,
        ],
        libraries=LIBRARIES,
    )


def _disagreement(samples: Sequence[Sample], judged: Mapping[str, Judged]) -> bytes:
    """Picture of the images on which two models differ most, a column for each model."""
    scores = {name: one.by_id for name, one in judged.items()}
    first, second = scores.values()
    difference = {sample.id: abs(first[sample.id] - second[sample.id]) for sample in samples}
    order = sorted(range(len(samples)), key=lambda k: -difference[samples[k].id])
    tiles = [
        evaluation.tile(
            samples[k],
            one.maps[k],
            one.inference,
            f"{name}: score {scores[name][samples[k].id]:.2f}",
        )
        for k in order[:_SHOWN]
        for name, one in judged.items()
    ]
    return figures.contact_sheet(tiles)
