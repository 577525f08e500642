"""Being asked to stop, by SIGTERM, Ctrl-C or a failure elsewhere in the run."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from nucleus_unet.errors import NucleusError

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_failed: ContextVar[threading.Event | None] = ContextVar("failed run", default=None)


class StoppedError(NucleusError):
    """Work was asked to stop and saved a state from which it can continue."""


@contextmanager
def abandonable() -> Iterator[threading.Event]:
    """Yield an event for a block; if it is set, `raise_if_abandoned` raises in the block's threads."""
    event = threading.Event()
    token = _failed.set(event)
    try:
        yield event
    finally:
        _failed.reset(token)


def raise_if_abandoned() -> None:
    """Check, now and then, whether work in threads should go on.

    Raises
    ------
    StoppedError
        If the run that the work belongs to has failed or was stopped.
    """
    if (failed := _failed.get()) and failed.is_set():
        raise StoppedError("Stopped, because the run has failed or was stopped.")


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the block, `SIGNALS` only set a flag; the yielded function returns it.

    Use it in the main thread of a process. After the block the signals act as before.
    """
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = [signal.signal(number, ask) for number in SIGNALS]
    try:
        yield lambda: asked
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
