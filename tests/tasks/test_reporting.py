import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.states import State

from nucleus_unet.engine.interruption import StoppedError, abandoned
from nucleus_unet.engine.isolation import abandoned_on_error
from nucleus_unet.engine.stages import Stage
from tasks import reporting
from tasks.reporting import short, state_of
from tasks.train import _duration


def test_a_stage_that_was_built_is_returned_as_it_is(home: Path) -> None:
    stage = Stage("split", home, "d" * 64, cached=False, seconds=1.0)
    assert state_of(stage) is stage


def test_a_stage_that_was_there_comes_in_a_state_named_cached(home: Path) -> None:
    stage = Stage("split", home, "d" * 64, cached=True, seconds=0.0)
    state: Any = state_of(stage)
    assert isinstance(state, State)
    assert (state.name, state.is_completed(), state.data) == ("Cached", True, stage)
    assert state.message == f"nothing to do: {'d' * 20}"


def test_waiting_for_another_process_is_told_and_ends_with_the_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("waiting"))
    begun, enough = threading.Event(), threading.Event()

    def build(_: Path) -> None:
        begun.set()
        assert enough.wait(30)

    def stage() -> Stage:
        return reporting.stage_in_home("split", {}, build, code=["data.rle"])

    with ThreadPoolExecutor() as threads:
        first = threads.submit(stage)
        assert begun.wait(30)
        with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
            second = threads.submit(stage)
            while not caplog.records and not second.done():
                time.sleep(0.01)
            raise KeyboardInterrupt
        with pytest.raises(StoppedError):
            second.result(30)
        enough.set()
        assert not first.result(30).cached
    [line] = caplog.messages
    assert line == "the same split is under way in another process: waiting"
    abandoned.clear()  # other tests run in this process


def test_work_in_threads_stops_where_the_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("progress"))
    move = reporting.progress("tuning", "settings")
    with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
        move(1, 2)
        raise KeyboardInterrupt
    with pytest.raises(StoppedError):
        move(2, 2)
    with abandoned_on_error():  # another run in the same process
        move(2, 2)


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
