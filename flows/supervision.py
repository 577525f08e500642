"""A flow run that keeps an eye on its own state in Prefect.

Prefect's worker stops a run that is cancelled, but it no longer notices after its server was away for
half a minute. And a server that was away declares runs lost, because it did not get their heartbeats.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Running, State

CHECK_S = 15.0
"""Seconds between two looks at the state."""
WORKER_S = 60.0
"""Seconds that Prefect's worker has to stop a run that is being cancelled. It kills it after 30."""
TAKEN_BACK = "The run was still running."
AGAIN = "Run the same command again to continue."
_supervised = ContextVar("a run of this process is supervised", default=False)


@contextmanager
def supervised() -> Iterator[None]:
    """Act within the block on what happens to the current flow run in Prefect.

    A run that was declared lost takes its state back. A run that was cancelled or deleted, or that
    another process has taken up, stops. While Prefect's server is away, nothing happens.

    Raises
    ------
    prefect.exceptions.Abort
        If the run was stopped here. Its state in Prefect is then left as it is.
    """
    if _supervised.get():  # the outer run of this process looks for all
        yield
        return
    watch = _Watch(UUID(flow_run.id), flow_run.run_count, get_run_logger())
    token = _supervised.set(True)
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        yield
    except BaseException as error:
        if not watch.reason:
            raise
        if watch.cancelling_since is not None:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(watch.run_id, Cancelled(message="The run has stopped."))
        raise Abort(f"Stopped, because {watch.reason}. {AGAIN}") from error
    finally:
        watch.end()
        _supervised.reset(token)


class _Watch:
    """Looks at the state of a flow run, and stops this process if it should stop."""

    def __init__(
        self, run_id: UUID, count: int, logger: "logging.LoggerAdapter[Any] | logging.Logger"
    ) -> None:
        self.run_id, self.logger = run_id, logger
        self.count = count
        """How often the run was running, as this process knows it."""
        self.reason = ""
        """Why the process was stopped."""
        self.cancelling_since: float | None = None
        self._missed = 0
        self._ended = threading.Event()
        self._acting = threading.Lock()

    def end(self) -> None:
        """After this, nothing is done any more."""
        with self._acting:
            self._ended.set()

    def run(self) -> None:
        """Look again and again. A look does not wait for a server that is away."""
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while not self.reason and not self._ended.wait(CHECK_S):
                try:
                    with get_client(sync_client=True) as client:
                        self._look(client)
                except httpx.HTTPError as error:
                    self.logger.debug("Prefect is not responding: %s", error)
                except Exception as error:
                    self.logger.warning("the state of this run cannot be read: %r", error)

    def _look(self, client: SyncPrefectClient) -> None:
        try:
            run = client.read_flow_run(self.run_id)
            self._missed = 0
        except ObjectNotFound:  # once, it may be the answer of a proxy
            self._missed += 1
            return self._stop("the run was deleted in Prefect") if self._missed > 1 else None
        kind = run.state and run.state.type
        if run.run_count > self.count:
            return self._stop("another process has taken up the run")
        if kind in (StateType.CRASHED, StateType.SCHEDULED):
            return self._take_back(client)
        if kind == StateType.CANCELLING:
            now = time.monotonic()
            self.cancelling_since = self.cancelling_since or now
            if run.infrastructure_pid and now - self.cancelling_since < WORKER_S:
                return None  # the worker that started the run stops it
        if kind in (StateType.CANCELLING, StateType.CANCELLED):
            self._stop("the run was cancelled in Prefect")
        elif kind != StateType.RUNNING:
            self._stop(f"the run was set to {run.state_name} in Prefect")
        return None

    def _stop(self, reason: str) -> None:
        with self._acting:
            if not self._ended.is_set():
                self.reason = reason
                os.kill(os.getpid(), signal.SIGTERM)

    def _take_back(self, client: SyncPrefectClient) -> None:
        with self._acting:
            if not self._ended.is_set():
                self.logger.warning("Prefect had declared this run lost, but it was still running")
                state: State[None] = Running(message=TAKEN_BACK)
                client.set_flow_run_state(self.run_id, state, force=True)
                self.count += 1
