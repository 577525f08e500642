from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.states import State

from nucleus_unet.stages import Stage
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
