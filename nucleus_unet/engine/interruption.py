"""Being asked to stop, by SIGTERM or Ctrl-C, at a moment of one's own choice."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nucleus_unet.errors import NucleusError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


abandoned = threading.Event()
"""Set where the run that the threads of this process work for has ended by an exception."""


class StoppedError(NucleusError):
    """Work was asked to stop, and left a state from which it goes on."""


def raise_if_abandoned() -> None:
    """For work in threads to call now and then.

    Raises
    ------
    StoppedError
        What it is done for has ended by an exception.
    """
    if abandoned.is_set():
        raise StoppedError("stopped, as other work of the run was")


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the block the signals only change what the callable says: whether to stop.

    For the main thread of a process. Afterwards they mean what they meant.
    """
    asked = False

    def ask(_signal: int, _frame: Any) -> None:
        nonlocal asked
        asked = True

    before = [signal.signal(number, ask) for number in SIGNALS]
    try:
        yield lambda: asked
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
