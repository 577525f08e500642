"""Settings of a flow run that do not change its result."""

import os
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.task_runners import ThreadPoolTaskRunner

from nucleus_unet.dataset.synthetic import write_synthetic
from nucleus_unet.home import PREFECT_PORT, home
from nucleus_unet.stages import code_digest

SHARDS_AT_ONCE = 2


def task_runner() -> Any:
    """What shards run on: threads, or Dask's local processes where NUCLEUS_TASK_RUNNER is ``dask``.

    For a Dask cluster, give its address in DASK_SCHEDULER_ADDRESS.
    """
    if os.environ.get("NUCLEUS_TASK_RUNNER", "threads") == "threads":
        return ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)
    from prefect_dask import DaskTaskRunner

    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        return DaskTaskRunner(address=address)
    local = {"n_workers": SHARDS_AT_ONCE, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)


def sample_data() -> tuple[Path, Path]:
    """The built-in sample as (training set, test set), written at first use."""
    folder = home() / "sample" / code_digest("dataset.synthetic")[:12]
    if folder.exists():
        return folder / "stage1_train", folder / "stage1_test"
    return write_synthetic(folder)


def flow_run_tags() -> dict[str, str]:
    """Tags that lead from MLflow to this Prefect run: on its server, or where ``nucleus ui`` serves."""
    ui = PREFECT_UI_URL.value() or f"http://127.0.0.1:{PREFECT_PORT}"
    return {
        "prefect.flow_run_id": str(flow_run.id),
        "prefect.flow_run_name": str(flow_run.name),
        "prefect.url": f"{ui}/runs/flow-run/{flow_run.id}",
    }
