"""Prefect's worker, which here outlives an outage of its server, and a run that is lost and found."""

import abc
import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker

from flows.running import require_prefect
from nucleus_cli.deploy import POOL

if TYPE_CHECKING:
    from prefect.client.schemas.responses import WorkerFlowRunResponse


class Worker(ProcessWorker, abc.ABC):  # Prefect does not list an abstract class among its types
    """A worker that does one run at a time.

    Prefect's own worker ends, and its runs with it, if its server is away for about ten minutes, or if
    a run that it still holds was declared lost and is scheduled again.
    """

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        with self._patience():
            return await super().get_and_submit_flow_runs()
        return []

    async def sync_with_backend(self) -> None:
        with self._patience():
            await super().sync_with_backend()

    async def _submit_run(self, flow_run: FlowRun) -> None:
        with self._patience():
            return await super()._submit_run(flow_run)
        self._submitting_flow_run_ids.discard(flow_run.id)
        self._release_limit_slot(flow_run.id)

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        with self._patience():
            await super()._cancel_run(flow_run_id)

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: "list[WorkerFlowRunResponse]"
    ) -> list[FlowRun]:
        held = self.limiter.statistics().borrowers
        free = [one for one in flow_run_response if one.flow_run.id not in held]
        return await super()._submit_scheduled_flow_runs(free)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Report a server that is away. Prefect asks again after some seconds."""
        try:
            yield
        except httpx.HTTPError as error:
            if not _is_away(error):
                raise
            self._logger.warning("Prefect is not responding; asking again: %r", error)


def _is_away(error: httpx.HTTPError) -> bool:
    """Whether a server cannot be reached or has a fault of its own; it may be better soon."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def serve_runs(say: Callable[[str], None]) -> None:
    """Do the runs of the work pool, one at a time, until SIGTERM or Ctrl-C.

    Raises
    ------
    NucleusError
        If the Prefect server refuses the login.
    """
    import_module("prefect.main")  # sets up the log
    try:
        require_prefect()
    except httpx.HTTPError as error:
        if not _is_away(error):  # the worker waits for it
            raise
    setup_signal_handlers_worker(os.getpid(), "the worker", say)
    with suppress(KeyboardInterrupt):
        asyncio.run(Worker(POOL, limit=1).start(printer=say))
