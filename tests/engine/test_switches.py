import pytest

from nucleus_unet.engine.switches import SWITCHES, active_switches, kernel_switches


@pytest.fixture(autouse=True)
def no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)


def test_defaults_count_as_set() -> None:
    assert active_switches() == {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": "1"}
    assert kernel_switches() == {"TF_ENABLE_ONEDNN_OPTS": "1"}


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("NUCLEUS_HOME", "not a switch")
    assert active_switches() == {
        "KERAS_BACKEND": "jax",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "XLA_FLAGS": "",
    }


def test_the_choice_of_a_device_is_not_a_kernel_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "JAX_ENABLE_X64"):
        monkeypatch.setenv(name, "1")
    assert kernel_switches() == {"TF_ENABLE_ONEDNN_OPTS": "1", "JAX_ENABLE_X64": "1"}
