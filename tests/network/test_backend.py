import os
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pynvml
import pytest

from nucleus_unet.engine.switches import SWITCHES
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import backend
from nucleus_unet.recipe import Recipe, load_recipe


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the compute capability of the machine's GPU and the flags of its CPU."""

    def machine(capability: tuple[int, int] | None = None, flags: str | None = None) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        if flags is not None:
            cpuinfo.write_text(f"model name\t: CPU\nflags\t\t: fpu {flags} sse\n")
        monkeypatch.setattr(backend, "Path", lambda _: cpuinfo)
        monkeypatch.setattr(backend, "gpu_compute_capability", lambda: capability)

    return machine


@pytest.mark.parametrize(
    ("capability", "flags", "precision"),
    [
        (None, "avx2", "float32"),
        (None, "avx512f avx512_bf16", "float32"),
        (None, "amx_bf16", "mixed_bfloat16"),
        (None, None, "float32"),
        ((6, 1), "amx_bf16", "float32"),
        ((7, 0), "avx2", "mixed_float16"),
        ((7, 5), "amx_bf16", "mixed_float16"),
        ((8, 0), "avx2", "mixed_bfloat16"),
        ((9, 0), None, "mixed_bfloat16"),
    ],
)
def test_best_precision(
    machine: Any, capability: tuple[int, int] | None, flags: str | None, precision: str
) -> None:
    machine(capability, flags)
    assert backend.best_precision() == precision


def test_resolve_replaces_auto(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(flags="amx_bf16")
    monkeypatch.setattr(backend, "usable_cores", lambda: 3)
    seed = load_recipe("seed")
    assert (seed.training.precision, seed.training.threads) == ("auto", "auto")
    assert backend.resolve(seed).flat() == seed.flat() | {
        "training.precision": "mixed_bfloat16",
        "training.threads": 3,
    }


def test_resolve_keeps_values_other_than_auto(tiny: Recipe, machine: Any) -> None:
    machine((9, 0))
    assert backend.resolve(tiny) == tiny
    assert backend.resolve(tiny).digest() == tiny.digest()


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", init)
    assert backend.gpu_compute_capability() is None


def test_a_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torchlight")
    with pytest.raises(
        NucleusError,
        match=r"KERAS_BACKEND=torchlight is not installed\. Install it or unset KERAS_BACKEND\.$",
    ):
        backend.device_kind()


def test_the_device_kind_names_backend_gpu_and_its_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(backend, "gpu_name", lambda: "NVIDIA A30")

    def version(name: str) -> str:
        if name in ("tensorflow", "nvidia-cudnn-cu12"):
            return f"version of {name}"
        raise backend.metadata.PackageNotFoundError

    monkeypatch.setattr(backend.metadata, "version", version)
    kind = {
        "backend": "tensorflow version of tensorflow",
        "gpu": "NVIDIA A30",
        "nvidia-cudnn-cu12": "version of nvidia-cudnn-cu12",
    }
    assert backend.device_kind() == kind
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert backend.device_kind() == kind


def test_usable_cores_are_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.os, "sched_getaffinity", lambda _: {2, 5, 6}, raising=False)
    assert backend.usable_cores() == 3


def test_configure_seeds_and_sets_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "a backend without threads")
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    before = keras.config.dtype_policy()
    try:
        draws: list[Any] = []
        for _ in "ab":
            backend.configure(1, 5, "mixed_bfloat16", deterministic=not draws)
            draws.append(np.asarray(keras.random.normal((4,), dtype="float32")))
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len(set(draws[0])) == 4
    assert os.environ["XLA_FLAGS"] == "--other=1 --xla_gpu_deterministic_ops=true"


def test_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0", "gpu:1"])
    facts = backend.hardware()
    assert facts["device"] == "gpu:0"
    assert facts["cores"] == backend.usable_cores()
    name, version = facts["backend"].split()
    assert name == keras.backend.backend()
    assert version == __import__(name).__version__


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    capabilities = {"a": (7, 5), "b": (8, 0)}
    monkeypatch.setattr(backend, "nvidia_gpus", lambda: ["a", "b"])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda gpu: f"GPU-{gpu}8932f93")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda gpu: capabilities[gpu])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda gpu: f"NVIDIA {gpu}")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("named", "used", "capability"),
    [
        (None, "a", (7, 5)),
        ("0", "a", (7, 5)),
        ("1", "b", (8, 0)),
        ("1,0", "b", (8, 0)),
        ("GPU-b89,0", "b", (8, 0)),
        ("MIG-77", "a", (7, 5)),
        ("7", None, None),
        ("-1", None, None),
        ("", None, None),
    ],
)
def test_the_first_visible_gpu_is_used(
    two_gpus: None,
    monkeypatch: pytest.MonkeyPatch,
    named: str | None,
    used: str | None,
    capability: tuple[int, int] | None,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert backend.used_gpu() == used
    assert backend.gpu_compute_capability() == capability
    assert backend.gpu_name() == (used and f"NVIDIA {used}")


def test_one_training_at_a_time_holds_a_gpu(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, order = threading.Event(), []

    def second() -> None:
        with backend.gpu_held(said.set):
            order.append("second")

    thread = threading.Thread(target=second)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with backend.gpu_held(lambda: order.append("waited")):
        thread.start()
        assert said.wait(10)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with backend.gpu_held(lambda: order.append("waited")):  # the other one is free
            order.append("first")
    thread.join()
    assert order == ["first", "second"]
    locks = {path.name for path in (tmp_path / ".cache" / "nucleus-unet").iterdir()}
    assert locks == {"GPU-a8932f93.lock", "GPU-b8932f93.lock"}


def test_without_a_gpu_no_training_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "nvidia_gpus", list)
    waited: list[int] = []
    with backend.gpu_held(lambda: waited.append(1)), backend.gpu_held(lambda: waited.append(2)):
        assert waited == []
