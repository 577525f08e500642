import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from nucleus_unet.engine.events import EventLog
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.engine.isolation import (
    GpuError,
    OutOfMemoryError,
    abandoned_on_error,
    follow,
    new_process,
    raise_if_abandoned,
    run_in_worker,
)

LIMIT_S = 30
LESS_MEMORY = (
    "Free some memory, or use smaller batches (training.batch_size, inference.batch_size), and start "
    "again."
)
KILLED = "The computing process was killed, probably because memory ran out. "


def start(threads: ThreadPoolExecutor, work: Any, *args: Any, **options: Any) -> Future[Any]:
    """Start work in a thread that belongs to the run of this one, as Prefect starts tasks."""
    return threads.submit(copy_context().run, work, *args, **options)


def require_end(process: psutil.Process) -> None:
    deadline = time.monotonic() + LIMIT_S
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                process.kill()
                pytest.fail("it is still running")
            time.sleep(0.1)


def test_following_yields_reports_and_ends_with_the_function(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    reports = follow("pathlib:Path.write_text", path, '{"event": "reported"}\n', poll=log.new)
    assert list(reports) == [{"event": "reported"}]


def test_it_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    list(follow("os:symlink", "target", tmp_path / "link", poll=list))
    list(follow("os:chdir", tmp_path, poll=list))
    assert (tmp_path / "link").is_symlink()
    assert Path.cwd() != tmp_path


def test_it_computes_with_onednn_unless_the_environment_says_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for asked, switch in ((None, "1"), ("0", "0")):
        if asked:
            monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", asked)
        else:
            monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
        with new_process() as process:
            assert process.submit(os.getenv, "TF_ENABLE_ONEDNN_OPTS").result() == switch


def test_jax_takes_memory_as_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    with new_process() as process:
        assert process.submit(os.getenv, "XLA_PYTHON_CLIENT_PREALLOCATE").result() == "false"


def test_an_exception_comes_through() -> None:
    with pytest.raises(FileNotFoundError, match="no such place"):
        list(follow("os:stat", "no such place", poll=list))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "Graph execution error:\n\nOOM when allocating tensor with shape[64,64]\n\t [[node]]",
            "OOM when allocating tensor with shape[64,64]",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.",
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.",
        ),
        (
            "CUDNN_STATUS_INTERNAL_ERROR\nCUDA_ERROR_OUT_OF_MEMORY: no",
            "CUDA_ERROR_OUT_OF_MEMORY: no",
        ),
    ],
)
@pytest.mark.fault(
    "Kills and stops",
    "the device has too little memory",
    "one line with the settings that need less",
    simulated=True,
)
def test_a_device_without_enough_memory_is_reported_in_a_line(said: str, line: str) -> None:
    with pytest.raises(OutOfMemoryError) as error:
        list(follow("builtins:exec", f"raise RuntimeError({said!r})", poll=list))
    assert str(error.value) == f"The device has too little memory ({line}). {LESS_MEMORY}"


@pytest.mark.fault(
    "Kills and stops",
    "the GPU is lost",
    "one line: look at nvidia-smi, and run the same command again",
    simulated=True,
)
def test_a_gpu_that_fails_is_reported_in_a_line() -> None:
    line = "INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered"
    with pytest.raises(GpuError) as error:
        list(follow("builtins:exec", f"raise RuntimeError('Graph error:\\n {line}')", poll=list))
    assert str(error.value) == (
        f"The GPU failed ({line}). If nvidia-smi does not show it as usual, restart the machine. Then "
        "run the same command again to continue."
    )


@pytest.mark.fault(
    "Kills and stops",
    "the process that trains is killed, for example because memory is short",
    "one line with the settings that need less memory",
)
def test_following_a_killed_process_raises() -> None:
    with pytest.raises(OutOfMemoryError) as error:
        list(follow("signal:raise_signal", signal.SIGKILL, poll=list))
    assert str(error.value).startswith(KILLED + LESS_MEMORY)
    assert str(error.value).endswith("backend.log may say more.")


def test_the_worker_lasts_and_recovers_when_it_is_killed() -> None:
    first = run_in_worker(1, "os:getpid")
    assert run_in_worker(1, "os:getpid") == first != os.getpid()
    with pytest.raises(ZeroDivisionError):
        run_in_worker(1, "operator:truediv", 1, 0)
    assert run_in_worker(1, "os:getpid") == first
    with pytest.raises(OutOfMemoryError, match=KILLED):
        run_in_worker(1, "signal:raise_signal", signal.SIGKILL)
    assert run_in_worker(1, "os:getpid") not in (first, os.getpid())


def test_threads_that_come_at_once_share_one_worker() -> None:
    with contextlib.suppress(OutOfMemoryError):
        run_in_worker(1, "signal:raise_signal", signal.SIGKILL)
    together = threading.Barrier(8)

    def ask(_: int) -> int:
        together.wait()
        return run_in_worker(1, "os:getpid")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


@pytest.mark.fault(
    "Kills and stops",
    "the command is killed while its child computes",
    "the child ends too",
)
def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from nucleus_unet.engine.isolation import new_process\n"
        "if __name__ == '__main__':\n"
        "    process = new_process()\n"
        "    print(process.submit(os.getpid).result(), flush=True)\n"
        "    process.submit(time.sleep, 600)\n"
        "    time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    require_end(child)


def test_the_work_ends_if_its_follower_fails() -> None:
    def poll() -> list[Any]:
        raise ConnectionError("MLflow is away")

    with pytest.raises(ConnectionError, match="MLflow is away"):
        list(follow("time:sleep", 3600, poll=poll))


def test_the_work_ends_if_nobody_follows_it_any_more() -> None:
    reports = follow("time:sleep", 3600, poll=lambda: ["started"])
    assert next(reports) == "started"
    reports.close()  # returns when the process has ended, or after the hour
    assert list(reports) == []


def test_meanwhile_is_called_until_the_work_has_ended(tmp_path: Path) -> None:
    seen: list[bool] = []
    made = tmp_path / "made"
    run_in_worker(1, "os:mkdir", made, meanwhile=lambda: seen.append(made.exists()))
    assert seen[-1]
    run_in_worker(1, "time:sleep", 1, meanwhile=lambda: seen.append(True))
    assert len(seen) > 3


@pytest.mark.parametrize(("count", "moment"), [(2, 2), (3, 12)], ids=["as it starts", "later"])
def test_the_worker_does_not_outlive_the_run(count: int, moment: int) -> None:
    others = set(psutil.Process().children())
    polls: list[None] = []
    with ThreadPoolExecutor() as threads:
        with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
            sleep = ("time:sleep", 10 * LIMIT_S)
            busy = start(
                threads, run_in_worker, count, *sleep, meanwhile=lambda: polls.append(None)
            )
            while len(polls) < moment and not busy.done():
                time.sleep(0.01)
            started = set(psutil.Process().children()) - others
            raise KeyboardInterrupt
        with pytest.raises(StoppedError):
            busy.result(LIMIT_S)
    for process in started:
        require_end(process)
    with abandoned_on_error():  # another run in the same process
        assert run_in_worker(count, "os:getpid") not in {process.pid for process in started}


def test_stopped_work_is_not_reported_as_out_of_memory() -> None:
    polls: list[None] = []

    def poll() -> list[Any]:
        polls.append(None)
        return []

    with ThreadPoolExecutor() as threads:
        with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
            busy = start(threads, list, follow("time:sleep", 10 * LIMIT_S, poll=poll))
            while not polls and not busy.done():
                time.sleep(0.01)
            raise KeyboardInterrupt
        with pytest.raises(StoppedError):
            busy.result(LIMIT_S)
    with abandoned_on_error():  # another run in the same process
        assert list(follow("os:getpid", poll=list)) == []


def test_work_stops_when_its_run_is_abandoned() -> None:
    raise_if_abandoned()
    with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
        raise_if_abandoned()
        of_the_run = copy_context()
        raise KeyboardInterrupt
    with pytest.raises(StoppedError) as caught:
        of_the_run.run(raise_if_abandoned)
    assert str(caught.value) == "Stopped, because the run has failed or was stopped."
    raise_if_abandoned()  # of the next run in this process
    with abandoned_on_error():
        raise_if_abandoned()


def test_only_threads_of_the_run_stop() -> None:
    stopped: list[str] = []

    def work(name: str) -> None:
        try:
            raise_if_abandoned()
        except StoppedError:
            stopped.append(name)

    with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
        own = threading.Thread(target=copy_context().run, args=(work, "of the run"))
        raise KeyboardInterrupt
    for thread in (own, threading.Thread(target=work, args=("of another run",))):
        thread.start()
        thread.join()
    assert stopped == ["of the run"]


def test_a_run_within_a_run_stops_alone() -> None:
    with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
        with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
            inner = copy_context()
            raise KeyboardInterrupt
        with pytest.raises(StoppedError):
            inner.run(raise_if_abandoned)
        raise_if_abandoned()
        outer = copy_context()
        raise KeyboardInterrupt
    with pytest.raises(StoppedError):
        outer.run(raise_if_abandoned)


def test_a_run_within_a_run_stops_only_its_own_training() -> None:
    with abandoned_on_error():
        worker = run_in_worker(1, "os:getpid")
        with abandoned_on_error():
            assert run_in_worker(1, "os:getpid") == worker  # what it has loaded is used again
        reports = follow("time:sleep", 3, poll=lambda: ["training"])
        assert next(reports) == "training"
        with contextlib.suppress(KeyboardInterrupt), abandoned_on_error():
            raise KeyboardInterrupt
        assert set(reports) == {"training"}  # it ends without an error


def test_an_error_in_one_run_does_not_stop_another_run() -> None:
    with abandoned_on_error():
        worker = run_in_worker(1, "os:getpid")

        def fail() -> None:
            with abandoned_on_error():
                assert run_in_worker(1, "os:getpid") != worker
                raise KeyboardInterrupt

        with ThreadPoolExecutor() as threads, pytest.raises(KeyboardInterrupt):
            threads.submit(fail).result(LIMIT_S)
        assert run_in_worker(1, "os:getpid") == worker


def test_no_work_begins_in_a_run_that_has_ended(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_worker(1, "os:mkdir", tmp_path / "made", meanwhile=lambda: [1 // 0].clear())
    run_in_worker(1, "os:getpid")  # which would come after it
    assert not (tmp_path / "made").exists()
