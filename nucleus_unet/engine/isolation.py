"""Keras in processes of its own, because seeds, precision and threads are global to a process."""

import contextlib
import functools
import logging
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.engine.switches import DEFAULTS
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import open_log

BACKEND_LOG = "backend.log"
OUT_OF_MEMORY = (
    *("RESOURCE_EXHAUSTED", "OOM when allocating", "CUDA_ERROR_OUT_OF_MEMORY"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
)
"""How JAX and TensorFlow report that a device has too little memory."""
GPU_FAILED = ("CUDA_ERROR_", "CUDNN_STATUS_", "CUBLAS_STATUS_")
"""How they report other faults of a GPU, for example one that was lost."""
POLL_S = 0.5
STOP_S = 60.0
"""Time that work has to stop by itself before its process is killed."""

_LESS_MEMORY = (
    "Free some memory, or use smaller batches (training.batch_size, inference.batch_size), and start "
    "again."
)


@dataclass(frozen=True)
class _Processes:
    """The processes that compute for one run."""

    workers: dict[int, tuple[ProcessPoolExecutor, Future[int]]] = field(default_factory=dict)
    """Lasting processes by their number of CPU threads, each with its process id."""
    followed: set[int] = field(default_factory=set)
    """Process ids of `follow`."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    failed: threading.Event = field(default_factory=threading.Event)
    """Set if the run has failed or was stopped."""


_current: ContextVar[_Processes | None] = ContextVar("processes of the run", default=None)
_idle = threading.Event()  # used in the started process


@functools.cache
def _outside_of_runs() -> _Processes:
    """The processes of calls that no `abandoned_on_error` surrounds, for example in a Dask worker."""
    return _Processes()


def _processes() -> _Processes:
    return _current.get() or _outside_of_runs()


class OutOfMemoryError(NucleusError):
    """A process or its device had too little memory. Another try may have more."""


class GpuError(NucleusError):
    """A GPU failed. Whatever is computed with it next fails too."""


def raise_if_abandoned() -> None:
    """Check, now and then, whether work in threads should go on.

    Raises
    ------
    StoppedError
        If the run that the work belongs to has failed or was stopped.
    """
    if _processes().failed.is_set():
        raise StoppedError("Stopped, because the run has failed or was stopped.")


def new_process() -> ProcessPoolExecutor:
    """An executor with one fresh process, which ends when the process that made it is gone."""
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), home_folder() / BACKEND_LOG),
    )


def follow(function: str, *args: Any, poll: Callable[[], list[Any]]) -> Generator[Any, None, None]:
    """Run a function in a fresh process and yield its reports while it runs.

    Parameters
    ----------
    function : str
        ``module:name``. This process does not import it.
    args
        Values that can be pickled.
    poll : callable
        Returns the reports that are new since its last call.

    Raises
    ------
    Exception
        What the function raised.
    OutOfMemoryError
        If the process was killed, or if its device had too little memory.
    StoppedError
        If the run has failed or was stopped.
    """
    followed = _processes().followed
    with new_process() as process:
        pid = 0
        try:
            pid = process.submit(os.getpid).result()
            followed.add(pid)
            raise_if_abandoned()
            yield from _reports(process.submit(_call, function, *args), pid, poll)
        except BrokenProcessPool as error:
            raise_if_abandoned()
            raise _killed() from error
        finally:
            followed.discard(pid)


def _reports(
    future: Future[Any], pid: int, poll: Callable[[], list[Any]]
) -> Generator[Any, None, None]:
    try:
        done = False
        while not done:
            done = future.done()
            yield from poll()
            if not done:
                time.sleep(POLL_S)
        future.result()
    finally:
        if not future.done():  # the caller has failed and would wait for hours
            _signal(pid, signal.SIGTERM)
            wait([future], timeout=STOP_S)
        if not future.done():
            _signal(pid, signal.SIGKILL)


@contextlib.contextmanager
def abandoned_on_error() -> Iterator[None]:
    """If an exception ends the block, stop the threads and processes that compute for it.

    `raise_if_abandoned` then raises in the block's threads. A signal may reach only this process, while
    other threads wait for those processes. A block that is nested in another one shares the lasting
    processes with it. Other blocks have processes of their own, so that an error in one run does not
    stop another run.
    """
    outer = _current.get()
    inner = _Processes(outer.workers, lock=outer.lock) if outer else _Processes()
    token = _current.set(inner)
    try:
        yield
    except BaseException:
        inner.failed.set()
        _stop(inner)
        raise
    finally:
        _current.reset(token)


def _stop(processes: _Processes) -> None:
    for pid in list(processes.followed):
        _signal(pid, signal.SIGTERM)
    with processes.lock:
        started = [pid for _, pid in processes.workers.values()]
        processes.workers.clear()  # what runs next in this process starts new ones
    for known in started:
        with contextlib.suppress(BrokenProcessPool):
            _signal(known.result(), signal.SIGTERM)
    deadline = time.monotonic() + STOP_S + POLL_S
    while processes.followed and time.monotonic() < deadline:  # a training saves its state
        time.sleep(0.1)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended in the meantime
        os.kill(pid, number)


def run_in_worker(
    threads: int, function: str, *args: Any, meanwhile: Callable[[], None] = lambda: None
) -> Any:
    """Run a function in a lasting process, which keeps what it has loaded for the next call.

    There is one process for each number of CPU threads, because Keras cannot change it later. Many
    threads may call this at once; the calls run one after another.

    Parameters
    ----------
    threads : int
        Number of CPU threads that Keras computes with.
    function : str
        ``module:name``. This process does not import it.
    args
        Values that can be pickled.
    meanwhile : callable
        Called before, now and then while the function runs, and once after. If it raises, a call that
        has not begun is dropped.

    Raises
    ------
    Exception
        As `follow` does.
    """
    meanwhile()
    processes = _processes()
    with processes.lock:
        if threads not in processes.workers:
            process = new_process()
            processes.workers[threads] = process, process.submit(os.getpid)
        worker, _ = processes.workers[threads]
    try:
        future: Future[Any] = worker.submit(_call, function, *args)
        try:
            while not future.done():
                meanwhile()
                wait([future], timeout=POLL_S)
        finally:
            future.cancel()
        result = future.result()
        meanwhile()
        return result
    except BrokenProcessPool as error:
        raise_if_abandoned()
        with processes.lock:
            if threads in processes.workers and processes.workers[threads][0] is worker:
                del processes.workers[threads]  # the next call, for example a retry, gets a new one
        raise _killed() from error


def _killed() -> OutOfMemoryError:
    return OutOfMemoryError(
        f"The computing process was killed, probably because memory ran out. {_LESS_MEMORY} "
        f"{home_folder() / BACKEND_LOG} may say more."
    )


def _call(function: str, *args: Any) -> Any:
    _idle.clear()
    try:
        return pkgutil.resolve_name(function)(*args)
    except Exception as error:
        if line := _line_with(OUT_OF_MEMORY, error):
            said = f"The device has too little memory ({line}). {_LESS_MEMORY}"
            raise OutOfMemoryError(said) from error
        if line := _line_with(GPU_FAILED, error):
            raise GpuError(
                f"The GPU failed ({line}). If nvidia-smi does not show it as usual, restart the "
                "machine. Then run the same command again to continue."
            ) from error
        raise
    finally:
        _idle.set()


def _line_with(texts: tuple[str, ...], error: Exception) -> str | None:
    """The first line of an error that has one of these texts."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if any(text in line for text in texts)), None)


def _start(parent: int, log: Path) -> None:
    """Set the defaults of the environment, send the backend's messages to a log, watch the parent."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which NVML counts
    # JAX would take three quarters of a GPU in each process, but one trains while another predicts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # TensorFlow's C++ part writes to descriptor 2 at any log level. Python's stderr stays as it is.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    # It warns of retracing as soon as a process predicts with several models.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with open_log(log) as file:
        os.dup2(file.fileno(), 2)
    end_with(parent, STOP_S, _idle)


def end_with(parent: int, grace_s: float, idle: threading.Event | None = None) -> None:
    """Make this process end soon after the process that started it.

    Parameters
    ----------
    parent : int
        Process id of the process that started this one.
    grace_s : float
        Seconds that this process has, after SIGTERM, to end by itself or to become idle.
    idle : threading.Event, optional
        Set while this process has nothing to do.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # a training saves its state
        (idle or threading.Event()).wait(grace_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
