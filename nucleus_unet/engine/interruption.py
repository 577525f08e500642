"""Being asked to stop, by SIGTERM, Ctrl-C or a failure elsewhere in the run."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nucleus_unet.errors import NucleusError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(NucleusError):
    """Work was asked to stop and saved a state from which it can continue."""


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
