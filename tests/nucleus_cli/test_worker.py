from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest
from prefect.workers.process import ProcessWorker


@pytest.fixture
def worker(bare: Any) -> Any:
    from nucleus_cli.worker import Worker

    worker = Worker("nucleus", limit=1)
    worker._limiter = anyio.CapacityLimiter(1)
    return worker


def called(method: Callable[[], Any]) -> Any:
    """What a method returns in an event loop."""
    return anyio.run(method)


@pytest.mark.fault(
    "Servers and workers",
    "a run is declared lost while its process lives",
    "the run and its worker continue",
)
def test_a_run_that_it_still_holds_is_left_alone(worker: Any) -> None:
    run_id = UUID(int=1)

    async def submit() -> Any:
        worker.limiter.acquire_on_behalf_of_nowait(run_id)
        scheduled: Any = [SimpleNamespace(flow_run=SimpleNamespace(id=run_id))]
        with pytest.raises(RuntimeError, match="already holding"):  # Prefect's own ends by it
            await ProcessWorker._submit_scheduled_flow_runs(worker, scheduled)
        return await worker._submit_scheduled_flow_runs(scheduled)

    assert called(submit) == []


def answer(status: int) -> httpx.HTTPStatusError:
    """How a server that responds with a status is reported."""
    request = httpx.Request("GET", "http://127.0.0.1")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status))


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), answer(503)])
def test_a_server_that_is_away_does_not_end_it(
    worker: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(_: Any) -> None:
        raise error

    for name in ("get_and_submit_flow_runs", "sync_with_backend"):
        monkeypatch.setattr(ProcessWorker, name, fail)
    assert called(worker.get_and_submit_flow_runs) == []
    assert called(worker.sync_with_backend) is None


def test_a_server_that_refuses_it_ends_it(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Any) -> None:
        raise answer(401)

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", fail)
    with pytest.raises(httpx.HTTPStatusError):
        called(worker.get_and_submit_flow_runs)


def test_prefect_keeps_its_own_worker(worker: Any) -> None:
    assert ProcessWorker.get_worker_class_from_type("process") is ProcessWorker
