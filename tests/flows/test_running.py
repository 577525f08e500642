import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe, recipe_names


@pytest.fixture
def running(bare: Path) -> Any:
    from flows import running

    return running


def test_the_terminal_does_not_repeat_errors_that_the_command_prints(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("terminal")
    logger.addFilter(running.without_our_errors)
    for error in (NucleusError("no data"), ValueError("a fault")):
        try:
            raise error
        except Exception:
            logger.exception("Encountered an exception")
        logger.error("Finished in state Failed('%s: %s')", type(error).__name__, error)
    logger.warning("no NucleusError here")
    assert caplog.messages == [
        "Encountered an exception",
        "Finished in state Failed('ValueError: a fault')",
        "no NucleusError here",
    ]


@pytest.mark.parametrize(
    ("recipe_file", "name"), [(None, "retrain best"), (Path("ours/mine.toml"), "retrain mine")]
)
def test_a_flow_run_is_named_after_its_recipe(
    running: Any, monkeypatch: pytest.MonkeyPatch, recipe_file: Path | None, name: str
) -> None:
    parameters = {"recipe": "best", "recipe_file": recipe_file}
    run = SimpleNamespace(flow_name="retrain", parameters=parameters)
    monkeypatch.setattr(running, "flow_run", run)
    assert running.named_after_recipe() == name


def test_inputs_are_the_same_only_where_all_that_is_logged_is(
    running: Any, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    here: tuple[Any, ...] = ("retrain", tiny, [tmp_path / "raw"], {})
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
    with pytest.raises(NucleusError, match=r"^NUCLEUS_TASK_RUNNER=thread is unknown\. Set it"):
        running.task_runner()


def test_the_sample_is_written_once(
    running: Any, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def write(folder: Path, names: tuple[str, str]) -> tuple[Path, Path]:
        calls.append(folder)
        time.sleep(0.2)
        folder.mkdir(parents=True)
        return folder / names[0], folder / names[1]

    monkeypatch.setattr(running, "write_synthetic", write)
    with ThreadPoolExecutor() as threads:
        once, at_the_same_time = threads.map(lambda _: running.sample_data(), range(2))
    assert once == at_the_same_time == running.sample_data()
    assert [path.name for path in once] == ["built-in-sample", "built-in-sample-test"]
    assert len(calls) == 1
    assert calls[0].parent == bare / "sample"


def test_what_a_flow_refuses_before_any_work(
    running: Any, tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.predict import predict
    from flows.reproduce import reproduce
    from flows.retrain import retrain

    with pytest.raises(NucleusError, match=r"^Test data need training data"):
        retrain.fn(test_data=Path("test"))
    with pytest.raises(NucleusError, match=r"^Training data are used only with retrain"):
        reproduce.fn("0" * 32, training_data=(Path("train"),))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").touch()
    for images, out in (
        (Path(), Path("made/below")),
        (tmp_path / "labels", tmp_path),
        (tmp_path / "labels" / "a.png", tmp_path),
    ):
        refused = f"^The results in {out} would mix with the images in {images}\\."
        with pytest.raises(NucleusError, match=refused):
            predict.fn([Path(__file__), images], out)
    for images, out in (
        (Path(), Path(".made")),
        (tmp_path / "labels" / "a.png", tmp_path / "labels"),
    ):
        with pytest.raises(NucleusError, match=r"^There is no run other at "):
            predict.fn([images], out, "other")
    monkeypatch.setattr("nucleus_unet.runs.registry.describe_model", lambda model: model)
    monkeypatch.setattr(
        "nucleus_unet.runs.records.fetch_model", lambda _: (tiny, Path("model.keras"))
    )
    (tmp_path / "overlays").touch()
    with pytest.raises(
        NucleusError, match=r"overlays cannot be created .*\. Choose another folder"
    ):
        predict.fn([Path()], tmp_path)


def test_the_form_offers_the_recipes_that_come_with_the_package(running: Any) -> None:
    from flows.retrain import RecipeName

    assert sorted(get_args(RecipeName)) == recipe_names()
