"""What every flow run has: its home, its task runner, its run in MLflow."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.task_runners import ThreadPoolTaskRunner

from nucleus_unet.data.fingerprint import fingerprint
from nucleus_unet.data.raw import dataset_name
from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.engine.home import home_folder, home_id, prepare_environment, ui_url
from nucleus_unet.engine.isolation import abandoned_on_error
from nucleus_unet.engine.servers import raise_if_refused
from nucleus_unet.engine.stages import code_digest
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked
from nucleus_unet.network.backend import device_kind
from nucleus_unet.recipe import Recipe, digest_of
from nucleus_unet.runs import tracking
from nucleus_unet.runs.source import checkout_source, installed_packages

SHARDS_AT_ONCE = 2
INPUTS = "inputs"
"""Tag of a run: the digest of all that decides what it makes."""
SKIPPED = "Skipped"
"""State of a flow run that ended at once, as nothing had changed."""
TAG = "nucleus-unet"
"""Of our deployments in prefect.yaml and of the trials of a sweep: what our automations are about."""
MOST_ATTEMPTS = 10
"""Of a flow run that crashes and is taken up again by the server."""


def run_flow(flow: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a flow in this process; what the user can mend is logged as one line, not as a traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_one_line)
    return flow(*args, **kwargs)


def prepare() -> None:
    """What a flow does first: it may be run by a worker, in a home where nothing was yet."""
    prepare_environment()
    tracking.make_database()


def require_prefect() -> None:
    """See that Prefect lets us in.

    Raises
    ------
    NucleusError
        Its server refuses the log-in, asks for one, or is another.
    """
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except PrefectHTTPStatusError as error:
        raise_if_refused("PREFECT_API_URL", error.response.status_code, error)
        raise


def _one_line(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], NucleusError):
        record.msg, record.args, record.exc_info = "%s", (record.exc_info[1],), None
    return True


def task_runner() -> Any:
    """What shards run on: threads, or Dask's local processes where NUCLEUS_TASK_RUNNER is ``dask``.

    For a Dask cluster, give its address in DASK_SCHEDULER_ADDRESS. Keras runs in processes of its
    own, which a worker may start only if it is not a daemon.

    Raises
    ------
    NucleusError
        Something else is asked for; or Dask without a Prefect server: each worker would start one
        of its own, and leave it behind.
    """
    asked = os.environ.get("NUCLEUS_TASK_RUNNER", "threads")
    if asked == "threads":
        return threads()
    if asked != "dask":
        raise NucleusError(f"NUCLEUS_TASK_RUNNER={asked} is unknown: set threads or dask")
    if "PREFECT_API_URL" not in os.environ:
        raise NucleusError(
            "NUCLEUS_TASK_RUNNER=dask needs a Prefect server for its workers: start one and set "
            "PREFECT_API_URL, or unset it"
        )
    import dask
    from prefect_dask import DaskTaskRunner

    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        return DaskTaskRunner(address=address)
    dask.config.set({"distributed.worker.daemon": False})
    local = {"n_workers": SHARDS_AT_ONCE, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)


def threads() -> Any:
    """Shards run in threads of this process."""
    return ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)


def sample_data() -> tuple[Path, Path]:
    """The built-in sample as (training set, test set), written at first use."""
    folder = home_folder() / "sample" / code_digest("data.synthetic")[:12]
    with locked(home_folder() / "locks" / "sample"):
        if folder.exists():
            return folder / "stage1_train", folder / "stage1_test"
        return write_synthetic(folder)


@dataclass(frozen=True)
class Work:
    """What a flow run is to do."""

    kind: str
    """Of the flow: ``retrain``, ``predict``."""
    recipe: Recipe
    """Resolved."""
    raws: Sequence[Path]
    """The raw data sets that it is about; its MLflow run is named by them."""
    tags: Mapping[str, str]
    """More that decides what it makes."""
    also: Sequence[Path] = ()
    """Other raw data sets that it reads."""

    def inputs(self) -> str:
        """Digest of all that decides what it logs: this, the data, device, source and packages.

        The data count by name, size and time of change.
        """
        code, choices = checkout_source(), self.recipe.model_dump(mode="json")
        data, device = [fingerprint(self.raws), fingerprint(self.also)], device_kind()
        made_by = [device, code.commit, code.diff, installed_packages()]
        return digest_of([self.kind, choices, data, dict(self.tags), made_by])


@contextmanager
def tracked(work: Work) -> Iterator[tracking.Run]:
    """An MLflow run for this flow run, each linked to the other.

    It is the run of an earlier attempt at the same work in this home that did not finish, where there
    is one. One process at a time is at the same work; another waits.
    """
    if flow_run.run_count > MOST_ATTEMPTS:
        raise NucleusError(f"crashed {MOST_ATTEMPTS} times: see its logs, and start it anew")
    inputs = work.inputs()
    here = digest_of([home_id(), inputs])
    ui = PREFECT_UI_URL.value() or ui_url("prefect")
    url = f"{ui}/runs/flow-run/{flow_run.id}"
    from_prefect = {"prefect.flow_run_id": str(flow_run.id), "prefect.url": url}
    run_tags = {**work.tags, **from_prefect, INPUTS: inputs}
    note = f"[{flow_run.name}, this run in Prefect]({url})"

    def wait() -> None:
        get_run_logger().warning("another process is at the same work: waiting until it has ended")

    with (
        locked(home_folder() / "locks" / f"work-{here[:20]}", wait),
        tracking.open_run(
            work.kind, work.recipe, dataset_name(work.raws), run_tags, note, here
        ) as run,
        abandoned_on_error(),
    ):
        if run.attempt > 1:
            get_run_logger().info("attempt %d of %s", run.attempt, run.url)
        create_link_artifact(
            run.url, key="mlflow-run", link_text="This run in MLflow", description="MLflow run"
        )
        yield run
