"""Runs in MLflow: opened, continued and finished, with what they log."""

import functools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from nucleus_unet.data import Images, Labels, dataset_digest, dataset_files, dataset_name
from nucleus_unet.engine import StoppedError
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.logged import LoggedDataset
from nucleus_unet.runs.source import (
    checkout_source,
    describe_machine,
    installed_packages,
    requirements_lock,
)
from nucleus_unet.runs.store import PatientClient, experiment_id, run_url

_logger = logging.getLogger(__name__)

PARENT = str(MLFLOW_PARENT_RUN_ID)
"""Tag of a run: the run that it is a part of."""


@dataclass(frozen=True)
class Run:
    """A run in MLflow."""

    id: str
    url: str
    """Its page in MLflow."""
    attempt: int = 1
    """Counts how often the run was started or continued."""


@contextmanager
def open_run(
    kind: str, recipe: Recipe, dataset: str, tags: Mapping[str, str], note: str, work: str
) -> Iterator[Run]:
    """Open a run for a block. The run ends as finished, failed or killed, as the block ends.

    Parameters
    ----------
    kind : str
        The kind of flow, for example ``retrain`` or ``predict``.
    recipe : Recipe
        Resolved. Its values become the run's parameters.
    dataset : str
        Name of the raw data, which becomes part of the run's name.
    tags : mapping of str to str
        Tags in addition to those of the recipe and the source, which are added here.
    note : str
        Markdown, shown as the run's description. `describe` adds to it.
    work : str
        Digest of everything that decides what the run makes. If an unfinished run has the same digest,
        it is continued. The caller makes sure that nobody else works on it.
    """
    client = PatientClient()
    code = checkout_source()
    tags = {
        "kind": kind,
        "work": work,
        "attempt": "1",
        "recipe": recipe.name,
        "recipe.digest": recipe.digest(),
        "source.commit": code.commit,
        "source.dirty": str(bool(code.diff)).lower(),
        MLFLOW_SOURCE_NAME: f"nucleus {kind}",
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_GIT_COMMIT: code.commit,
        MLFLOW_RUN_NOTE: note,
        **tags,
    }
    run = _continued(client, tags) or _new_run(client, f"{kind} {recipe.name} {dataset}", tags)
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
        if code.diff:
            client.log_text(run.id, code.diff, "source.diff")
        yield run
    except BaseException as error:
        try:
            _log_failure(client, run, error)
        except MlflowException as refused:  # the error that ended the run matters more
            _logger.warning("Run %s ended, but MLflow did not accept how: %s", run.id, refused)
        raise
    finally:
        monitor.finish()
    client.set_terminated(run.id, "FINISHED")


def _log_failure(client: MlflowClient, run: Run, error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}"[:5000]
    stopped = isinstance(error, StoppedError) or not isinstance(error, Exception)
    client.set_tag(run.id, "failure", reason)
    # MLflow keeps 8,000 characters of a description.
    describe(run.id, f"**{'Stopped' if stopped else 'Failed'}**: {reason[:500]}")
    client.set_terminated(run.id, "KILLED" if stopped else "FAILED")


def end_abandoned(is_abandoned: Callable[[str], bool]) -> list[str]:
    """Mark runs as killed if their process ended unexpectedly, for example in a power cut.

    Parameters
    ----------
    is_abandoned : callable
        Whether nobody works on a run any more, given its ``work`` as `open_run` takes it.

    Returns
    -------
    list of str
        The ids of these runs.
    """
    client = PatientClient()
    running = client.search_runs([experiment_id(client)], "attributes.status = 'RUNNING'")
    ended = [run.info.run_id for run in running if is_abandoned(run.data.tags.get("work", ""))]
    for run_id in ended:
        client.set_tag(run_id, "failure", "its process ended unexpectedly")
        client.set_terminated(run_id, "KILLED")
    return ended


def _new_run(client: MlflowClient, name: str, tags: dict[str, str]) -> Run:
    name = f"{name} {datetime.now():%Y-%m-%d %H:%M:%S}"
    run_id = str(client.create_run(experiment_id(client), run_name=name, tags=tags).info.run_id)
    return Run(run_id, run_url(run_id), 1)


def _continued(client: MlflowClient, tags: dict[str, str]) -> Run | None:
    """The latest unfinished run of the same work, set to running again."""
    latest = client.search_runs(
        [experiment_id(client)],
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


def describe(run_id: str, markdown: str) -> None:
    """Add a paragraph to the description of a run, unless the description has it already."""
    client = PatientClient()
    note = client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    if markdown not in note:
        client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{note}\n\n{markdown}".strip())


def log_dataset(
    run: Run, context: str, raws: Sequence[Path], images: Images, labels: Labels | None
) -> None:
    """Add a data set to the inputs of a run.

    Parameters
    ----------
    run : Run
    context : str
        ``training`` or ``test``.
    raws : sequence of Path
        The raw data sets.
    images, labels
        What was prepared from them.

    Notes
    -----
    Paths and files become the artifact ``datasets/<context>.json``. The whole digest becomes the tag
    ``dataset.<context>``, because MLflow's own digest holds 36 digits at most.
    """
    paths = [str(path.absolute()) for path in raws]
    data = LoggedDataset(paths, dataset_files(images, labels))
    log_json(run, f"datasets/{context}.json", asdict(data))
    profile = {"images": len(images.entries)}
    if labels:
        profile["nuclei"] = sum(entry.nuclei for entry in labels.entries)
    digest, places = dataset_digest(images, labels), json.dumps({"uri": ", ".join(paths)[:60_000]})
    name = dataset_name(raws)
    dataset = Dataset(name, digest[:36], "local", places, profile=json.dumps(profile))
    entry = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])
    client = PatientClient()
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
    """Log numbers at one step, in one request.

    Parameters
    ----------
    run : Run
    metrics : mapping of str to float
        Metrics that are logged at this step already are left as they are: an epoch is trained again
        if its checkpoint was damaged.
    step : int
    model_id : str, optional
        A logged model that the numbers are shown with.
    at : float, optional
        Time in seconds since 1970, by default now. The same point logged twice counts once.
    """
    time_ms, client = int(1000 * (at or time.time())), PatientClient()
    new = {key: value for key, value in metrics.items() if step not in _logged_steps(run, key)}
    points = [Metric(key, float(v), time_ms, step, model_id=model_id) for key, v in new.items()]
    client.log_batch(run.id, metrics=points)
    for key in new:
        _logged_steps(run, key).add(step)


@functools.cache
def _logged_steps(run: Run, key: str) -> set[int]:
    """Steps at which this attempt, or an earlier one, has logged a metric."""
    if run.attempt == 1:
        return set()
    return {point.step for point in PatientClient().get_metric_history(run.id, key)}


def log_tags(run: Run, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    PatientClient().log_batch(run.id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_files(run: Run, folder: str, files: Iterable[Path]) -> None:
    """Log files as artifacts in a folder of the run; "" is the root."""
    client = PatientClient()
    for file in files:
        client.log_artifact(run.id, str(file), folder or None)


def log_bytes(run: Run, name: str, content: bytes) -> None:
    """Log bytes as an artifact, named by its path in the run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(name).name
        file.write_bytes(content)
        parent = str(Path(name).parent)
        PatientClient().log_artifact(run.id, str(file), None if parent == "." else parent)


def log_json(run: Run, name: str, value: Any) -> None:
    """Log a JSON value as an artifact, named by its path in the run."""
    PatientClient().log_text(run.id, json.dumps(value, indent=1), name)


def first_finished_run(tag: str, value: str) -> str | None:
    """Id of the earliest finished run that has a tag with this value; None if there is none."""
    client = PatientClient()
    runs = client.search_runs(
        [experiment_id(client)],
        filter_string=f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(runs[0].info.run_id) if runs else None
