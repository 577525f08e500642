import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from nucleus_unet.files import sha256_bytes
from nucleus_unet.network import backend
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import tracking
from nucleus_unet.runs.models import log_model

OpenRun = Callable[..., AbstractContextManager[tracking.Run]]


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread counts that Keras is asked for. In this process it can no longer change them."""
    counts: list[int] = []
    monkeypatch.setattr(backend, "configure", counts.append)
    return counts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What MLflow is asked to log. It takes minutes, and a test of the flows does it."""
    made: list[dict[str, Any]] = []

    def log(**options: Any) -> SimpleNamespace:
        made.append(options)
        return SimpleNamespace(model_id=f"m-{len(made)}")

    pyfunc = import_module("mlflow.pyfunc")  # `mlflow.pyfunc` itself may be a lazy loader
    monkeypatch.setattr(pyfunc, "log_model", log)
    return made


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """An image. Its upper left corner is the example."""
    image = np.zeros((100, 80, 3), np.uint8)
    image[:64, :64] = 7
    np.save(tmp_path / "image.npy", image)
    return tmp_path / "image.npy"


def test_a_model_is_logged_with_all_that_it_needs(
    opened: OpenRun,
    tiny: Recipe,
    network: Path,
    example: Path,
    calls: list[dict[str, Any]],
    configured: list[int],
) -> None:
    with opened() as run:
        log_model(run, tiny, network, example)
    assert configured == [tiny.training.cpu_threads]
    [options] = calls
    assert options["params"] == {key: str(value) for key, value in tiny.flat().items()}
    np.testing.assert_array_equal(options["input_example"], np.full((1, 64, 64, 3), 7, np.uint8))
    assert options["input_example"].dtype == np.uint8
    assert options["artifacts"]["network"] == network.as_uri()
    assert f"keras=={metadata.version('keras')}" in options["pip_requirements"]
    [inputs], [outputs] = (
        s.to_dict() for s in (options["signature"].inputs, options["signature"].outputs)
    )
    assert (inputs["tensor-spec"]["dtype"], inputs["tensor-spec"]["shape"]) == (
        "uint8",
        (-1, -1, -1, 3),
    )
    assert (outputs["tensor-spec"]["dtype"], outputs["tensor-spec"]["shape"]) == (
        "int32",
        (-1, -1, -1),
    )


def test_a_small_image_is_an_example_as_it_is(
    opened: OpenRun, tiny: Recipe, network: Path, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    np.save(tmp_path / "small.npy", np.ones((20, 30, 3), np.uint8))
    with opened() as run:
        log_model(run, tiny, network, tmp_path / "small.npy")
    assert calls[0]["input_example"].shape == (1, 20, 30, 3)


def test_a_run_continues_after_its_model_is_logged(
    client: MlflowClient,
    opened: OpenRun,
    tiny: Recipe,
    network: Path,
    example: Path,
    calls: list[dict[str, Any]],
) -> None:
    with opened() as run:
        assert log_model(run, tiny, network, example) == "m-1"
        assert client.get_run(run.id).info.status == "RUNNING"
        tags = client.get_run(run.id).data.tags
        assert tags["model.id"] == "m-1"
        assert json.loads(tags["model.files"]) == {
            "recipe.json": sha256_bytes(tiny.model_dump_json(indent=1).encode()),
            "model.keras": sha256_bytes(b"weights"),
        }
    assert client.get_run(run.id).info.status == "FINISHED"


def test_the_same_model_is_logged_once(
    opened: OpenRun, tiny: Recipe, network: Path, example: Path, calls: list[dict[str, Any]]
) -> None:
    with opened() as run:
        assert log_model(run, tiny, network, example) == "m-1"
        assert log_model(run, tiny, network, example) == "m-1"
        assert len(calls) == 1
        network.write_bytes(b"other weights")
        assert log_model(run, tiny, network, example) == "m-2"
        other = tiny.with_overrides(["inference.cutoff=0.4"])
        assert log_model(run, other, network, example) == "m-3"


def test_a_run_continues_if_its_model_cannot_be_logged(
    client: MlflowClient,
    opened: OpenRun,
    tiny: Recipe,
    network: Path,
    example: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(import_module("mlflow.pyfunc"), "log_model", fail)
    with opened() as run:
        with pytest.raises(OSError, match="the disk is full"):
            log_model(run, tiny, network, example)
        assert client.get_run(run.id).info.status == "RUNNING"
        assert "model.files" not in client.get_run(run.id).data.tags
