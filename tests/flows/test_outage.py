"""Servers that are away for a while in the middle of a run."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

AWAY_S = 20
LONG_S = 100
"""After which Prefect declares a run lost, and its worker's own watch for cancelled runs has ended."""


@pytest.mark.parametrize("away", ["MLflow", "Prefect"])
@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "Prefect or MLflow does not respond during a training",
    "one warning; training continues, and its updates are sent later",
)
def test_training_goes_on_while_a_server_is_away(
    place: Any, servers: dict[str, Any], tmp_path: Path, away: str
) -> None:
    from mlflow import MlflowClient

    here = place.elsewhere(tmp_path / "home")
    epochs = 200
    process = here.start(
        *here.retraining("--set", f"training.epochs={epochs}"),
        MLFLOW_TRACKING_URI=servers["MLflow"].url,
        PREFECT_API_URL=servers["Prefect"].url,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
    )
    for line in process.stderr:
        if "epoch 2 of" in line:
            break
    servers[away].stop()
    told = time.monotonic()
    seen = []
    for line in process.stderr:
        seen.append(line)
        if time.monotonic() - told > AWAY_S:
            break
    servers[away].start()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert sum(" of 200: loss" in line for line in seen) > 3  # epochs that ended meanwhile
    if away == "MLflow":  # Prefect's client waits by itself
        assert "MLflow is not responding" in "".join(seen)
        assert "MLflow is responding again" in stderr
    api = servers["Prefect"].url
    [flow_run] = httpx.post(f"{api}/flow_runs/filter", json={}).json()
    assert flow_run["state_name"] == "Completed"
    training = {"artifacts": {"key": {"any_": ["training"]}}}
    [progress] = httpx.post(f"{api}/artifacts/filter", json=training).json()
    assert float(progress["data"]) == 100
    client = MlflowClient(tracking_uri=servers["MLflow"].url)
    experiment = client.get_experiment_by_name("nucleus-unet")
    assert experiment
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "by epoch/loss")]
    assert steps == [*range(1, epochs + 1)]


@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "Prefect is away for minutes, and a run of a worker is cancelled afterwards",
    "the run trains on meanwhile, is not started again, and stops within two minutes of Cancel",
)
def test_a_run_of_a_worker_outlives_an_outage_and_can_then_be_cancelled(
    team: Any, servers: dict[str, Any]
) -> None:
    from mlflow import MlflowClient

    assert team.place.nucleus("deploy", **team.urls).returncode == 0
    run_id = team.schedule_training("training.epochs=10000", "training.steps_per_epoch=5")
    worker = team.work()
    team.work()  # another one, which must not take the run up
    client = MlflowClient(tracking_uri=team.urls["MLFLOW_TRACKING_URI"])

    def runs() -> list[Any]:
        experiment = client.get_experiment_by_name("nucleus-unet")
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def epochs() -> int:
        return sum(len(client.get_metric_history(r.info.run_id, "by epoch/loss")) for r in runs())

    team.wait(lambda: epochs() > 2)
    servers["Prefect"].stop()
    before = epochs()
    time.sleep(LONG_S)
    assert epochs() > before
    servers["Prefect"].start()
    time.sleep(LONG_S)  # in which it might be started again
    flow_run = team.get(f"flow_runs/{run_id}")
    assert flow_run["state_name"] == "Running"
    before = epochs()
    team.wait(lambda: epochs() > before)
    team.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    team.wait(lambda: team.get(f"flow_runs/{run_id}")["state_name"] == "Cancelled")
    [run] = runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["attempt"] == "1"
    assert worker.poll() is None
    time.sleep(AWAY_S)
    assert team.get(f"flow_runs/{run_id}")["state_name"] == "Cancelled"


@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "a run that was started in a terminal is cancelled in Prefect",
    "it stops within 15 s, with one line that says how to continue",
)
def test_a_run_of_a_terminal_can_be_cancelled(
    place: Any, servers: dict[str, Any], tmp_path: Path
) -> None:
    api = servers["Prefect"].url
    here = place.elsewhere(tmp_path / "home")
    command = here.retraining("--set", "training.epochs=10000")
    process = here.start(*command, PREFECT_API_URL=api)
    for line in process.stderr:
        if "epoch 2 of" in line:
            break
    [flow_run] = httpx.post(f"{api}/flow_runs/filter", json={}).json()
    cancel = {"state": {"type": "CANCELLING"}}  # as the page and the command do
    httpx.post(f"{api}/flow_runs/{flow_run['id']}/set_state", json=cancel).raise_for_status()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    because = "Stopped, because the run was cancelled in Prefect."
    assert stderr.splitlines()[-1] == f"{because} Run the same command again to continue."
    assert "Traceback" not in stderr
    assert httpx.get(f"{api}/flow_runs/{flow_run['id']}").json()["state_name"] == "Cancelled"
