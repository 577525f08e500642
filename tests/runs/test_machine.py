import platform

import pytest

from nucleus_unet.network.backend import SWITCHES
from nucleus_unet.runs import machine as module
from nucleus_unet.runs.machine import describe_machine


def test_the_machine_and_the_switches_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    found = describe_machine()
    assert found["python"] == platform.python_version()
    assert set(found["cpu flags"].split()) <= set(module.CPU_FLAGS)
    assert found["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert set(found) & set(SWITCHES) == {"TF_ENABLE_ONEDNN_OPTS"}
