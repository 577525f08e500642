"""What a server is given, and what it then does by itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.deploy import LOST_S
from nucleus_unet.recipe import load_recipe

LIMIT_S = LOST_S + 300


class Team:
    """Servers, a home that machines share, and workers."""

    def __init__(self, place: Any, servers: dict[str, Any], folder: Path) -> None:
        self.place = place.elsewhere(folder / "home")
        self.folder = folder
        self.api = servers["Prefect"].url
        self.urls = {"PREFECT_API_URL": self.api, "MLFLOW_TRACKING_URI": servers["MLflow"].url}
        self.workers: list[subprocess.Popen[bytes]] = []

    def prefect(self, *args: str) -> subprocess.Popen[bytes]:
        """Start a command of Prefect's."""
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *args],
            env=self.place.environment | self.urls,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def work(self) -> subprocess.Popen[bytes]:
        """Start a worker."""
        self.workers.append(self.prefect("worker", "start", "--pool", "gpu"))
        return self.workers[-1]

    def runs(self) -> list[dict[str, Any]]:
        """All flow runs."""
        found: list[dict[str, Any]] = httpx.post(f"{self.api}/flow_runs/filter", json={}).json()
        return found

    def wait(self, until: Callable[[], Any]) -> None:
        """Return when something is so."""
        deadline = time.monotonic() + LIMIT_S
        while not until():
            if time.monotonic() > deadline:
                pytest.fail(f"in vain: {[(r['name'], r['state_name']) for r in self.runs()]}")
            time.sleep(1)


@pytest.fixture
def team(place: Any, servers: dict[str, Any], tmp_path: Path) -> Iterator[Team]:
    made = Team(place, servers, tmp_path)
    yield made
    for worker in made.workers:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGTERM)
            worker.wait()


def die(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and all that it started at once, as a machine that loses power does."""
    for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(True)]:
        process.kill()
    worker.wait()


@pytest.mark.slow
def test_a_run_whose_machine_died_is_taken_up_by_another(team: Team) -> None:
    from mlflow import MlflowClient

    done = team.place.nucleus("deploy", **team.urls)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": made") == 3
    again = team.place.nucleus("deploy", **team.urls)
    assert again.stdout.count(": there") == 2
    assert "made" not in again.stdout
    recipe = load_recipe("quick", ["training.epochs=40", "training.steps_per_epoch=5"])
    parameters = {
        "training_data": [str(team.place.train)],
        "recipe": recipe.model_dump(mode="json"),
    }
    deployment = httpx.get(f"{team.api}/deployments/name/retrain/retrain").json()["id"]
    asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    httpx.post(f"{team.api}/deployments/{deployment}/create_flow_run", json=asked)
    client = MlflowClient(tracking_uri=team.urls["MLFLOW_TRACKING_URI"])

    def mlflow_runs() -> list[Any]:
        experiment = client.get_experiment_by_name("nucleus-unet")
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    first = team.work()
    team.wait(lambda: any("loss" in run.data.metrics for run in mlflow_runs()))
    die(first)
    team.work()
    team.wait(lambda: team.runs()[0]["state_name"] == "Completed")
    [flow_run] = [run for run in team.runs() if run["deployment_id"]]
    assert flow_run["run_count"] == 2
    [run] = mlflow_runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["attempt"] == "2"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == [*range(1, 41)]


@pytest.mark.slow
def test_retraining_by_schedule_and_by_event_skips_where_nothing_changed(team: Team) -> None:
    arguments = ["deploy", *team.place.retraining()[1:], "--cron"]
    done = team.place.nucleus(*arguments, "0 2 * * *", **team.urls)
    assert done.returncode == 0, done.stderr
    made = ["schedule of retrain: made", "automation nucleus: new data are trained on: made"]
    assert done.stdout.splitlines()[-2:] == made
    again = team.place.nucleus(*arguments, "0 2 * * *", **team.urls)
    assert [line.endswith(": there") for line in again.stdout.splitlines()[-2:]] == [True, True]
    deployed = httpx.get(f"{team.api}/deployments/name/retrain/retrain").json()
    team.wait(lambda: len(team.runs()) > 2)  # the scheduler's
    for run in team.runs():
        assert run["state_name"] == "Scheduled"
        assert run["parameters"]["training_data"] == [str(team.place.train)]
        assert datetime.fromisoformat(run["expected_start_time"]).hour == 2
    changed = team.place.nucleus(*arguments, "0 3 * * *", **team.urls)
    assert "schedule of retrain: changed" in changed.stdout
    [schedule] = httpx.get(f"{team.api}/deployments/{deployed['id']}/schedules").json()
    assert schedule["schedule"]["cron"] == "0 3 * * *"

    def by_event() -> list[dict[str, Any]]:
        return [run for run in team.runs() if run["created_by"]["type"] == "AUTOMATION"]

    team.work()
    emit = ("event", "emit", "nucleus.data.changed", "--resource-id", "data")
    assert team.prefect(*emit).wait() == 0
    team.wait(lambda: [run["state_name"] for run in by_event()] == ["Completed"])
    assert team.prefect(*emit).wait() == 0
    team.wait(lambda: sorted(r["state_name"] for r in by_event()) == ["Completed", "Skipped"])
    [skipped] = [run for run in by_event() if run["state_name"] == "Skipped"]
    said = "nothing to do: data, recipe, source and packages are those of http"
    assert skipped["state"]["message"].startswith(said)


@pytest.mark.slow
def test_a_schedule_that_is_none_is_refused(team: Team) -> None:
    done = team.place.nucleus("deploy", "--train", team.place.train, "--cron", "daily", **team.urls)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --cron daily: not a cron expression")
