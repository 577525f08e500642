"""Decide whether a new model becomes the champion, on images that are new to both models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger

from nucleus_unet.data import Sample, dataset_files, read_images, read_labels, read_split
from nucleus_unet.engine import (
    GpuError,
    OutOfMemoryError,
    Stage,
    StoppedError,
    raise_if_abandoned,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, write_atomically
from nucleus_unet.network import BUILTIN, prediction_key
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import (
    Candidate,
    Comparison,
    Verdict,
    compare_scores,
    decide,
    disagreement,
    evaluate_model,
)
from nucleus_unet.runs import (
    KNOWS_EVERY,
    images_seen,
    out_of_fold_scores,
    records,
    registry,
    slides_seen,
    tracking,
    unseen_samples,
)
from tasks.evaluate import BY_IMAGE, EVALUATION_LIBRARIES, scores_of
from tasks.publish_model import LoggedModel, Trained
from tasks.reporting import cached_stage, progress, show, uncached_task
from tasks.train import NETWORK_FILE

SCORES_OF_BOTH = "scores.json"
DISAGREEMENT = "disagreement.png"
NEW_CHAMPION = "nucleus.champion.new"
"""Event of a model that became the champion by its scores."""

Model = tuple[Recipe, Path]
"""A recipe with its tuned values, and its ``model.keras``."""
Scores = dict[str, dict[str, float]]
"""The scores of images by their id, by ``champion`` and ``new``."""


@uncached_task("compare {recipe.name} with the champion")
def rank(
    recipe: Recipe, made: Trained, model: LoggedModel, run: tracking.Run, *, of_sample: bool = False
) -> Verdict:
    """Register the model, and make it the champion if it is better than the champion.

    The first model is compared with the built-in model instead.

    What was decided before stays, whether an operator or an earlier attempt of this run decided it.

    Parameters
    ----------
    recipe : Recipe
        Recipe of the model, with its tuned values.
    of_sample : bool
        Whether the model was trained on the built-in sample.
    """
    tags = {"recipe": recipe.name, "score": f"{scores_of(made.scores)['score']:.4f}"}
    version = registry.register(run, model.id, tags, model.card)
    logger = get_run_logger()
    before = registry.champion()
    logged = records.require_run(run.id)
    if before and before.number == version.number and "model.verdict" in logged:
        return Verdict("champion", logged["model.verdict"])
    # Two comparisons at once could both end with a champion that was not compared with the other.
    with locked(
        made.images.home / "locks" / "ranking",
        lambda: logger.warning("waiting for another run that compares its model with the champion"),
        raise_if_abandoned,
    ):
        verdict = _decided(version, recipe, made, run, of_sample)
    logger.info("version %s is the %s. %s", version.number, verdict.place, verdict.reason)
    return verdict


def _decided(
    version: registry.Version, recipe: Recipe, made: Trained, run: tracking.Run, of_sample: bool
) -> Verdict:
    """Decide, log the verdict and do what it says, until the champion did not change meanwhile."""
    while True:
        before = registry.champion()
        verdict = _verdict(version, before, recipe, made, run, of_sample)
        if registry.champion() != before:  # somebody promoted another version
            continue
        _log(verdict, version, run)
        if verdict.place == "challenger":
            registry.challenge(version)
        if verdict.place != "champion" or (before and before.number == version.number):
            return verdict
        registry.promote_version(version.number, "retrain", verdict.reason)
        if registry.succeeds(version.number, before.number if before else None):
            resource = {"prefect.resource.id": f"nucleus.model.{version.number}"}
            payload = {"said": f"Version {version.number}: {verdict.reason}", "url": run.url}
            emit_event(NEW_CHAMPION, resource=resource, payload=payload)
            return verdict
        registry.restore_champion("retrain", "it became the champion while this model was compared")


def _log(verdict: Verdict, version: registry.Version, run: tracking.Run) -> None:
    page = f"# Version {version.number}: {verdict.place}\n\n{verdict.details}\n\n{verdict.reason}"
    create_markdown_artifact(page, key="ranking", description="This model and the champion")
    tracking.log_bytes(run, "ranking.md", page.encode())
    tags = {"version": version.number, "place": verdict.place, "verdict": verdict.reason}
    tracking.log_tags(run, {f"model.{key}": value for key, value in tags.items()})


def _verdict(
    version: registry.Version,
    before: registry.Version | None,
    recipe: Recipe,
    made: Trained,
    run: tracking.Run,
    of_sample: bool,
) -> Verdict:
    champion = Candidate(before.number) if before else None
    candidate = Candidate(version.number, note=version.tags.get(registry.NOTE))
    opponent = before.run_id if before else BUILTIN
    had_champion = registry.had_champion()
    if verdict := decide(candidate, champion, had_champion=had_champion, of_sample=of_sample):
        return verdict
    try:
        theirs = records.fetch_model(opponent)
        if before:
            weights = [records.require_run(one)["weights.sha256"] for one in (opponent, run.id)]
            champion = Candidate(before.number, weights[0], theirs[0].digest())
            candidate = Candidate(version.number, weights[1], recipe.digest())
            if verdict := decide(candidate, champion):
                return verdict
        comparison: Comparison | str = _compared(opponent, theirs, recipe, made, run)
    except (StoppedError, OutOfMemoryError, GpuError):
        raise
    # This code cannot read an older model. A fault that another try may not have ends the run.
    except (NucleusError, LookupError, TypeError, ValueError) as error:
        fault = not isinstance(error, NucleusError)
        get_run_logger().warning("not compared with the champion: %s", error, exc_info=fault)
        name = f"Version {before.number}, the champion," if before else "The built-in model"
        comparison = f"{name} cannot be compared: {' '.join(str(error).split())}"
    verdict = decide(candidate, champion, comparison=comparison)
    assert verdict
    return verdict


def _compared(
    opponent: str, theirs: Model, recipe: Recipe, made: Trained, run: tracking.Run
) -> Comparison | str:
    """Compare both models on images that they do not know, and log how they compare."""
    split, images = read_split(made.split.folder), read_images(made.images.folder)
    labels = read_labels(made.labels.folder)
    unseen = unseen_samples(
        split.samples("validation", images, labels, made.images.home),
        split,
        recipe,
        slides_seen(split, images, images_seen(recipe.training.start_from)),
    )
    if isinstance(unseen, str):
        return unseen
    known = slides_seen(split, images, images_seen(opponent))
    new_to_both = [sample for sample in unseen if split.slides[sample.id] not in known]
    stored = out_of_fold_scores(opponent, recipe)
    if recipe.training.folds or stored:
        of_file = {
            file["id"]: stored.get((file["image_sha256"], file.get("masks_sha256", "")))
            for file in dataset_files(images, labels)
        }
        champion = {id_: score for id_, score in of_file.items() if score is not None}
        both = _by_image(champion, theirs, recipe, made, unseen, new_to_both)
    else:
        both = _side_by_side(theirs, recipe, made, new_to_both, run) if new_to_both else {}
    if not both:
        return KNOWS_EVERY
    found = compare_scores(both["champion"], both["new"], split.slides)
    merits = asdict(found) | {"difference": found.difference}
    # An earlier attempt may have compared with another champion.
    metrics = {f"champion/{key}": value for key, value in merits.items()}
    tracking.log_metrics(run, metrics, step=run.attempt)
    return found


def _side_by_side(
    theirs: Model, recipe: Recipe, made: Trained, unseen: Sequence[Sample], run: tracking.Run
) -> Scores:
    """Predict images with both models; also logs a picture of where they differ."""
    # The champion computes like the new model and is tuned like it. Its weights are its own.
    champion = _computing_like(recipe, theirs, tune=recipe.inference.tune)
    new = recipe, made.model.folder / NETWORK_FILE
    stage = _evaluated({"champion": champion, "new": new}, unseen, made.labels)
    tracking.log_files(run, "pictures", [stage.folder / DISAGREEMENT])
    picture = (stage.folder / DISAGREEMENT).read_bytes()
    show(picture, "disagreement", "Images on which this model and the champion differ most")
    return _read_scores(stage)


def _by_image(
    champion: Mapping[str, float],
    theirs: Model,
    recipe: Recipe,
    made: Trained,
    unseen: Sequence[Sample],
    new_to_both: Sequence[Sample],
) -> Scores:
    """The scores that were logged, of networks that do not know the images.

    The champion predicts, with the settings that it was tuned to, the images that have no score in
    `champion` and that it does not know.
    """
    without = [sample for sample in new_to_both if sample.id not in champion]
    if without:
        opponent = _computing_like(recipe, theirs, tune=False)
        stage = _evaluated({"champion": opponent}, without, made.labels)
        champion = {**champion, **_read_scores(stage)["champion"]}
    new = {
        row["id"]: row["score"] for row in json.loads((made.scores.folder / BY_IMAGE).read_text())
    }
    shared = [sample.id for sample in unseen if sample.id in champion]
    each = {"champion": champion, "new": new} if shared else {}
    return {name: {id_: scores[id_] for id_ in shared} for name, scores in each.items()}


def _computing_like(recipe: Recipe, model: Model, *, tune: bool) -> Model:
    """A model with the threads and the precision of a recipe."""
    inference = model[0].inference.model_copy(update={"tune": tune})
    update = {"training": recipe.training, "inference": inference}
    return model[0].model_copy(update=update), model[1]


def _read_scores(stage: Stage) -> Scores:
    found: Scores = json.loads((stage.folder / SCORES_OF_BOTH).read_text())
    return found


def _evaluated(models: Mapping[str, Model], unseen: Sequence[Sample], labels: Stage) -> Stage:
    """The scores of models and, of two, a picture of the images on which they differ most."""

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as maps:
            evaluations = {
                name: evaluate_model(own, [(network, unseen)], Path(maps, name), progress)
                for name, (own, network) in models.items()
            }
            if len(models) > 1:
                write_atomically(folder / DISAGREEMENT, disagreement(unseen, evaluations))
        scores = {name: one.by_id for name, one in evaluations.items()}
        write_atomically(folder / SCORES_OF_BOTH, json.dumps(scores, indent=1))

    return cached_stage(
        labels.home,
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
        code=["reports.evaluation", __name__],
        libraries=EVALUATION_LIBRARIES,
    )
