"""Calls to a server that may be away for a while: made later, in order, each until it succeeds."""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

RETRY_S = 2.0
PATIENCE_S = 900.0
"""How long `Delivery.close` waits for a server that is away."""


class Delivery:
    """Makes calls in a thread of its own, so that work goes on while the server does not answer.

    A call that fails is made again until it succeeds; those behind it wait. It must therefore do no
    harm when it is made twice.

    Parameters
    ----------
    warn : callable
        Told in a line that the server is away, and that it is back.
    """

    def __init__(self, server: str, warn: Callable[[str], object]) -> None:
        self._server, self._warn = server, warn
        self._calls: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: Exception | None = None
        context = contextvars.copy_context()  # Prefect finds its client and run in it
        self._thread = threading.Thread(target=context.run, args=(self._deliver,), daemon=True)
        self._thread.start()

    def put(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Make a call, after those that were put before."""
        with self._changed:
            self._calls.append(lambda: function(*args, **kwargs))
            self._changed.notify()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Return when all is delivered.

        Raises
        ------
        Exception
            What the first call that is left failed with, after so long a time.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._calls.clear()
            raise self._error or TimeoutError(f"{self._server} does not answer")

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closed)
                if not self._calls:
                    return
                call = self._calls[0]
            try:
                call()
            except Exception as error:
                if self._error is None:
                    self._warn(
                        f"{self._server} does not answer; what it is to be told is kept: {error}"
                    )
                self._error = error
                time.sleep(RETRY_S)
                continue
            if self._error is not None:
                self._error = None
                self._warn(f"{self._server} answers again")
            with self._changed:
                if self._calls:  # unless close gave up meanwhile
                    self._calls.popleft()
