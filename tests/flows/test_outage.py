"""Servers that are away for a while in the middle of a run."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

AWAY_S = 20


@pytest.mark.parametrize("away", ["MLflow", "Prefect"])
@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "Prefect or MLflow is away during a training",
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
