"""Which model predicts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import pytest

from nucleus_unet.data.synthetic import write_synthetic

HALF = ("--set", "data.validation_fraction=0.5")
FINE = (*HALF, "--set", "training.epochs=30", "--set", "training.learning_rate=0.01")
POOR = (*HALF, "--set", "training.epochs=1", "--set", "training.learning_rate=1e-9")


@pytest.mark.slow
def test_a_better_model_becomes_the_champion_and_a_worse_does_not(
    place: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    # Twelve images, each a slide of its own, are the validation's.
    train, test = write_synthetic(tmp_path / "data", train=24, test=2)
    here = replace(place.elsewhere(tmp_path / "home"), train=train, test=test)
    client = MlflowClient(
        tracking_uri=f"sqlite:///{here.home}/mlflow.db",
        registry_uri=f"sqlite:///{here.home}/mlflow.db",
    )

    def alias(name: str) -> str:
        return str(client.get_model_version_by_alias("nucleus-unet", name).version)

    here.retrain(*POOR)
    assert alias("challenger") == "1"
    done = here.nucleus("predict", here.test, "--out", tmp_path / "none")
    assert re.search("^model +the built-in model: best of revision ", done.stdout, re.MULTILINE)
    assert here.nucleus("promote", "1", "--why", "to see it").returncode == 0
    here.retrain(*FINE)
    assert alias("champion") == "2"
    here.retrain(*POOR, "--set", "training.seed=11")
    assert (alias("champion"), alias("challenger")) == ("2", "3")
    version = client.get_model_version("nucleus-unet", "3")
    run = client.get_run(str(version.run_id))
    assert run.data.tags["model.version"] == "3"
    assert run.data.metrics["champion/difference"] < 0
    assert run.data.metrics["champion/slides"] == 12
    assert run.data.metrics["champion/high"] < 0
    folder = Path(unquote(run.info.artifact_uri.removeprefix("file://")))
    assert "| version 2, the champion | " in (folder / "ranking.md").read_text()
    assert cv2.imread(str(folder / "pictures" / "disagreement.png")) is not None
    done = here.nucleus("predict", here.test, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    predicted, earlier = client.search_runs([run.info.experiment_id], "tags.kind = 'predict'")
    assert earlier.data.tags["model.run_id"] == "builtin"
    best = client.get_model_version("nucleus-unet", "2")
    assert predicted.data.tags["model.run_id"] == best.run_id
    for command, number in ((("promote", "3"), "3"), (("rollback",), "2")):
        done = here.nucleus(*command, "--why", "to see it", "--who", "ann")
        assert done.stdout.startswith(f"The champion is version {number} of run ")
        assert alias("champion") == number
    # Nobody trained further from the champion can be told from it by images of its training.
    start = f"training.start_from={best.run_id}"
    here.retrain(*POOR, "--set", start, "--set", "data.split_seed=1")
    assert alias("champion") == "2"
    run = client.get_run(str(client.get_model_version("nucleus-unet", "4").run_id))
    assert 0 < run.data.metrics["champion/slides"] < 12
    # A champion that cannot be loaded does not cost the training.
    lost = Path(
        unquote(client.get_run(str(best.run_id)).info.artifact_uri.removeprefix("file://")),
        "split.json",
    )
    lost.unlink()
    here.retrain(*POOR, "--set", "training.seed=12")
    assert (alias("champion"), alias("challenger")) == ("2", "5")
    run = client.get_run(str(client.get_model_version("nucleus-unet", "5").run_id))
    page = Path(unquote(run.info.artifact_uri.removeprefix("file://")), "ranking.md").read_text()
    assert f"the champion, cannot be compared: Run {best.run_id} has no artifact split.json" in page
