import os
import signal
from contextvars import copy_context
from threading import Thread

import pytest

from nucleus_unet.engine.interruption import (
    StoppedError,
    abandonable,
    deferred,
    raise_if_abandoned,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_only_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with deferred() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) is before


def test_afterwards_it_means_what_it_meant() -> None:
    # What runs in the background of a shell is started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with deferred():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_work_stops_when_its_run_is_abandoned() -> None:
    raise_if_abandoned()
    with abandonable() as abandoned:
        raise_if_abandoned()
        abandoned.set()
        with pytest.raises(StoppedError) as caught:
            raise_if_abandoned()
    assert str(caught.value) == "Stopped, because the run has failed or was stopped."
    raise_if_abandoned()  # of the next run in this process
    with abandonable():
        raise_if_abandoned()


def test_only_threads_of_the_run_stop() -> None:
    stopped: list[str] = []

    def work(name: str) -> None:
        try:
            raise_if_abandoned()
        except StoppedError:
            stopped.append(name)

    with abandonable() as abandoned:
        abandoned.set()
        own = Thread(target=copy_context().run, args=(work, "of the run"))
        for thread in (own, Thread(target=work, args=("of another run",))):
            thread.start()
            thread.join()
    assert stopped == ["of the run"]


def test_a_run_within_a_run_stops_alone() -> None:
    with abandonable() as outer:
        with abandonable() as inner:
            inner.set()
            with pytest.raises(StoppedError):
                raise_if_abandoned()
        raise_if_abandoned()
        outer.set()
        with pytest.raises(StoppedError):
            raise_if_abandoned()
