import contextvars
import threading
import time

import pytest

from nucleus_unet.engine import delivery
from nucleus_unet.engine.delivery import Delivery

WHERE = contextvars.ContextVar("where", default="nowhere")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RETRY_S", 0.01)


def test_calls_are_made_in_order_each_once_when_the_server_is_back() -> None:
    said: list[str] = []
    made: list[int] = []
    away = iter([True, True, False])

    def call(number: int) -> None:
        if number == 1 and next(away):
            raise ConnectionError("refused")
        made.append(number)

    calls = Delivery("MLflow", said.append)
    for number in range(4):
        calls.put(call, number)
    calls.close()
    assert made == [0, 1, 2, 3]
    assert said == [
        "MLflow does not answer; what it is to be told is kept: refused",
        "MLflow answers again",
    ]


def test_what_is_put_waits_and_closing_gives_up() -> None:
    def never() -> None:
        raise ConnectionError("refused")

    calls = Delivery("MLflow", lambda _: None)
    for _ in range(1000):
        calls.put(never)
    with pytest.raises(ConnectionError, match="refused"):
        calls.close(patience_s=0.1)


def test_calls_see_the_context_of_who_made_it() -> None:
    seen: list[str] = []
    WHERE.set("here")
    calls = Delivery("Prefect", lambda _: None)
    calls.put(lambda: seen.append(WHERE.get()))
    calls.close()
    assert seen == ["here"]


def test_closing_does_not_wait_where_nothing_is_to_be_delivered() -> None:
    said: list[str] = []
    before = set(threading.enumerate())
    Delivery("MLflow", said.append).close(patience_s=5)
    assert set(threading.enumerate()) <= before
    assert said == []


def test_what_the_server_refuses_is_not_tried_again() -> None:
    tried: list[int] = []

    def refuse() -> None:
        tried.append(1)
        raise ValueError("no such run")

    def is_refusal(error: Exception) -> bool:
        return isinstance(error, ValueError)

    calls = Delivery("MLflow", lambda _: None, is_refusal)
    calls.put(refuse)
    with pytest.raises(ValueError, match="no such run"):
        calls.close(patience_s=5)
    with pytest.raises(ValueError, match="no such run"):
        calls.put(refuse)
    assert tried == [1]


def test_after_an_error_what_is_left_is_dropped() -> None:
    made: list[int] = []
    away = threading.Event()

    def call() -> None:
        away.set()
        raise ConnectionError("refused")

    def work() -> None:
        with Delivery("MLflow", lambda _: None) as calls:
            calls.put(call)
            calls.put(made.append, 1)
            away.wait()
            raise RuntimeError

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError):
        work()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
    assert made == []


def test_a_call_that_hangs_is_given_up() -> None:
    hanging = threading.Event()
    calls = Delivery("Prefect", lambda _: None)
    calls.put(hanging.wait)
    with pytest.raises(TimeoutError, match="Prefect does not answer"):
        calls.close(patience_s=0.1)
    hanging.set()
