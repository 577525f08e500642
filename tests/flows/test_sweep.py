"""Many recipes tried on the same data."""

import errno
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import pytest
from mlflow.exceptions import MlflowException
from prefect.logging import disable_run_logger

from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe

FULL = NucleusError("no space left")
FULL.__cause__ = OSError(errno.ENOSPC, "No space left on device")
OF_A_WORKER = OSError(errno.ENOSPC, "No space left on device")
OF_A_WORKER.__cause__ = RuntimeError("the traceback there")
OF_A_DATABASE = MlflowException("database or disk is full")
OF_A_DATABASE.__cause__ = RuntimeError("of SQLAlchemy")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (NucleusError("the loss is not finite any more"), False),
        (ConnectionError("the server is away"), True),
        (FULL, True),
        (OF_A_WORKER, True),
        (OF_A_DATABASE, True),
    ],
)
def test_what_is_no_fault_of_the_recipe_ends_the_sweep(
    bare: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch, error: Exception, ends: bool
) -> None:
    from flows import sweep
    from flows.retrain import retraining

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(sweep, "trial", fail)
    monkeypatch.setattr(sweep.tracking, "first_finished_run", lambda *_: None)
    work = retraining([], None, tiny, registry=False, parent="0" * 32)
    with disable_run_logger():
        if ends:
            with pytest.raises(type(error)):
                sweep._run_trial(("a=1",), work)
        else:
            assert sweep._run_trial(("a=1",), work).failed


@pytest.mark.slow
def test_a_sweep_gives_up_the_worse_half_and_leaves_the_best_as_a_recipe(
    place: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    train, _ = write_synthetic(tmp_path / "data", train=12, test=1)
    here = replace(place.elsewhere(tmp_path / "home"), train=train)
    more = ("--set", "training.epochs=16", "--set", "data.validation_fraction=0.4")
    _, *arguments = here.retraining(*more)
    winner = tmp_path / "winner.toml"
    # The highest rate diverges, the lowest learns nothing.
    rates = "training.learning_rate=1e38,1e-9,0.01"
    options = ("--over", rates, "--over", "training.optimizer=sgd,adam", "--halvings", "1")
    done = here.nucleus("sweep", *arguments, *options, "--out", winner)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " epochs  " in line]
    assert [int(row[0]) for row in rows] == [8] * 6 + [16] * 3
    assert [row[2] for row in rows].count("failed") >= 1
    assert "failed" not in [row[2] for row in rows[6:]]
    best = max(rows[6:], key=lambda row: float(row[2]))
    assert best[3] == "training.learning_rate=0.01"
    made = tomllib.loads(winner.read_text())
    assert (made["training"]["learning_rate"], made["training"]["epochs"]) == (0.01, 16)
    client = MlflowClient(tracking_uri=f"sqlite:///{here.home}/mlflow.db")
    [parent] = client.search_runs(["1"], "tags.kind = 'sweep'")
    children = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and status = 'FINISHED'"
    assert len(client.search_runs(["1"], children)) == sum(row[2] != "failed" for row in rows)
    assert parent.data.metrics["best score"] == pytest.approx(float(best[2]), abs=1e-4)
    folder = Path(unquote(parent.info.artifact_uri.removeprefix("file://")))
    assert (folder / "winner.toml").read_text() == winner.read_text()
    assert len(json.loads((folder / "trials.json").read_text())) == 9
    assert cv2.imread(str(folder / "trials.png")) is not None
    again = here.nucleus("retrain", "--train", here.train, "--recipe", winner, "--no-registry")
    assert again.returncode == 0, again.stderr
    # What a sweep has done before it was cut short is not done again.
    client.update_run(parent.info.run_id, status="RUNNING")
    done = here.nucleus("sweep", *arguments, *options)
    assert [line.split() for line in done.stdout.splitlines() if " epochs  " in line] == rows
    assert len(client.search_runs(["1"], "tags.kind = 'sweep'")) == 1
    assert len(client.search_runs(["1"], children)) == sum(row[2] != "failed" for row in rows)
