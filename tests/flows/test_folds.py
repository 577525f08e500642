"""A training of several folds: every image is scored by a network that does not know it."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from nucleus_unet.data.synthetic import write_synthetic

FOLDS = ("--folds", "2")


@pytest.fixture(scope="module")
def here(place: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A place with twelve training images, each of a slide of its own."""
    folder = tmp_path_factory.mktemp("folds")
    train, test = write_synthetic(folder / "data", train=12, test=2)
    return replace(place.elsewhere(folder / "home"), train=train, test=test)


@pytest.fixture(scope="module")
def client(here: Any) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{here.home}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def first(here: Any, client: Any) -> Any:
    """The first run, which was stopped in the second fold and started again."""
    command = here.retraining("--test", here.test, *FOLDS, "--set", "training.epochs=40")
    process, events = here.start(*command), here.home / "stages" / "train"
    while process.poll() is None and len([*events.rglob("checkpoint-*")]) < 3:
        time.sleep(0.2)
    while process.poll() is None and len([*events.rglob("events.jsonl")]) < 2:
        time.sleep(0.2)
    process.terminate()
    process.communicate()
    assert process.returncode != 0
    assert "retrain" not in {run.data.tags["kind"] for run in runs(client, "FINISHED")}
    done = here.nucleus(*command)
    assert done.returncode == 0, done.stderr
    return next(run for run in runs(client) if run.data.tags["kind"] == "retrain")


def runs(client: Any, status: str | None = None) -> list[Any]:
    found = client.search_runs(["1"])
    return [run for run in found if status in (None, run.info.status)]


def artifact(run: Any, name: str) -> Path:
    return Path(unquote(run.info.artifact_uri.removeprefix("file://")), name)


@pytest.mark.slow
def test_each_fold_has_a_run_with_its_curves(client: Any, first: Any) -> None:
    folds = [run for run in runs(client) if run.data.tags["kind"] == "fold"]
    assert len(folds) == 2  # also after the interruption
    assert {run.data.params["data.fold"] for run in folds} == {"[1, 2]", "[2, 2]"}
    for run in folds:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == first.info.run_id
    of_folds = [client.get_metric_history(run.info.run_id, "by epoch/loss") for run in folds]
    mean = client.get_metric_history(first.info.run_id, "by epoch/loss")
    assert [len(points) for points in (*of_folds, mean)] == [40, 40, 40]
    for own, a, b in zip(mean, *of_folds, strict=True):
        assert own.value == pytest.approx((a.value + b.value) / 2)


@pytest.mark.slow
def test_every_image_is_scored_once(here: Any, first: Any) -> None:
    rows = json.loads(artifact(first, "scores_by_image.json").read_text())
    assert sorted(row["id"] for row in rows) == sorted(path.name for path in here.train.iterdir())
    metrics = first.data.metrics
    assert metrics["validation/score"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert metrics["validation/images"] == 12
    low, high = (metrics[f"validation/score {end}"] for end in ("low", "high"))
    assert low < metrics["validation/score"] < high
    card = artifact(first, "model_card.md").read_text()
    assert "12 images of 12 slides, in 2 folds by random with seed 3. Each image was scored" in card


@pytest.mark.slow
def test_annotations_that_no_network_agrees_with_are_listed(here: Any, first: Any) -> None:
    done = here.nucleus("suspect", first.info.run_id, "--n", "3")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["image", "what", "doubt", "x_px", "y_px", "area_px"]
    assert [*map(bool, rows[:4])] == [True, True, True, False]
    table, picture = (Path(row.split()[-1]) for row in rows[4:])
    assert len(table.read_text().splitlines()) > 4
    assert picture.read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_the_model_predicts_like_its_submission(here: Any, first: Any, tmp_path: Path) -> None:
    done = here.nucleus("predict", here.test, "--out", tmp_path, "--model", first.info.run_id)
    assert done.returncode == 0, done.stderr
    submitted = artifact(first, "submission.csv").read_bytes()
    assert (tmp_path / "submission.csv").read_bytes() == submitted
    done = here.nucleus("reproduce", first.info.run_id)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_images_on_which_the_networks_disagree_are_suggested(
    here: Any, first: Any, tmp_path: Path
) -> None:
    command = ("suggest", here.train, "--n", "3", "--out", tmp_path)
    done = here.nucleus(*command, "--model", first.info.run_id)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.strip().splitlines()
    assert head.split() == ["uncertainty", "image", "file"]
    images = pd.read_csv(tmp_path / "images.csv").set_index("image")["uncertainty"]
    nuclei = pd.read_csv(tmp_path / "nuclei.csv")["uncertainty"]
    assert nuclei.between(0, 0.5).all()
    assert nuclei.std() > 0
    # Each image is of a slide of its own.
    assert [row.split()[1] for row in rows] == images.sort_values(ascending=False).index[
        :3
    ].tolist()
    assert (
        here.nucleus(*command, "--model", "builtin")
        .stderr.splitlines()[-1]
        .startswith("Error: This model is one network")
    )


@pytest.mark.slow
def test_the_champion_is_decided_on_all_slides(here: Any, client: Any, first: Any) -> None:
    assert first.data.metrics["champion/slides"] == 12  # against the built-in model
    assert here.nucleus("promote", "1", "--why", "to see it").returncode == 0
    done = here.retrain(*FOLDS, "--set", "training.epochs=1", "--set", "training.seed=11")
    assert "WARNING:tensorflow" not in done.stderr
    version = client.get_model_version("nucleus-unet", "2")
    metrics = client.get_run(version.run_id).data.metrics
    # Both models know all images, and no network was scored on an image that it knows.
    assert metrics["champion/slides"] == 12
    assert metrics["champion/first"] == pytest.approx(first.data.metrics["validation/score"])
    assert metrics["champion/second"] == pytest.approx(metrics["validation/score"])
