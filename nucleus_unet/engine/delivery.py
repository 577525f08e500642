"""A queue of calls to a server that may be down: sent in order, each retried until it succeeds."""

import contextvars
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

RETRY_S = 2.0
OUTAGE_TIMEOUT_S = 900.0
"""How long `Delivery.close` waits for a server that is not responding."""


class Delivery:
    """Sends calls from a thread of its own, so that work continues while the server is down.

    Use it as a context manager: leaving the block waits until all calls are sent. If the block
    raises, the calls that are still queued are dropped.

    Parameters
    ----------
    server : str
        Name of the server in warnings, for example "MLflow".
    warn : callable
        Receives one line when the server stops responding, and one when it is back.
    refused : callable
        Returns True if an error means that the server refused the call, so that a retry is useless.

    Notes
    -----
    A call that fails is retried every `RETRY_S` seconds until it succeeds, and later calls wait for
    it. A call may have reached the server before it failed, so sending it twice must do no harm.
    """

    def __init__(
        self,
        server: str,
        warn: Callable[[str], object],
        refused: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._server, self._warn, self._is_refusal = server, warn, refused
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue()  # None: no more calls
        self._abandoned = False
        self._error: Exception | None = None
        self._refusal: Exception | None = None
        self._succeeded = 0.0
        context = contextvars.copy_context()  # holds Prefect's client and flow run
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
        """Add a call to the queue.

        Raises
        ------
        Exception
            If the server refused an earlier call: the error of that call.
        """
        if self._refusal:
            raise self._refusal
        self._calls.put(lambda: function(*args, **kwargs))

    def close(self, patience_s: float = OUTAGE_TIMEOUT_S) -> None:
        """Wait until all calls are sent.

        Parameters
        ----------
        patience_s : float
            How long to wait without any call succeeding, in seconds.

        Raises
        ------
        Exception
            If the server refused a call, or if no call succeeded for `patience_s`: the error of
            the call at the head of the queue.
        TimeoutError
            If that call has not failed but is still waiting for an answer.
        """
        self._calls.put(None)
        started = time.monotonic()
        while self._thread.is_alive():
            left_s = max(started, self._succeeded) + patience_s - time.monotonic()
            if left_s <= 0:
                self._abandon()
                raise self._error or TimeoutError(f"{self._server} is not responding")
            self._thread.join(left_s)
        if self._refusal:
            raise self._refusal

    def _abandon(self) -> None:
        self._abandoned = True
        self._calls.put(None)

    def _deliver(self) -> None:
        for call in iter(self._calls.get, None):
            while not (self._abandoned or self._is_done(call)):
                time.sleep(RETRY_S)

    def _is_done(self, call: Callable[[], object]) -> bool:
        """Try a call; returns False if it failed and must be retried."""
        try:
            call()
        except Exception as error:
            if self._is_refusal(error):
                self._refusal = error
                self._abandoned = True
                return True
            if self._error is None:
                self._warn(
                    f"{self._server} is not responding; updates are queued until it is back: {error}"
                )
            self._error = error
            return False
        self._succeeded = time.monotonic()
        if self._error is not None:
            self._error = None
            self._warn(f"{self._server} is responding again")
        return True
