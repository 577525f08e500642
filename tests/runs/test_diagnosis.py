import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nucleus_unet.network.speed import Speed
from nucleus_unet.recipe import Recipe, load_recipe
from nucleus_unet.runs import diagnosis
from nucleus_unet.runs.diagnosis import (
    Resources,
    failed_checks,
    findings,
    home_rows,
    read_resources,
    software_rows,
)

FINE = Resources(
    cores=4,
    all_cores=4,
    core_limit=None,
    load=0.1,
    memory_bytes=16 * 10**9,
    disk_bytes=100 * 10**9,
    file_system="ext4",
    gpu=False,
    backend="tensorflow",
    cuda=False,
    databases=True,
)
ON_CPU, ON_GPU = Speed("cpu:0", 0.5, 2.0), Speed("gpu:0", 0.02, 0.1)


@pytest.fixture(scope="module")
def best() -> Recipe:
    return load_recipe("best")


def test_nothing_to_say(best: Recipe) -> None:
    assert findings(FINE, None, best) == []


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (
            ON_CPU,
            "Training with the recipe best takes about 42 minutes on this CPU: 5,000 steps of 0.5 s. "
            "Predicting an image of 512×512 pixels takes 2 s.",
        ),
        (
            ON_GPU,
            "Training with the recipe best takes about 2 minutes on this GPU: 5,000 steps of 0.02 s. "
            "Predicting an image of 512×512 pixels takes 0.1 s.",
        ),
        (
            Speed("cpu:0", 3, 9),
            "Training with the recipe best takes about 4.2 hours on this CPU: 5,000 steps of 3 s. "
            "Predicting an image of 512×512 pixels takes 9 s.",
        ),
    ],
)
def test_how_long_a_training_takes(best: Recipe, speed: Speed, said: str) -> None:
    assert findings(replace(FINE, gpu=speed == ON_GPU), speed, best) == [said]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"disk_bytes": 1_999_999_999},
            "Only 2.0 GB of disk space are free for the home. Free some with nucleus clean, or set "
            "NUCLEUS_HOME to a folder on another disk.",
        ),
        ({"disk_bytes": 2_000_000_000}, None),
        (
            {"memory_bytes": 3_500_000_000},
            "Only 3.5 GB of memory are available. Stop other programs, or use smaller batches "
            "(training.batch_size, inference.batch_size).",
        ),
        ({"memory_bytes": 4_000_000_000}, None),
        (
            {"core_limit": 1.5},
            "The container may use the time of 1.5 cores, but 4 threads would share it. Train with "
            "--set training.threads=1, or raise the limit.",
        ),
        ({"core_limit": 4.0}, None),
        (
            {"all_cores": 64},
            "A container, taskset or a batch system limits this process to 4 of 64 cores. More cores "
            "train faster.",
        ),
        (
            {"cores": 1, "all_cores": 1},
            "Only one core can be used. Training on two is nearly twice as fast.",
        ),
        (
            {"file_system": "nfs4"},
            "SQLite databases on a network file system (nfs4) are slow and may be damaged. Set "
            "NUCLEUS_HOME to a local disk, or use servers: see docs/team.md.",
        ),
        ({"file_system": "nfs4", "databases": False}, None),
    ],
)
def test_what_is_scarce(best: Recipe, change: Mapping[str, Any], said: str | None) -> None:
    assert findings(replace(FINE, **change), None, best) == ([said] if said else [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "TensorFlow was installed without CUDA's libraries. Run make install."),
        (
            {"cuda": True},
            "TensorFlow does not support it, perhaps because it is too new, or the driver is too old. "
            "Update the driver, or install JAX for CUDA and set KERAS_BACKEND=jax.",
        ),
        ({"backend": "jax"}, "jax was installed without CUDA. Install jax for CUDA."),
    ],
)
def test_why_a_gpu_is_not_used(best: Recipe, change: Mapping[str, Any], why: str) -> None:
    found = replace(FINE, gpu=True, **change)
    assert findings(found, ON_CPU, best)[0] == f"The GPU is not used: {why}"
    assert len(findings(found, ON_GPU, best)) == 1  # it is used


@pytest.mark.parametrize(("load", "slow"), [(2.0, False), (2.1, True)])
def test_a_measurement_beside_other_work(best: Recipe, load: float, slow: bool) -> None:
    said = findings(replace(FINE, load=load), ON_CPU, best)[1:]
    expected = (
        "Other programs kept 2.1 cores busy, and this machine has 4, so these times are too long. "
        "Repeat nucleus doctor when they have ended."
    )
    assert said == ([expected] if slow else [])
    assert findings(replace(FINE, load=load), None, best) == []  # nothing was measured


def test_the_limits_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    found = read_resources(tmp_path, tmp_path)
    assert (found.core_limit, found.memory_bytes) == (1.5, 2_000_000)


def test_a_container_without_limits(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    found = read_resources(tmp_path, tmp_path)
    assert found.core_limit is None
    assert found.memory_bytes > 3_000_000


def test_no_container(tmp_path: Path) -> None:
    found = read_resources(tmp_path, tmp_path / "nothing")
    assert found.core_limit is None
    assert 1 <= found.cores <= found.all_cores
    assert found.disk_bytes > 0


def test_the_file_system_of_the_closest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "nfs"), (f"{tmp_path}/other", "xfs")]
    listed = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: listed)
    assert read_resources(tmp_path).file_system == "nfs"


def test_what_does_not_work(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed_checks() == {}
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    failed = failed_checks()
    assert failed.keys() == {"backend", "Prefect server"}
    assert "http://127.0.0.1:9/api does not respond" in failed["Prefect server"]
    assert ("Keras", "3.15.1 with torch (not installed)") in software_rows(failed)
    rows = dict(home_rows(FINE, failed))
    assert rows["Prefect server"] == "http://127.0.0.1:9/api, does not answer"
    assert rows["MLflow server"] == "none: the database is in the home"


def test_no_address_shows_a_login(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:secret@db/mlflow")
    rows = home_rows(FINE, failed_checks())
    assert dict(rows)["MLflow server"] == "postgresql://db/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@host:5000")
    failed = failed_checks()
    assert failed.keys() == {"home"}
    assert "secret" not in f"{failed}{software_rows(failed)}"


def test_a_gpu_that_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "describe_machine", lambda: dict.fromkeys(MACHINE, "H200"))
    monkeypatch.setattr(diagnosis, "nvidia_gpus", lambda: ["handle"])
    assert dict(software_rows({}))["GPU"] == "H200, hidden by CUDA_VISIBLE_DEVICES"


MACHINE = ("python", "cpu", "cores", "gpu")


def test_the_size_of_the_home(bare: Path) -> None:
    failed_checks()
    size = sum(path.stat().st_size for path in bare.rglob("*") if path.is_file())
    (bare / "file").write_bytes(bytes(2_000_000 - size))
    assert dict(home_rows(FINE, {}))["home"] == f"{bare}, 2.0 MB on ext4"
    assert os.environ["NUCLEUS_HOME"] == str(bare)
