import logging
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest

RUN = UUID(int=1)


@pytest.fixture
def supervision(bare: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from flows import supervision

    monkeypatch.setattr(supervision, "CHECK_S", 0.01)
    return supervision


class Server:
    """Prefect's server, as a client sees it: the states that it reports one after the other."""

    def __init__(self, *reports: tuple[str, int] | Exception) -> None:
        self.reports, self.told = list(reports), list[str]()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None: ...

    pid: str | None = "1"
    """The process that a worker started."""

    def read_flow_run(self, _: UUID) -> Any:
        from prefect.client.schemas.objects import StateType

        report = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(report, Exception):
            raise report
        name, count = report
        state = SimpleNamespace(type=StateType(name))
        return SimpleNamespace(
            state=state, state_name=name.title(), run_count=count, infrastructure_pid=self.pid
        )

    def set_flow_run_state(self, _: UUID, state: Any, force: bool = False) -> None:
        self.told.append(state.name)


@pytest.fixture
def watched(supervision: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Watches a run on a server until the watch stops the process; returns the reason."""

    def watch(server: Server) -> str:
        killed = list[int]()
        monkeypatch.setattr(supervision, "get_client", lambda **_: server)
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
        one = supervision._Watch(RUN, 1, logging.getLogger("run"))
        one.run()
        assert killed == [signal.SIGTERM]
        return str(one.reason)

    return watch


@pytest.mark.parametrize(
    ("reports", "reason"),
    [
        ([("CANCELLED", 1)], "the run was cancelled in Prefect"),
        ([("RUNNING", 1), ("FAILED", 1)], "the run was set to Failed in Prefect"),
        ([("RUNNING", 1), ("PENDING", 1)], "the run was set to Pending in Prefect"),
        ([("RUNNING", 1), ("RUNNING", 2)], "another process has taken up the run"),
    ],
)
def test_a_run_that_is_not_to_go_on_is_stopped(
    watched: Callable[..., str], reports: list[tuple[str, int]], reason: str
) -> None:
    server = Server(*reports)
    assert watched(server) == reason
    assert server.told == []


def test_a_run_that_was_deleted_is_stopped(watched: Callable[..., str]) -> None:
    from prefect.exceptions import ObjectNotFound

    gone = ObjectNotFound(http_exc=Exception("404"))
    server = Server(("RUNNING", 1), gone, ("RUNNING", 1), gone, gone)  # once, a proxy says so
    assert watched(server) == "the run was deleted in Prefect"
    assert len(server.reports) == 1


def test_a_server_that_is_away_stops_nothing(watched: Callable[..., str]) -> None:
    away = [httpx.ConnectError("refused"), ValueError("no JSON")] * 3
    server = Server(("RUNNING", 1), *away, ("RUNNING", 1), ("CANCELLED", 1))
    assert watched(server) == "the run was cancelled in Prefect"
    assert server.reports == [("CANCELLED", 1)]


@pytest.mark.parametrize("lost", ["CRASHED", "SCHEDULED"])
def test_a_run_that_was_declared_lost_takes_its_state_back(
    watched: Callable[..., str], lost: str
) -> None:
    # Being running again counts as one more time; the next time is of another process.
    server = Server(("RUNNING", 1), (lost, 1), *[("RUNNING", 2)] * 3, ("RUNNING", 3))
    assert watched(server) == "another process has taken up the run"
    assert server.told == ["Running"]


def test_the_worker_has_time_to_cancel_a_run(
    supervision: Any, watched: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([100, 120, 140, 159, 160])
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    server = Server(("RUNNING", 1), *[("CANCELLING", 1)] * 5)
    assert watched(server) == "the run was cancelled in Prefect"
    assert list(seconds) == []


def test_a_run_without_a_worker_is_cancelled_at_once(watched: Callable[..., str]) -> None:
    server = Server(("RUNNING", 1), ("CANCELLING", 1))
    server.pid = None
    assert watched(server) == "the run was cancelled in Prefect"


@pytest.mark.parametrize("state", ["CRASHED", "CANCELLED"])
def test_nothing_is_done_after_the_run_has_ended(
    supervision: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    watch = supervision._Watch(RUN, 1, logging.getLogger("run"))
    server = Server((state, 1))
    asked = server.read_flow_run

    def read_flow_run(run_id: UUID) -> Any:
        watch.end()  # while the server is asked
        return asked(run_id)

    monkeypatch.setattr(server, "read_flow_run", read_flow_run)
    monkeypatch.setattr(supervision, "get_client", lambda **_: server)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it is stopped"))
    watch.run()
    assert (watch.reason, server.told) == ("", [])


@pytest.mark.parametrize(("state", "told"), [("CANCELLING", ["Cancelled"]), ("CANCELLED", [])])
def test_what_was_stopped_ends_and_leaves_its_state(
    supervision: Any, monkeypatch: pytest.MonkeyPatch, state: str, told: list[str]
) -> None:
    from prefect.exceptions import Abort

    server = Server(("RUNNING", 1), (state, 1))
    monkeypatch.setattr(supervision, "get_client", lambda **_: server)
    monkeypatch.setattr(supervision, "get_run_logger", lambda: logging.getLogger("run"))
    monkeypatch.setattr(supervision, "WORKER_S", 0)
    run = SimpleNamespace(id=str(RUN), run_count=1)
    monkeypatch.setattr(supervision, "flow_run", run)

    def ask(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ask)
    try:
        because = "Stopped, because the run was cancelled"
        with pytest.raises(Abort, match=because), supervision.supervised():
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert server.told == told


def test_an_error_of_the_work_stays_what_it_is(
    supervision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "get_client", lambda **_: Server(("RUNNING", 1)))
    monkeypatch.setattr(supervision, "get_run_logger", lambda: logging.getLogger("run"))
    run = SimpleNamespace(id=str(RUN), run_count=1)
    monkeypatch.setattr(supervision, "flow_run", run)
    with pytest.raises(ValueError, match="a fault"), supervision.supervised():
        raise ValueError("a fault")
