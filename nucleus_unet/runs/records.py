"""What logged runs left in MLflow, fetched back."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from nucleus_unet.engine.home import home_folder, without_credentials
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, sha256_file
from nucleus_unet.recipe import Recipe, parse_recipe
from nucleus_unet.runs.reproduction import LoggedDataset, Record, environment_script
from nucleus_unet.runs.tracking import ABSENT, MODEL_ARTIFACT, MODEL_FILES


def require_run(run_id: str) -> dict[str, str]:
    """The tags of a logged run.

    Raises
    ------
    NucleusError
        No such run on this tracking server.
    """
    try:
        return dict(MlflowClient().get_run(run_id).data.tags)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise NucleusError(
            f"no run {run_id} at {without_credentials(mlflow.get_tracking_uri())}: take a run id from "
            "its UI (nucleus ui), or set MLFLOW_TRACKING_URI to the server that has it"
        ) from error


def metric(run_id: str, name: str) -> float:
    """The last value of a metric that a run logged."""
    return float(MlflowClient().get_run(run_id).data.metrics[name])


def fetch_model(run_id: str) -> tuple[Recipe, Path]:
    """The resolved recipe of a logged run and its ``model.keras``, fetched into the home.

    Raises
    ------
    NucleusError
        No such run on this tracking server, it logged no model, the model's files are not those
        that it logged or cannot be checked, or its recipe is none of today's.
    """
    tag = require_run(run_id).get(MODEL_FILES)
    if not tag:
        raise NucleusError(
            f"run {run_id} has no model: it failed or is not a retrain; choose one that finished"
        )
    try:
        digests = {name: json.loads(tag)[name] for name in ("recipe.json", "model.keras")}
    except (ValueError, LookupError, TypeError) as error:
        raise NucleusError(
            f"run {run_id}: its tag {MODEL_FILES} is damaged, and its files cannot be checked: train "
            "again (nucleus reproduce --retrain)"
        ) from error
    folder = fetch_artifact(run_id, MODEL_ARTIFACT) / "artifacts"
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise NucleusError(
                f"run {run_id}: its artifact {MODEL_ARTIFACT}/artifacts/{name} is damaged, other than "
                "what was logged: restore it, or train again (nucleus reproduce --retrain)"
            )
    values = json.loads((folder / "recipe.json").read_text())
    return recipe_of(run_id, values), folder / "model.keras"


def recipe_of(run_id: str, values: Mapping[str, Any]) -> Recipe:
    """The recipe that a run logged.

    Raises
    ------
    NucleusError
        It is none of today's.
    """
    try:
        return parse_recipe(dict(values), "its recipe")
    except NucleusError as error:
        said = str(error).partition(";")[0]  # what follows is for keys that were misspelt
        raise NucleusError(
            f"run {run_id} is of another version of the code ({said}): choose one of this version, "
            f"or repeat it in its own: nucleus reproduce {run_id} --in-env | sh"
        ) from error


def fetch_record(run_id: str) -> Record:
    """What a run logged of itself.

    Raises
    ------
    NucleusError
        No such run on this tracking server, or something of it is missing.
    """
    tags = require_run(run_id)

    def read(name: str) -> str:
        return fetch_artifact(run_id, name).read_text()

    run = MlflowClient().get_run(run_id)
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
    """The submission.csv that a run logged.

    Raises
    ------
    NucleusError
        It cannot be fetched, or is not the file that was logged.
    """
    path = fetch_artifact(record.run_id, "submission.csv")
    if sha256_file(path) != record.tags["submission.sha256"]:
        raise NucleusError(
            f"run {record.run_id}: its artifact submission.csv is damaged, other than what it "
            "logged: restore it"
        )
    return path


def reproduction_script(run_id: str, command: Sequence[str]) -> str:
    """A shell script that runs a ``nucleus`` command, on our records, in what a run ran in.

    Raises
    ------
    NucleusError
        As `fetch_record`; or the run's source is not known.
    """
    record = fetch_record(run_id)
    if record.commit == "unknown":
        raise NucleusError(f"run {run_id} did not run from a checkout: its revision is not known")
    logged = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    lock, diff = (
        fetch_artifact(run_id, name) if name in logged else None
        for name in ("requirements.lock", "source.diff")
    )
    servers = [
        f"export {name}={shlex.quote(value)}"
        for name in ("NUCLEUS_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
        # a database's with a password comes from the environment of the shell
        if (value := os.environ.get(name)) and without_credentials(value) == value
    ]
    return "\n".join([*servers, environment_script(record, lock, diff, command)])


def fetch_artifact(run_id: str, name: str) -> Path:
    """A file that a run logged, fetched into the home.

    Raises
    ------
    NucleusError
        The run has none of this name.
    """
    try:
        return _fetch(run_id, name)
    except (MlflowException, OSError) as error:
        if not _is_absent(error, run_id, name):
            raise
        raise NucleusError(
            f"run {run_id} has no artifact {name}: it did not log it, or it is lost"
        ) from error


def _fetch(run_id: str, name: str) -> Path:
    """Fetch an artifact; each file takes the place of one that is there, which others may read."""
    to = home_folder() / "fetched" / run_id
    to.mkdir(parents=True, exist_ok=True)
    with locked(home_folder() / "locks" / f"fetch-{run_id}"):
        for left in to.glob(".*"):  # by one that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=to, prefix=".") as fresh:
            uri = f"runs:/{run_id}/{name}"
            found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=fresh))
            for file in (path for path in (found, *found.rglob("*")) if path.is_file()):
                place = to / name / file.relative_to(found)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
    return to / name


def _is_absent(error: Exception, run_id: str, name: str) -> bool:
    """Whether an artifact is not there; of a trouble of the store MLflow says the same."""
    if isinstance(error, MlflowException) and error.error_code not in ABSENT:
        return False
    # Of a file its folder tells; models are kept elsewhere, and only their own listing shows them.
    places = f"runs:/{run_id}/{Path(name).parent}".removesuffix("."), f"runs:/{run_id}/{name}"
    listed = [a.path for uri in places for a in mlflow.artifacts.list_artifacts(uri)]
    return not any(path == name or path.startswith(f"{name}/") for path in listed)
