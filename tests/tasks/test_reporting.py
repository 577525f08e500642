import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.states import State

from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.engine.isolation import abandoned_on_error
from nucleus_unet.engine.stages import Stage
from tasks import reporting
from tasks.reporting import finished, short
from tasks.train import _duration


def test_a_stage_that_was_built_is_returned_as_it_is(home: Path) -> None:
    stage = Stage(home, "d" * 64, cached=False, seconds=1.0)
    assert finished(stage, "split 4 images") is stage


def test_a_cached_stage_comes_in_a_state_named_cached(home: Path) -> None:
    stage = Stage(home, "d" * 64, cached=True, seconds=0.0)
    state = finished(stage, "split 4 images")
    assert isinstance(state, State)
    assert (state.name, state.is_completed(), state.data) == ("Cached", True, stage)
    assert state.message == "nothing to do: it was done before"


def test_waiting_for_another_process_is_logged_and_ends_with_the_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("waiting"))
    begun, enough = threading.Event(), threading.Event()

    def build(_: Path) -> None:
        begun.set()
        assert enough.wait(30)

    def stage() -> Stage:
        return reporting.cached_stage(home, "split", {}, build, code=["data.rle"])

    with ThreadPoolExecutor() as threads:
        first = threads.submit(stage)
        assert begun.wait(30)
        with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
            second = threads.submit(copy_context().run, stage)
            while not caplog.records and not second.done():
                time.sleep(0.01)
            raise KeyboardInterrupt
        with pytest.raises(StoppedError):
            second.result(30)
        enough.set()
        assert not first.result(30).cached
    [line] = caplog.messages
    assert line == "waiting for another process that computes the same split"


def test_work_in_threads_stops_when_the_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("progress"))
    move = reporting.progress("tuning", "settings")
    with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
        move(1, 2)
        in_a_thread = copy_context()
        raise KeyboardInterrupt
    with pytest.raises(StoppedError):
        in_a_thread.run(move, 2, 2)
    with abandoned_on_error():  # another run in the same process
        move(2, 2)


def test_a_damaged_result_is_rebuilt_and_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("damage"))

    def stage() -> Stage:
        def build(folder: Path) -> None:
            (folder / "split.json").write_text("{}")

        return reporting.cached_stage(home, "split", {}, build, code=["data.rle"])

    (stage().folder / "split.json").write_text("cut")
    assert not stage().cached
    assert caplog.messages == ["rebuilding the result of split, because it is damaged: split.json"]
    assert stage().cached


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, 0.1235),
        (123456.0, 123500.0),
        (np.float64(1 / 3), 0.3333),
        (0.00012345, 0.0001234),
        (7, 7),
        ("0.123456", "0.123456"),
    ],
)
def test_numbers_of_a_table_are_short(value: Any, expected: Any) -> None:
    [found] = short({"x": value}).values()
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (29, "29 s"), (89, "1 min"), (3600, "60 min")]
)
def test_durations_are_told_in_seconds_or_minutes(seconds: float, expected: str) -> None:
    assert _duration(seconds) == expected
