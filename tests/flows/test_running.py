import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe


@pytest.fixture
def running(bare: Path) -> Any:
    from flows import running

    return running


def test_what_the_user_can_mend_is_logged_as_one_line(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("one line")
    logger.addFilter(running._one_line)
    for error in (NucleusError("no data"), ValueError("a fault")):
        try:
            raise error
        except Exception:
            logger.exception("Finished with an exception")
    mended, fault = caplog.records
    assert (mended.getMessage(), mended.exc_info) == ("no data", None)
    assert fault.getMessage() == "Finished with an exception"
    assert fault.exc_info is not None


def test_inputs_are_the_same_only_where_all_that_is_logged_is(
    running: Any, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    here = ("retrain", tiny, [tmp_path / "raw"], {})
    renamed = tiny.model_copy(update={"name": "mine"})  # the name is a parameter in MLflow
    inputs = [
        running.Work(*values).inputs()
        for values in (
            here,
            here,
            ("reproduce", *here[1:]),
            ("retrain", renamed, *here[2:]),
            ("retrain", tiny, [], {}),
            ("retrain", tiny, [], {}, [tmp_path / "raw"]),  # predicted, and not trained on
            (*here[:3], {"reproduces": "a"}),
        )
    ]
    monkeypatch.setattr(
        running, "device_kind", lambda: {"backend": "jax 0.10", "gpu": "NVIDIA H100"}
    )
    inputs.append(running.Work(*here).inputs())
    assert inputs[0] == inputs[1]
    assert len(set(inputs)) == 7


def test_shards_run_in_threads(running: Any) -> None:
    assert type(running.task_runner()).__name__ == "ThreadPoolTaskRunner"


@pytest.mark.parametrize("address", [None, "tcp://127.0.0.1:8786"])
def test_or_on_dask(running: Any, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_TASK_RUNNER", "dask")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    if address:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    runner = running.task_runner()
    assert type(runner).__name__ == "DaskTaskRunner"
    assert runner.address == address
    assert "prefect_dask" in sys.modules


def test_dask_needs_a_prefect_server(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_TASK_RUNNER", "dask")
    with pytest.raises(NucleusError, match=r"^NUCLEUS_TASK_RUNNER=dask needs a Prefect server"):
        running.task_runner()


def test_a_misspelt_task_runner_is_refused(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_TASK_RUNNER", "thread")
    with pytest.raises(NucleusError, match=r"^NUCLEUS_TASK_RUNNER=thread is unknown: set threads"):
        running.task_runner()


def test_the_sample_is_written_once(
    running: Any, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def write(folder: Path) -> tuple[Path, Path]:
        calls.append(folder)
        time.sleep(0.2)
        folder.mkdir(parents=True)
        return folder / "stage1_train", folder / "stage1_test"

    monkeypatch.setattr(running, "write_synthetic", write)
    with ThreadPoolExecutor() as threads:
        once, at_the_same_time = threads.map(lambda _: running.sample_data(), range(2))
    assert once == at_the_same_time == running.sample_data()
    assert len(calls) == 1
    assert calls[0].parent == bare / "sample"


def test_what_a_flow_refuses_before_any_work(
    running: Any, tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.predict import predict
    from flows.reproduce import reproduce
    from flows.retrain import retrain

    with pytest.raises(NucleusError, match="test data go with training data"):
        retrain.fn(test_data=Path("test"))
    with pytest.raises(NucleusError, match="training data go with retrain"):
        reproduce.fn("0" * 32, training_data=[Path("train")])
    assert retrain.persist_result is False
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").touch()
    for images, out in (
        (Path(), Path("made/below")),
        (tmp_path / "labels", tmp_path),
        (tmp_path / "labels" / "a.png", tmp_path),
    ):
        refused = f"^{out}: what is made there would be read as images of {images}, or written over"
        with pytest.raises(NucleusError, match=refused):
            predict.fn([Path(__file__), images], out)
    for images, out in (
        (Path(), Path(".made")),
        (tmp_path / "labels" / "a.png", tmp_path / "labels"),
    ):
        with pytest.raises(NucleusError, match=r"there is no champion at sqlite:.*: retrain"):
            predict.fn([images], out)
    monkeypatch.setattr("nucleus_unet.runs.registry.run_of", lambda model: model)
    monkeypatch.setattr(
        "nucleus_unet.runs.records.fetch_model", lambda _: (tiny, Path("model.keras"))
    )
    (tmp_path / "overlays").touch()
    with pytest.raises(NucleusError, match=r"overlays: cannot be created .*; name another folder"):
        predict.fn([Path()], tmp_path)
