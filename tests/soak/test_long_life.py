"""Many runs and many kills, through one worker, one server and one home. `make soak` runs this.

Hours; what was done is kept in `.soak`, and an interrupted soak continues.
"""

import csv
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

RUNS, KILLS = 100, 50
WARM = 20
"""Runs after which nothing should grow any more."""
FOLDER = Path(__file__).parents[2] / ".soak"
VICTIMS = ("everything", "computing process", "flow run", "worker", "server")


class Table:
    """A CSV file that grows by a row at a time."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(columns) + "\n")

    def add(self, *values: Any) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(values)

    def rows(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))


def used(process: psutil.Process) -> tuple[float, int, int]:
    """Memory in MB, open files and threads of a process and all that it started."""
    memory = files = threads = 0
    for one in (process, *process.children(recursive=True)):
        try:
            memory += one.memory_info().rss
            files += one.num_fds()
            threads += one.num_threads()
        except psutil.NoSuchProcess:
            continue
    return round(memory / 1e6, 1), files, threads


def megabytes(path: Path) -> float:
    """Size of a file or folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 2)


@pytest.fixture
def lasting(team: Any, request: pytest.FixtureRequest) -> Any:
    """A team whose home stays after the test."""
    team.place = team.place.elsewhere(FOLDER / request.node.name / "home")
    team.place.home.mkdir(parents=True, exist_ok=True)
    assert team.place.nucleus("deploy", **team.urls).returncode == 0
    return team


def schedule(team: Any, seed: int, epochs: int) -> str:
    """Ask for a retraining with the smallest recipe; returns the id of the flow run."""
    values = (
        *("data.image_size=64", "network.base_filters=4", "network.depth=2"),
        *("network.dropout=[0, 0, 0.1]", "training.steps_per_epoch=5", "training.batch_size=8"),
        *(f"training.epochs={epochs}", f"training.seed={seed}", "training.keep=last"),
    )
    return str(team.schedule_training(*values, test_data=str(team.place.test)))


def state(team: Any, run_id: str) -> str:
    return str(team.get(f"flow_runs/{run_id}")["state_name"])


@pytest.mark.soak
def test_a_hundred_runs(lasting: Any, servers: dict[str, Any]) -> None:
    processes = ("worker", "Prefect", "MLflow")
    measured = tuple(f"{name} {what}" for name in processes for what in ("MB", "files", "threads"))
    columns = ("seed", *measured, "home MB", "database MB", "home MB after clean", "at")
    table = Table(FOLDER / "runs.csv", columns)
    worker = lasting.work()
    for seed in range(len(table.rows()), RUNS):
        run_id = schedule(lasting, seed, epochs=2)
        lasting.wait(lambda run_id=run_id: state(lasting, run_id) in ("Completed", "Failed"))
        assert state(lasting, run_id) == "Completed"
        pids = (worker.pid, *(servers[name].process.pid for name in ("Prefect", "MLflow")))
        found = [value for pid in pids for value in used(psutil.Process(pid))]
        home = lasting.place.home
        before = megabytes(home)
        cleaned = lasting.place.nucleus("clean", "--yes", "--unfinished", "0", **lasting.urls)
        assert cleaned.returncode == 0, cleaned.stderr
        # The home is shared with no server here, so what stays in it is its runs.
        databases = sum(megabytes(path) for path in lasting.folder.glob("**/*.db"))
        table.add(seed, *found, before, round(databases, 2), megabytes(home), time.time())
    rows = table.rows()
    early, late = rows[WARM : 2 * WARM], rows[-WARM:]
    for column in measured:
        first, last = (np.median([float(row[column]) for row in part]) for part in (early, late))
        assert last <= 1.3 * first + 5, f"{column} grows from {first} to {last}"
    grown = float(rows[-1]["home MB after clean"]) - float(rows[WARM]["home MB after clean"])
    assert grown / (RUNS - WARM) < 1, "a run leaves more than 1 MB in the home"


@pytest.fixture
def kill(team: Any, servers: dict[str, Any]) -> Callable[[str], bool]:
    """Kills one of `VICTIMS` and starts what must be running again; False if there was none."""

    def children() -> Iterator[psutil.Process]:
        yield from psutil.Process(team.workers[-1].pid).children(recursive=True)

    def of(victim: str) -> list[psutil.Process]:
        worker = psutil.Process(team.workers[-1].pid)
        computing = [p for p in children() if "multiprocessing" in " ".join(p.cmdline())]
        if victim == "computing process":
            return computing[:1]
        if victim == "flow run":
            return [p for p in children() if "prefect.engine" in " ".join(p.cmdline())][:1]
        if victim == "server":
            server = psutil.Process(servers["Prefect"].process.pid)
            return [server, *server.children(recursive=True)]
        return [worker, *(children() if victim == "everything" else ())]

    def kill(victim: str) -> bool:
        try:
            found = of(victim)
            for process in found:
                process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        if victim in ("everything", "worker"):
            team.workers[-1].wait()
            team.work()
        if victim == "server":
            servers["Prefect"].process.wait()
            servers["Prefect"].start()
        return bool(found)

    return kill


@pytest.mark.soak
def test_fifty_kills(
    lasting: Any, servers: dict[str, Any], kill: Callable[[str], bool], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    epochs = 8
    table = Table(FOLDER / "kills.csv", ("seed", "victim", "after s", "at"))
    place = lasting.place
    lasting.work()
    expected: bytes | None = None
    while len(table.rows()) < KILLS or expected is None:
        seed = random.SystemRandom().randrange(2**32)
        draws = random.Random(seed)
        shutil.rmtree(place.home, ignore_errors=True)  # nothing is taken from before
        run_id, started = schedule(lasting, 0, epochs), time.monotonic()
        wait_s = draws.uniform(5, 60) if expected else 1e9  # the first run is undisturbed
        while (now := state(lasting, run_id)) != "Completed":
            time.sleep(1)
            if now == "Failed":  # its computing process was killed once more than is tried again
                run_id = schedule(lasting, 0, epochs)
            if time.monotonic() - started < wait_s or len(table.rows()) >= KILLS:
                assert time.monotonic() - started < 1800, f"seed {seed}: the run does not end"
                continue
            victim = draws.choice(VICTIMS)
            if kill(victim):
                table.add(seed, victim, round(wait_s), time.time())
            started, wait_s = time.monotonic(), draws.uniform(20, 120)
        client = MlflowClient(tracking_uri=servers["MLflow"].url)
        experiment = client.get_experiment_by_name("nucleus-unet")
        assert experiment
        [run] = client.search_runs(
            [experiment.experiment_id], f"tags.`prefect.flow_run_id` = '{run_id}'"
        )
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "by epoch/loss")]
        assert steps == [*range(1, epochs + 1)], f"seed {seed}"
        path = Path(client.download_artifacts(run.info.run_id, "submission.csv", str(tmp_path)))
        expected = expected or path.read_bytes()
        assert path.read_bytes() == expected, f"seed {seed}"
        assert place.leftovers() == [], f"seed {seed}"
        lasting.wait(lambda: not orphans(place.home, lasting.workers[-1].pid))


def orphans(home: Path, worker: int) -> list[str]:
    """Processes that still use a home, but for the worker."""
    found = []
    for process in psutil.process_iter():
        try:
            uses = process.environ().get("NUCLEUS_HOME") == str(home)
            if uses and process.pid not in (worker, os.getpid()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
