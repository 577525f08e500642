import contextvars

import pytest

from nucleus_unet import delivery
from nucleus_unet.delivery import Delivery

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


def test_who_puts_does_not_wait() -> None:
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


def test_nothing_to_deliver() -> None:
    Delivery("MLflow", lambda _: None).close()
