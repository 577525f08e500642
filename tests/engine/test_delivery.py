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


def test_after_an_outage_each_call_is_sent_once_and_in_order() -> None:
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
        "MLflow is not responding; updates are queued until it is back: refused",
        "MLflow is responding again",
    ]


def test_put_never_blocks_and_close_gives_up_after_its_patience() -> None:
    def never() -> None:
        raise ConnectionError("refused")

    calls = Delivery("MLflow", lambda _: None)
    for _ in range(1000):
        calls.put(never)
    with pytest.raises(ConnectionError, match="refused"):
        calls.close(patience_s=0.1)


def test_calls_see_the_context_variables_of_the_creating_thread() -> None:
    seen: list[str] = []
    WHERE.set("here")
    calls = Delivery("Prefect", lambda _: None)
    calls.put(lambda: seen.append(WHERE.get()))
    calls.close()
    assert seen == ["here"]


def test_closing_an_empty_queue_does_not_wait() -> None:
    said: list[str] = []
    before = set(threading.enumerate())
    Delivery("MLflow", said.append).close(patience_s=5)
    assert set(threading.enumerate()) <= before
    assert said == []


def test_a_refused_call_is_not_retried() -> None:
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


def test_an_error_in_the_block_drops_the_queued_calls() -> None:
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


def test_close_does_not_wait_for_ever_for_a_call_that_hangs() -> None:
    hanging = threading.Event()
    calls = Delivery("Prefect", lambda _: None)
    calls.put(hanging.wait)
    with pytest.raises(TimeoutError, match="Prefect is not responding"):
        calls.close(patience_s=0.1)
    hanging.set()
