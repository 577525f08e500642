"""A flow run that keeps an eye on its own state in Prefect.

Prefect's worker stops a run that is cancelled, but it no longer notices after its server was away for
half a minute. And a server that was away declares runs lost, because it did not get their heartbeats.
"""

import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Running

CHECK_S = 15.0
"""Seconds between two looks at the state."""
WORKER_S = 60.0
"""Seconds that Prefect's worker has to stop a run that is being cancelled. It kills it after 30."""
AGAIN = "Run the same command again to continue."


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
    if flow_run.parent_flow_run_id:  # the first run of the process looks for all
        yield
        return
    watch = _Watch(UUID(flow_run.id), get_run_logger())
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch.run,), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if not watch.reason:
            raise
        with get_client(sync_client=True) as client:
            watch.confirm(client)
        raise Abort(f"Stopped, because {watch.reason}. {AGAIN}") from error
    finally:
        watch.ended.set()


class _Watch:
    """Looks at the state of a flow run, and stops this process if it should not go on."""

    def __init__(self, run_id: UUID, logger: "logging.LoggerAdapter[Any] | logging.Logger") -> None:
        self.run_id, self.logger = run_id, logger
        self.ended = threading.Event()
        self.reason = ""
        """Why the process was stopped."""
        self.count = 0
        """How often the run was running, as this process knows it."""
        self.cancelling_since: float | None = None

    def run(self) -> None:
        while not self.reason and not self.ended.wait(CHECK_S):
            try:
                with get_client(sync_client=True) as client:
                    self.reason = self.look(client)
            except httpx.HTTPError as error:
                self.logger.debug("Prefect is not responding: %s", error)
        if self.reason and not self.ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def look(self, client: SyncPrefectClient) -> str:
        """Look once, and take the run back if it was declared lost; returns why to stop, or ""."""
        try:
            run = client.read_flow_run(self.run_id)
        except ObjectNotFound:
            return "the run was deleted in Prefect"
        kind = run.state and run.state.type
        if kind in (StateType.CRASHED, StateType.SCHEDULED):
            self.logger.warning("Prefect had declared this run lost; it goes on")
            client.set_flow_run_state(self.run_id, Running(message="it was not lost"), force=True)
            self.count = client.read_flow_run(self.run_id).run_count
            return ""
        if kind == StateType.CANCELLING:
            now = time.monotonic()
            self.cancelling_since = self.cancelling_since or now
            if now - self.cancelling_since < WORKER_S:
                return ""
        if kind != StateType.RUNNING:
            return f"the run was set to {run.state_name} in Prefect"
        self.count = self.count or run.run_count
        return "another process has taken up the run" if run.run_count > self.count else ""

    def confirm(self, client: SyncPrefectClient) -> None:
        """Tell Prefect that a run that was being cancelled has stopped."""
        if self.cancelling_since is not None:
            client.set_flow_run_state(self.run_id, Cancelled(message="The run was stopped."))
