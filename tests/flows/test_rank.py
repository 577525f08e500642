"""Which model predicts."""

from pathlib import Path
from typing import Any

import pytest

FINE = ("--set", "training.epochs=30", "--set", "training.learning_rate=0.01")
POOR = ("--set", "training.epochs=1", "--set", "training.learning_rate=1e-9")


@pytest.mark.slow
def test_a_better_model_becomes_the_champion_and_a_worse_does_not(
    place: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    here = place.elsewhere(tmp_path / "home")
    client = MlflowClient(
        tracking_uri=f"sqlite:///{here.home}/mlflow.db",
        registry_uri=f"sqlite:///{here.home}/mlflow.db",
    )

    def alias(name: str) -> str:
        return str(client.get_model_version_by_alias("nucleus-unet", name).version)

    done = here.nucleus("predict", here.test, "--out", tmp_path / "none")
    assert done.returncode == 2
    assert "there is no champion yet" in done.stderr.splitlines()[-1]
    here.retrain(*POOR)
    assert alias("champion") == "1"
    here.retrain(*FINE)
    assert alias("champion") == "2"
    here.retrain(*POOR, "--set", "training.seed=11")
    assert (alias("champion"), alias("challenger")) == ("2", "3")
    version = client.get_model_version("nucleus-unet", "3")
    run = client.get_run(version.run_id)
    assert run.data.tags["model.version"] == "3"
    assert run.data.metrics["champion/difference"] < 0
    assert run.data.metrics["champion/high"] < 0
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "| version 2, the champion | " in (folder / "ranking.md").read_text()
    assert (folder / "pictures" / "disagreement.png").stat().st_size > 1000
    done = here.nucleus("predict", here.test, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [predicted] = client.search_runs([run.info.experiment_id], "tags.kind = 'predict'")
    best = client.get_model_version("nucleus-unet", "2")
    assert predicted.data.tags["model.run_id"] == best.run_id
    for command, number in ((("promote", "3"), "3"), (("rollback",), "2")):
        done = here.nucleus(*command, "--why", "to see it", "--who", "ann")
        assert done.stdout.startswith(f"champion  version {number} of run ")
        assert alias("champion") == number
    # A champion that cannot be loaded does not cost the training.
    lost = Path(client.get_run(best.run_id).info.artifact_uri.removeprefix("file://"), "split.json")
    lost.unlink()
    here.retrain(*POOR, "--set", "training.seed=12")
    assert (alias("champion"), alias("challenger")) == ("2", "4")
    run = client.get_run(client.get_model_version("nucleus-unet", "4").run_id)
    page = Path(run.info.artifact_uri.removeprefix("file://"), "ranking.md").read_text()
    assert f"the champion, cannot be loaded: run {best.run_id} has no artifact split.json" in page
