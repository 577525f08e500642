"""Work that is killed or stopped, and started again."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

KILLS = 8
EPOCHS = 8


def processes_of(home: Path) -> list[psutil.Process]:
    """What runs in a home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("NUCLEUS_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def weights(home: Path) -> dict[str, NDArray[Any]]:
    """The named arrays of the model that was trained in a home."""
    import keras

    [path] = home.glob("stages/train/*/model.keras")
    model = keras.models.load_model(path, compile=False)
    return {weight.path: np.asarray(weight) for weight in model.weights}


def points(home: Path, metric: str) -> list[list[int]]:
    """The steps at which a metric was logged, in each run of a home."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("nucleus-unet")
    assert experiment
    return [
        [point.step for point in client.get_metric_history(run.info.run_id, metric)]
        for run in client.search_runs([experiment.experiment_id])
    ]


@pytest.mark.slow
@pytest.mark.fault(
    "Kills and stops",
    "the process, or the machine, is killed at random moments of a retraining",
    "the same command continues and ends with the same bytes; no epoch is logged twice",
)
def test_killed_at_random_moments_it_ends_as_undisturbed(place: Any, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draws = random.Random(seed)
    undisturbed, killed = place.elsewhere(tmp_path / "a"), place.elsewhere(tmp_path / "b")
    command = place.retraining("--test", place.test, "--set", f"training.epochs={EPOCHS}")
    started = time.monotonic()
    assert undisturbed.nucleus(*command).returncode == 0
    duration = time.monotonic() - started
    [submission] = undisturbed.home.glob("runs/*/submission.csv")
    expected = submission.read_bytes(), weights(undisturbed.home)
    kills: Counter[str] = Counter()
    ends = 0
    while sum(kills.values()) < KILLS or not ends:
        process = killed.start(*command)
        try:
            moment = draws.uniform(5, duration) if sum(kills.values()) < KILLS else None
            _, stderr = process.communicate(timeout=moment)
            assert process.returncode == 0, stderr
        except subprocess.TimeoutExpired:
            # The process alone, or the machine with all that runs on it.
            if draws.random() < 0.5:
                process.kill()
            else:
                for each in processes_of(killed.home):
                    each.kill()
            _, stderr = process.communicate()
            tasks = re.findall(r"Task run '(\w+)[ -]", stderr)
            kills[tasks[-1] if tasks else "start"] += 1
            continue
        # More than one where it was killed between the end of its run and its own.
        for path in killed.home.glob("runs/*/submission.csv"):
            assert path.read_bytes() == expected[0]
        found = weights(killed.home)
        assert found.keys() == expected[1].keys()
        for name, array in expected[1].items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        for steps in points(killed.home, "by epoch/loss"):
            assert steps == [*range(1, EPOCHS + 1)]
        assert killed.leftovers() == []
        ends += 1
        shutil.rmtree(killed.home)
    print(f"{KILLS} kills, last seen in {dict(kills)}; {ends} runs ended the same")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
@pytest.mark.fault(
    "Kills and stops",
    "Ctrl-C or SIGTERM during training",
    "a checkpoint, one line that says how to continue, no process left",
)
def test_stopped_it_saves_and_leaves_nothing_running(
    place: Any, tmp_path: Path, number: signal.Signals
) -> None:
    here = place.elsewhere(tmp_path / "home")
    command = here.retraining("--set", "training.epochs=1000")
    process = here.start(*command)
    for line in process.stderr:
        if "epoch 2 of" in line:
            break
    # Ctrl-C comes to all that the terminal started, SIGTERM to one process.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    [stopped] = set(
        re.findall(r"stopped after (\d+) steps\. Run the same command again to continue", stderr)
    )
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 30
    while processes_of(here.home) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(here.home) == []
    again = here.start(*command)
    for line in again.stderr:
        if "continuing after step" in line:
            assert f"continuing after step {stopped} of" in line
            break
    else:
        pytest.fail("it did not go on")
    for each in processes_of(here.home):
        each.kill()
    again.communicate()


@pytest.mark.slow
@pytest.mark.fault(
    "Kills and stops",
    "the same command twice at once",
    "the second waits and says so",
)
def test_the_same_work_at_once_waits(place: Any, tmp_path: Path) -> None:
    here = place.elsewhere(tmp_path / "home")
    first, second = (here.start(*here.retraining("--test", here.test)) for _ in "ab")
    said = [process.communicate() for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    waited = ["waiting for another process that does the same work" in stderr for _, stderr in said]
    assert sorted(waited) == [False, True]
    assert len({re.findall(r"SHA-256 +(\w+)", stdout)[0] for stdout, _ in said}) == 1
    assert points(here.home, "by epoch/loss") == [[1, 2], [1, 2]]
