"""Runs, metrics, artifacts and models in MLflow."""

import functools
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)
from sqlalchemy.exc import DBAPIError

from nucleus_unet.engine.home import home_folder, ui_url, without_credentials
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.engine.servers import is_refusal, raise_if_refused
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, make_folder, sha256_file
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.machine import describe_machine
from nucleus_unet.runs.reproduction import LoggedDataset
from nucleus_unet.runs.source import checkout_source, installed_packages, requirements_lock

_logger = logging.getLogger(__name__)

EXPERIMENT = "nucleus-unet"
PARENT = str(MLFLOW_PARENT_RUN_ID)
"""Tag: the run of which a run is a part."""
MODEL_ARTIFACT = "model"
MODEL_FILES, MODEL_ID = "model.files", "model.id"
"""Tags: the SHA-256 of each file of the model, by name; and its id in MLflow."""
_PACKAGE = Path(__file__).parents[1]
# How MLflow answers that there is no such thing, or that no id looks like this.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
# What the logged model needs to be loaded elsewhere, at the versions that made it.
MODEL_REQUIREMENTS = (
    "mlflow",
    "keras",
    "tensorflow",
    "numpy",
    "opencv-python-headless",
    "scikit-image",
    "scipy",
    "pydantic",
)


@dataclass(frozen=True)
class Run:
    """A run in MLflow: its id, its page in MLflow's UI, and how often it was taken up."""

    id: str
    url: str
    attempt: int = 1


def make_database() -> None:
    """Make MLflow's database where it is a file that is not there yet: whole, or not at all.

    MLflow makes it in many steps, and cannot use what is left of a process that was killed between.
    """
    uri = os.environ["MLFLOW_TRACKING_URI"].partition("?")[0]
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_absolute() or path.exists():
        return
    make_folder(path.parent, "set MLFLOW_TRACKING_URI to one that you can write")
    with locked(home_folder() / "locks" / "mlflow"):
        if path.exists():
            return
        folder = path.with_suffix(".partial")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        MlflowClient(f"sqlite:///{folder / path.name}").search_experiments(max_results=1)
        (folder / path.name).rename(path)
        folder.rmdir()


def require_mlflow() -> None:
    """See that MLflow lets us in.

    Raises
    ------
    NucleusError
        Its server refuses the log-in, asks for one, or is another; or its database is of another
        version, damaged or not readable.
    """
    uri = without_credentials(os.environ["MLFLOW_TRACKING_URI"])
    try:
        MlflowClient().search_experiments(max_results=1)
    except DBAPIError as error:
        raise NucleusError(
            f"{uri} cannot be used ({error.orig}): restore it, or set MLFLOW_TRACKING_URI to another"
        ) from error
    except MlflowException as error:
        raise_if_refused("MLFLOW_TRACKING_URI", error.get_http_status_code(), error)
        if "out-of-date database schema" in str(error):
            raise NucleusError(
                f"{uri} was made by another version of MLflow: back it up, then mlflow db upgrade {uri}"
            ) from error
        raise


@contextmanager
def open_run(
    kind: str, recipe: Recipe, dataset: str, tags: Mapping[str, str], note: str, work: str
) -> Iterator[Run]:
    """A run with the recipe as its parameters; finished, failed or killed as the block ends.

    A run of the same work that did not finish goes on as its next attempt. The caller sees to it that
    nobody else is at this work.

    Parameters
    ----------
    kind : str
        Of the flow: ``retrain``, ``predict``.
    recipe : Recipe
        Resolved.
    dataset : str
        What the raw data sets are called, for the run's name.
    tags : mapping of str to str
        Besides those of the source revision, which are added here.
    note : str
        Markdown, shown as the run's description; `describe` adds to it.
    work : str
        Digest of all that decides what the run makes.
    """
    client = MlflowClient()
    code = checkout_source()
    tags = {
        "kind": kind,
        "work": work,
        "attempt": "1",
        "recipe": recipe.name,
        "recipe.digest": recipe.digest(),
        "source.commit": code.commit,
        "source.dirty": str(code.dirty).lower(),
        MLFLOW_SOURCE_NAME: f"nucleus {kind}",
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_GIT_COMMIT: code.commit,
        MLFLOW_RUN_NOTE: note,
        **tags,
    }
    run = _taken_up(client, tags) or _new_run(client, f"{kind} {recipe.name} {dataset}", tags)
    monitor = SystemMetricsMonitor(run.id, resume_logging=run.attempt > 1)
    monitor.start()
    try:
        client.log_batch(
            run.id, params=[Param(key, str(value)) for key, value in recipe.flat().items()]
        )
        client.log_text(run.id, recipe.model_dump_json(indent=1), "recipe.json")
        client.log_text(run.id, "\n".join(installed_packages()) + "\n", "packages.txt")
        client.log_text(run.id, json.dumps(describe_machine(), indent=1), "machine.json")
        if requirements := requirements_lock():
            client.log_text(run.id, requirements, "requirements.lock")
        if code.dirty:
            client.log_text(run.id, code.diff, "source.diff")
        yield run
    except BaseException as error:
        try:
            _log_failure(client, run, error)
        except MlflowException as refused:  # what ended the run is what is to be told
            _logger.warning("how run %s ended is not logged: %s", run.id, refused)
        finally:
            monitor.finish()
        raise
    monitor.finish()
    client.set_terminated(run.id, "FINISHED")


def _log_failure(client: MlflowClient, run: Run, error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}"[:5000]
    stopped = isinstance(error, StoppedError) or not isinstance(error, Exception)
    client.set_tag(run.id, "failure", reason)
    # Of the whole description MLflow keeps 8,000 characters.
    describe(run.id, f"**{'Stopped' if stopped else 'Failed'}**: {reason[:500]}")
    client.set_terminated(run.id, "KILLED" if stopped else "FAILED")


def _new_run(client: MlflowClient, name: str, tags: dict[str, str]) -> Run:
    name = f"{name} {datetime.now():%Y-%m-%d %H:%M:%S}"
    run_id = str(client.create_run(_experiment(client), run_name=name, tags=tags).info.run_id)
    return Run(run_id, run_url(run_id), 1)


def _taken_up(client: MlflowClient, tags: dict[str, str]) -> Run | None:
    """The run of the same work that did not finish, running again."""
    latest = client.search_runs(
        [_experiment(client)],
        filter_string=f"tags.work = '{tags['work']}' and attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not latest:
        return None
    before, run_id = latest[0].data.tags, str(latest[0].info.run_id)
    run = Run(run_id, run_url(run_id), int(before["attempt"]) + 1)
    client.update_run(run_id, status="RUNNING")
    if "failure" in before:
        client.delete_tag(run_id, "failure")
    note = f"{before.get(MLFLOW_RUN_NOTE, '')}\n\nAttempt {run.attempt}: {tags[MLFLOW_RUN_NOTE]}"
    log_tags(run, {**tags, "attempt": str(run.attempt), MLFLOW_RUN_NOTE: note})
    return run


def refused_by_mlflow(error: Exception) -> bool:
    """Whether MLflow answered that it will not do what it was asked; it would not another time."""
    return isinstance(error, MlflowException) and is_refusal(error.get_http_status_code())


def describe(run_id: str, markdown: str) -> None:
    """Add a paragraph to the description of a run, where it is not there yet."""
    client = MlflowClient()
    note = client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    if markdown not in note:
        client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{note}\n\n{markdown}".strip())


def log_dataset(
    run: Run, name: str, data: LoggedDataset, digest: str, context: str, profile: Mapping[str, int]
) -> None:
    """Add a data set to the run's inputs.

    Its whole digest goes to the tag ``dataset.<context>``, its paths and files to an artifact,
    ``datasets/<context>.json``.
    """
    log_json(run, f"datasets/{context}.json", asdict(data))
    places = json.dumps({"uri": ", ".join(data.paths)[:60_000]})
    dataset = Dataset(name, digest[:36], "local", places, profile=json.dumps(dict(profile)))
    entry = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])
    client = MlflowClient()
    client.log_inputs(run.id, datasets=[entry])
    client.set_tag(run.id, f"dataset.{context}", digest)


def log_metrics(
    run: Run,
    metrics: Mapping[str, float],
    step: int = 0,
    *,
    model_id: str | None = None,
    at: float | None = None,
) -> None:
    """Log numbers at one step, as one request; of a logged model, where one is named.

    What an earlier attempt logged at this step is left as it is. `at` is the time in seconds, by
    default now: the same point logged twice is one.
    """
    time_ms, client = int(1000 * (at or time.time())), MlflowClient()
    points = [
        Metric(key, float(value), time_ms, step, model_id=model_id)
        for key, value in metrics.items()
        if step not in _steps_before(run, key)
    ]
    client.log_batch(run.id, metrics=points)


@functools.cache
def _steps_before(run: Run, key: str) -> frozenset[int]:
    """At which an earlier attempt logged a metric."""
    if run.attempt == 1:
        return frozenset()
    return frozenset(point.step for point in MlflowClient().get_metric_history(run.id, key))


def log_tags(run: Run, tags: Mapping[str, str]) -> None:
    """Set tags of the run."""
    MlflowClient().log_batch(run.id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_files(run: Run, folder: str, files: Iterable[Path]) -> None:
    """Log files as artifacts below a folder of the run; "" for its root."""
    client = MlflowClient()
    for file in files:
        client.log_artifact(run.id, str(file), folder or None)


def log_bytes(run: Run, name: str, content: bytes) -> None:
    """Log bytes as an artifact, by its path in the run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(name).name
        file.write_bytes(content)
        parent = str(Path(name).parent)
        MlflowClient().log_artifact(run.id, str(file), None if parent == "." else parent)


def log_json(run: Run, name: str, value: Any) -> None:
    """Log a JSON value as an artifact, by its path in the run."""
    MlflowClient().log_text(run.id, json.dumps(value, indent=1), name)


def log_model(run: Run, recipe: Recipe, network: Path) -> str:
    """Log the model: from code, with signature and pinned requirements; returns its id.

    One that an earlier attempt logged is not logged again. `network` is the path of ``model.keras``.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        recipe_file = Path(folder) / "recipe.json"
        recipe_file.write_text(recipe.model_dump_json(indent=1))
        digests = json.dumps({path.name: sha256_file(path) for path in (recipe_file, network)})
        tags = MlflowClient().get_run(run.id).data.tags
        if tags.get(MODEL_FILES) == digests:
            return str(tags[MODEL_ID])
        mlflow.start_run(run_id=run.id)
        try:
            logged = mlflow.pyfunc.log_model(
                name=MODEL_ARTIFACT,
                # MLflow copies the run's metrics of this step to the model; none has it.
                step=-1,
                python_model=str(_PACKAGE / "runs" / "served_model.py"),
                code_paths=[str(_PACKAGE)],
                artifacts={"network": str(network), "recipe": str(recipe_file)},
                signature=ModelSignature(
                    Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
                    Schema([TensorSpec(np.dtype(np.int32), (-1, -1, -1))]),
                ),
                pip_requirements=[f"{n}=={metadata.version(n)}" for n in MODEL_REQUIREMENTS],
            )
        finally:
            mlflow.end_run("RUNNING")  # it goes on
    log_tags(run, {MODEL_FILES: digests, MODEL_ID: logged.model_id})
    return str(logged.model_id)


def first_finished_run(tag: str, value: str) -> str | None:
    """Id of the earliest finished run with this tag, or None."""
    client = MlflowClient()
    runs = client.search_runs(
        [_experiment(client)],
        filter_string=f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(runs[0].info.run_id) if runs else None


def run_url(run_id: str) -> str:
    """A run's page."""
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    return f"{ui_address()}/#/experiments/{experiment}/runs/{run_id}"


def ui_address() -> str:
    """MLflow's UI: the tracking server, or where ``nucleus ui`` serves the local database."""
    uri = str(mlflow.get_tracking_uri())
    return uri.rstrip("/") if uri.startswith("http") else ui_url("mlflow")


def _experiment(client: MlflowClient) -> str:
    """The experiment's id; made at first use, with artifacts in our home where no server keeps them."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            raise NucleusError(
                f"the experiment {name} was deleted: set MLFLOW_EXPERIMENT_NAME to another, or restore "
                f"it (mlflow experiments restore --experiment-id {found.experiment_id})"
            )
        return str(found.experiment_id)
    local = not mlflow.get_tracking_uri().startswith(("http://", "https://"))
    location = (home_folder() / "mlartifacts").as_uri() if local else None
    # Without it MLflow's UI opens the experiment as one of language models, on its empty traces.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment(client)  # another process made it meanwhile
