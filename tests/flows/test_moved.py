"""A home that is copied while it is in use, and a copy that is moved."""

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.fault(
    "Disks and databases",
    "a home is copied by nucleus backup during a training, restored elsewhere and moved",
    "the copy predicts and reproduces; the training that the copy does not have is marked as killed",
)
def test_a_copy_of_a_home_in_use_works_elsewhere(place: Any, tmp_path: Path) -> None:
    here = place.elsewhere(tmp_path / "home")
    done = here.retrain("--test", here.test)
    [run_id] = re.findall(r"^run +(\w{32})$", done.stdout, re.M)
    training = here.start(*here.retraining("--set", "training.epochs=1000"))
    for line in training.stderr:
        if "epoch 2 of" in line:
            break
    copied = here.nucleus("backup", tmp_path / "copy")
    assert copied.returncode == 0, copied.stderr
    training.kill()
    training.communicate()
    here.home.rename(tmp_path / "gone")
    for name in ("copy", "a copy that was moved"):
        if name != "copy":
            (tmp_path / "copy").rename(tmp_path / name)
        there = place.elsewhere(tmp_path / name)
        again = there.nucleus("reproduce", run_id)
        assert again.returncode == 0, again.stderr
        assert "identical" in again.stdout
        masks = there.nucleus(
            "predict", there.test, "--model", run_id, "--out", tmp_path / f"{name}.out"
        )
        assert masks.returncode == 0, masks.stderr
    listed = there.nucleus("runs")
    assert str(tmp_path / "home") not in listed.stdout
    states = re.findall(r"FINISHED|KILLED|RUNNING", listed.stdout.upper())
    assert "RUNNING" not in states
    assert "KILLED" in states
