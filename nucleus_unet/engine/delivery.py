"""Calls to a server that may be away for a while: made later, in order, each until it succeeds."""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

RETRY_S = 2.0
OUTAGE_TIMEOUT_S = 900.0
"""How long `Delivery.close` waits for a server that is away."""


class Delivery:
    """Makes calls in a thread of its own, so that work goes on while the server does not answer.

    A call that fails is made again until it succeeds; those behind it wait. It must therefore do no
    harm when it is made twice. As a context manager it is closed at the end of the block, and where
    the block fails what is left is dropped.

    Parameters
    ----------
    server : str
        What it is called in warnings.
    warn : callable
        Told in a line that the server is away, and that it is back.
    refused : callable
        Whether an error is the server's answer, which another try would not change.
    """

    def __init__(
        self,
        server: str,
        warn: Callable[[str], object],
        refused: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._server, self._warn, self._is_refusal = server, warn, refused
        self._calls: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: Exception | None = None
        self._refusal: Exception | None = None
        self._succeeded = 0.0
        context = contextvars.copy_context()  # Prefect finds its client and run in it
        self._thread = threading.Thread(target=context.run, args=(self._deliver,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "Delivery":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.close()
        else:
            self._abandon()

    def put(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Make a call, after those that were put before.

        Raises
        ------
        Exception
            What an earlier call was refused with.
        """
        if self._refusal:
            raise self._refusal
        with self._changed:
            self._calls.append(lambda: function(*args, **kwargs))
            self._changed.notify()

    def close(self, patience_s: float = OUTAGE_TIMEOUT_S) -> None:
        """Return when all is delivered.

        Raises
        ------
        Exception
            What a call was refused with, or what the first one that is left failed with, so long
            after the last that succeeded.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        started = time.monotonic()
        while self._thread.is_alive():
            left_s = max(started, self._succeeded) + patience_s - time.monotonic()
            if left_s <= 0:
                self._abandon()
                raise self._error or TimeoutError(f"{self._server} does not answer")
            self._thread.join(left_s)
        if self._refusal:
            raise self._refusal

    def _abandon(self) -> None:
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._changed.notify()

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
                if self._is_refusal(error):
                    self._refusal = error
                    return
                if self._error is None:
                    self._warn(
                        f"{self._server} does not answer; what it is to be told is kept: {error}"
                    )
                self._error = error
                time.sleep(RETRY_S)
                continue
            self._succeeded = time.monotonic()
            if self._error is not None:
                self._error = None
                self._warn(f"{self._server} answers again")
            with self._changed:
                if self._calls:  # unless they were dropped meanwhile
                    self._calls.popleft()
