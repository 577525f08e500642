import platform
import sys
from pathlib import Path

import pytest

from nucleus_unet import environment as module
from nucleus_unet.environment import environment, lock


def test_the_machine_and_the_switches_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    found = environment()
    assert found["python"] == platform.python_version()
    assert set(found["cpu flags"].split()) <= set(module.CPU_FLAGS)
    assert found["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert set(found) & set(module.SWITCHES) == {"TF_ENABLE_ONEDNN_OPTS"}


def test_the_lock_is_the_one_that_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert lock() is None
    (tmp_path / "installed-cpu.lock").touch()
    assert lock() == (Path(__file__).parents[1] / "requirements" / "cpu.lock").read_text()
