"""What logged runs left in MLflow: tags, records, models, artifacts."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import artifacts, get_tracking_uri
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from nucleus_unet.data import TrainingImages
from nucleus_unet.engine import home_folder, without_credentials
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, sha256_file
from nucleus_unet.network.builtin import BUILTIN, BUILTIN_NETWORK, builtin_model
from nucleus_unet.recipe import Recipe, parse_recipe
from nucleus_unet.runs.environment import environment_script
from nucleus_unet.runs.logged import LoggedDataset, Record
from nucleus_unet.runs.models import MODEL_ARTIFACT, MODEL_FILES
from nucleus_unet.runs.store import ABSENT, PatientClient

SCORES_BY_IMAGE = "scores_by_image.json"
"""Artifact of a training: the score of each validation image."""
SUSPECTS = "suspects.csv"
"""Artifact of a training: annotations of validation images that its predictions contradict."""
TRAINING_IMAGES = "training_images.json"
"""Artifact of a training: what its images look like, as `describe_training` finds it."""


def require_run(run_id: str) -> dict[str, str]:
    """The tags of a logged run.

    Raises
    ------
    NucleusError
        If this tracking server has no such run.
    """
    try:
        return dict(PatientClient().get_run(run_id).data.tags)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise NucleusError(
            f"There is no run {run_id} at {without_credentials(get_tracking_uri())}. Copy a run "
            "id from MLflow's pages (nucleus ui), or set MLFLOW_TRACKING_URI to the server that has it."
        ) from error


def require_model(run_id: str) -> dict[str, str]:
    """The tags of a run that logged a model.

    Raises
    ------
    NucleusError
        If this tracking server has no such run, or if the run logged no model.
    """
    tags = require_run(run_id)
    if MODEL_FILES not in tags:
        raise NucleusError(
            f"Run {run_id} has no model: it failed, or it is not a training. Choose a training that "
            "finished."
        )
    return tags


def data_name(run: Run) -> str:
    """Name of the data that a run trained on or, if it did not train, predicted."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    names = {tag.value: one.dataset.name for one in inputs for tag in one.tags}
    return names.get("training") or names.get("test", "")


def metric(run_id: str, name: str) -> float:
    """The last value of a run's metric."""
    return float(PatientClient().get_run(run_id).data.metrics[name])


def fetch_model(run_id: str) -> tuple[Recipe, Path]:
    """Fetch the model of a logged run into the home, or name that of the package.

    Parameters
    ----------
    run_id : str
        Id of the run that trained the model, or `BUILTIN`.

    Returns
    -------
    tuple of Recipe and Path
        The resolved recipe, with the tuned values, and the ``model.keras``.

    Raises
    ------
    NucleusError
        If this tracking server has no such run, if the run logged no model, if the files of the model
        are damaged, or if another version of the code made the recipe.
    """
    if run_id == BUILTIN:
        return builtin_model().recipe, BUILTIN_NETWORK
    tag = require_model(run_id)[MODEL_FILES]
    try:
        digests = {name: json.loads(tag)[name] for name in ("recipe.json", "model.keras")}
    except (ValueError, LookupError, TypeError) as error:
        raise NucleusError(
            f"The tag {MODEL_FILES} of run {run_id} is damaged, so that its model cannot be checked. "
            f"Train again: nucleus reproduce {run_id} --retrain"
        ) from error
    folder = fetch_artifact(run_id, MODEL_ARTIFACT) / "artifacts"
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise NucleusError(
                f"The artifact {MODEL_ARTIFACT}/artifacts/{name} of run {run_id} is damaged. Restore it "
                f"from a backup, or train again: nucleus reproduce {run_id} --retrain"
            )
    values = json.loads((folder / "recipe.json").read_text())
    return recipe_of(run_id, values), folder / "model.keras"


def fetch_training_images(run_id: str) -> TrainingImages | None:
    """Fetch what the training images of a model look like; None if its run did not log it.

    Parameters
    ----------
    run_id : str
        As for `fetch_model`.
    """
    if run_id == BUILTIN:
        return builtin_model().trained_on
    if not any(one.path == TRAINING_IMAGES for one in PatientClient().list_artifacts(run_id)):
        return None
    text = fetch_artifact(run_id, TRAINING_IMAGES).read_bytes()
    return TrainingImages.model_validate_json(text)


def fetch_start_weights(recipe: Recipe) -> Path | None:
    """Fetch the ``model.keras`` that a training starts from; None if it starts from random weights.

    Raises
    ------
    NucleusError
        If the run is unknown, logged no model, or has several networks or one with weights of other
        shapes.
    """
    run_id = recipe.training.start_from
    if run_id is None:
        return None
    origin, network = fetch_model(run_id)
    if origin.training.folds:
        raise NucleusError(
            f"training.start_from={run_id}: that model is the mean of {origin.training.folds} networks. "
            "Start from a model of one network, such as builtin."
        )
    for key in ("base_filters", "depth", "outputs", "activation"):
        theirs, ours = getattr(origin.network, key), getattr(recipe.network, key)
        if theirs != ours:
            raise NucleusError(
                f"training.start_from={run_id}: network.{key} is {theirs} in that model and {ours} in "
                f"the recipe. Start from a model with the same network, or set network.{key}={theirs}."
            )
    return network


def recipe_of(run_id: str, values: Mapping[str, Any]) -> Recipe:
    """Read the recipe that a run logged.

    A key that is null, and that this version of the code does not have, was off; it is left out.

    Raises
    ------
    NucleusError
        If another version of the code made it.
    """
    known: dict[str, Any] = dict(values)
    for section, field in Recipe.model_fields.items():
        if isinstance(part := known.get(section), dict):
            keys = getattr(field.annotation, "model_fields", {})
            known[section] = {k: v for k, v in part.items() if v is not None or k in keys}
    try:
        return parse_recipe(known, "its recipe")
    except NucleusError as error:
        raise NucleusError(
            f"Run {run_id} was made by another version of the code: {error} Choose a run of this "
            f"version, or reproduce it with its own version: nucleus reproduce {run_id} --in-env | sh"
        ) from error


def fetch_record(run_id: str) -> Record:
    """Fetch what a run logged about itself.

    Raises
    ------
    NucleusError
        If this tracking server has no such run, or if a part of its record is missing.
    """
    tags = require_run(run_id)

    def read(name: str) -> str:
        return fetch_artifact(run_id, name).read_text()

    run = PatientClient().get_run(run_id)
    contexts = [key.removeprefix("dataset.") for key in tags if key.startswith("dataset.")]
    return Record(
        run_id,
        recipe=json.loads(read("recipe.json")),
        machine=json.loads(read("machine.json")),
        packages=dict(line.split("==") for line in read("packages.txt").splitlines()),
        commit=tags["source.commit"],
        diff=read("source.diff") if tags["source.dirty"] == "true" else "",
        data={
            context: LoggedDataset(**json.loads(read(f"datasets/{context}.json")))
            for context in contexts
        },
        tags=tags,
        metrics=run.data.metrics,
        history=json.loads(read("history.json")) if "stage.train" in tags else (),
    )


def fetch_submission(record: Record) -> Path:
    """Fetch the ``submission.csv`` that a run logged.

    Raises
    ------
    NucleusError
        If it is missing or damaged.
    """
    path = fetch_artifact(record.run_id, "submission.csv")
    if sha256_file(path) != record.tags["submission.sha256"]:
        raise NucleusError(
            f"The artifact submission.csv of run {record.run_id} is damaged. Restore it from a backup."
        )
    return path


def reproduction_script(run_id: str, command: Sequence[str]) -> str:
    """Write a shell script that runs a ``nucleus`` command in the environment of a run.

    The script uses the servers and the home of this process.

    Raises
    ------
    NucleusError
        If the record cannot be fetched, or if the run logged no commit.
    """
    record = fetch_record(run_id)
    if record.commit == "unknown":
        raise NucleusError(
            f"Run {run_id} did not run from a git checkout, so its source is not known. Reproduce it "
            "without --in-env."
        )
    logged = {artifact.path for artifact in PatientClient().list_artifacts(run_id)}
    lock, diff = (
        fetch_artifact(run_id, name) if name in logged else None
        for name in ("requirements.lock", "source.diff")
    )
    servers = [
        f"export {name}={shlex.quote(value)}"
        for name in ("NUCLEUS_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
        # an address with a password comes from the environment of the shell instead
        if (value := os.environ.get(name)) and without_credentials(value) == value
    ]
    return environment_script(record, lock, diff, servers, command)


def fetch_artifact(run_id: str, name: str) -> Path:
    """Fetch a file or folder that a run logged into the home.

    Raises
    ------
    NucleusError
        If the run has no artifact of this name.
    """
    try:
        return _fetch(run_id, name)
    except (MlflowException, OSError) as error:
        if not _is_absent(error, run_id, name):
            raise
        raise NucleusError(
            f"Run {run_id} has no artifact {name}. The run did not log it, or it was deleted."
        ) from error


def _fetch(run_id: str, name: str) -> Path:
    """Fetch an artifact. Files are replaced one by one, because others may read the old ones."""
    to = home_folder() / "fetched" / run_id
    to.mkdir(parents=True, exist_ok=True)
    with locked(home_folder() / "locks" / f"fetch-{run_id}"):
        for left in to.glob(".*"):  # a killed process left it
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=to, prefix=".") as fresh:
            uri = f"runs:/{run_id}/{name}"
            found = Path(artifacts.download_artifacts(uri, dst_path=fresh))
            for file in (path for path in (found, *found.rglob("*")) if path.is_file()):
                place = to / name / file.relative_to(found)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
    return to / name


def _is_absent(error: Exception, run_id: str, name: str) -> bool:
    """Whether an artifact does not exist. MLflow raises the same error if the store has a problem."""
    if isinstance(error, MlflowException) and error.error_code not in ABSENT:
        return False
    # A file is listed in its folder; a model is kept elsewhere, and only its own listing shows it.
    places = f"runs:/{run_id}/{Path(name).parent}".removesuffix("."), f"runs:/{run_id}/{name}"
    listed = [a.path for uri in places for a in artifacts.list_artifacts(uri)]
    return not any(path == name or path.startswith(f"{name}/") for path in listed)
