"""What the flows share: the home, the task runner and the run in MLflow."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.supervision import supervised
from nucleus_unet.data import SAMPLE_NAMES, dataset_name, fingerprint, write_synthetic
from nucleus_unet.engine import (
    abandoned_on_error,
    code_digest,
    explained,
    home_folder,
    home_id,
    home_in_use,
    kernel_switches,
    prepare_environment,
    raise_if_refused,
    ui_url,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import is_locked, locked
from nucleus_unet.network import device_kind
from nucleus_unet.recipe import Recipe, digest_of
from nucleus_unet.runs import checkout_source, installed_packages, make_database, tracking

SHARDS_AT_ONCE = 2
INPUTS = "inputs"
"""Tag of a run in MLflow: the digest of everything that decides what it makes."""
SKIPPED = "Skipped"
"""State of a flow run that ended at once because nothing had changed."""
TAG = "nucleus-unet"
"""Tag in Prefect of our deployments and of the trials of a sweep, which our automations act on."""
MOST_ATTEMPTS = 10
"""How often a flow run that crashes is started again."""


def prepare() -> None:
    """What a flow does first, because a worker may run it in a home that is still empty."""
    prepare_environment()
    make_database()


def named_after_recipe() -> str:
    """Name of a flow run: its flow and its recipe."""
    given = flow_run.parameters
    recipe = Path(given["recipe_file"]).stem if given["recipe_file"] else given["recipe"]
    return f"{flow_run.flow_name} {recipe}"


def require_prefect() -> None:
    """Make sure that the Prefect server accepts us.

    Raises
    ------
    NucleusError
        If the server refuses the login or asks for one, or if another server answers.
    """
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except PrefectHTTPStatusError as error:
        raise_if_refused("PREFECT_API_URL", error.response.status_code, error)
        raise


def without_our_errors(record: logging.LogRecord) -> bool:
    """Filter of the terminal's log: the command prints what it can explain once, at the end."""
    error, message = record.exc_info[1] if record.exc_info else None, record.getMessage()
    repeated = any(text in message for text in ("NucleusError:", "in state NotReady"))
    return not explained(error or Exception(message)) and not repeated


def task_runner() -> TaskRunner[Any]:
    """What runs the shards: threads, or Dask if ``NUCLEUS_TASK_RUNNER=dask``.

    ``DASK_SCHEDULER_ADDRESS`` names a Dask cluster; without it Dask starts local processes. Keras runs
    in processes of its own, which a Dask worker can start only if it is not a daemon.

    Raises
    ------
    NucleusError
        If another value is set, or if Dask is used without a Prefect server, because each worker would
        start a server of its own and leave it running.
    """
    asked = os.environ.get("NUCLEUS_TASK_RUNNER", "threads")
    if asked == "threads":
        return threads()
    if asked != "dask":
        raise NucleusError(f"NUCLEUS_TASK_RUNNER={asked} is unknown. Set it to threads or dask.")
    if "PREFECT_API_URL" not in os.environ:
        raise NucleusError(
            "NUCLEUS_TASK_RUNNER=dask needs a Prefect server that its workers can reach. Start one and "
            "set PREFECT_API_URL, or unset NUCLEUS_TASK_RUNNER."
        )
    import dask
    from prefect_dask import DaskTaskRunner

    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        return DaskTaskRunner(address=address)
    dask.config.set({"distributed.worker.daemon": False})
    local = {"n_workers": SHARDS_AT_ONCE, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)


def tasks_run_elsewhere() -> bool:
    """Whether tasks run on other processes or machines, so that several trainings may run at once."""
    context = FlowRunContext.get()
    return context is not None and not isinstance(context.task_runner, ThreadPoolTaskRunner)


def threads() -> TaskRunner[Any]:
    """Shards run in threads of this process."""
    return ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)


def sample_data() -> tuple[Path, Path]:
    """The built-in sample as (training set, test set). It is written at first use."""
    home = home_folder()
    folder = home / "sample" / code_digest("data.synthetic")[:12]
    train, test = SAMPLE_NAMES
    with locked(home / "locks" / "sample"):
        if folder.exists():
            return folder / train, folder / test
        return write_synthetic(folder, names=(train, test))


def is_automatic() -> bool:
    """Whether a schedule or an automation started the current flow run, and not a person."""
    context = FlowRunContext.get()
    if not (context and context.flow_run):
        return False
    origin = context.flow_run.created_by
    return context.flow_run.auto_scheduled or bool(origin and origin.type == "AUTOMATION")


@dataclass(frozen=True)
class Work:
    """What a flow run is going to do."""

    kind: str
    """Kind of flow: ``retrain``, ``predict``, ``reproduce`` or ``sweep``."""
    recipe: Recipe
    """Resolved."""
    raws: list[Path]
    """The raw data sets that the run in MLflow is named after."""
    tags: Mapping[str, str]
    """Tags of the run, which also decide what it makes."""
    also: list[Path] = field(default_factory=list)
    """Other raw data sets that it reads."""

    def inputs(self) -> str:
        """Digest of everything that decides the results: this, data, device, source and packages.

        The data count by name, size and modification time.
        """
        code, choices = checkout_source(), self.recipe.model_dump(mode="json")
        data, device = [fingerprint(self.raws), fingerprint(self.also)], device_kind()
        made_by = [device, kernel_switches(), code.commit, code.diff, installed_packages()]
        return digest_of([self.kind, choices, data, dict(self.tags), made_by])


def _attempts() -> int:
    """How often the current flow run was taken up; a run that was lost and found does not count."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(flow_run.id))
    return sum(state.name == "Pending" for state in states)


def _lock_of(work: str) -> Path:
    """The lock that a process holds while it does this work."""
    return home_folder() / "locks" / f"work-{work[:20]}"


def _was_abandoned(work: str) -> bool:
    """Whether a process of this home began this work, and no process does it now."""
    return _lock_of(work).exists() and not is_locked(_lock_of(work))


@contextmanager
def tracked(work: Work) -> Iterator[tracking.Run]:
    """Open a run in MLflow for the current flow run, each linked to the other.

    If an earlier attempt at the same work in this home did not finish, its run is continued. Only one
    process at a time does the same work; another one waits.

    Raises
    ------
    NucleusError
        If the flow run has crashed too often.
    """
    if _attempts() > MOST_ATTEMPTS:
        raise NucleusError(
            f"This flow run has crashed {MOST_ATTEMPTS} times. Read its logs, fix the cause and start a "
            "new run."
        )
    inputs = work.inputs()
    here = digest_of([home_id(), inputs])
    ui = PREFECT_UI_URL.value() or ui_url("prefect")
    url = f"{ui}/runs/flow-run/{flow_run.id}"
    from_prefect = {"prefect.flow_run_id": str(flow_run.id), "prefect.url": url}
    run_tags = {**work.tags, **from_prefect, INPUTS: inputs}
    note = f"[{flow_run.name}, this run in Prefect]({url})"
    logger = get_run_logger()
    for abandoned in tracking.end_abandoned(_was_abandoned):
        logger.warning("run %s ended unexpectedly earlier and is now marked as killed", abandoned)
    with (
        supervised(),
        home_in_use(lambda: logger.warning("waiting until nucleus clean has ended")),
        locked(
            _lock_of(here),
            lambda: logger.warning("waiting for another process that does the same work"),
        ),
        tracking.open_run(
            work.kind, work.recipe, dataset_name(work.raws), run_tags, note, here
        ) as run,
        abandoned_on_error(),
    ):
        if run.attempt > 1:
            logger.info("continuing an unfinished run, attempt %d: %s", run.attempt, run.url)
        create_link_artifact(
            run.url, key="mlflow-run", link_text="This run in MLflow", description="Run in MLflow"
        )
        yield run
