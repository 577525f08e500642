"""Keras in processes of its own: seeds, precision and threads are global to a process."""

import contextlib
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
from pathlib import Path
from typing import Any

from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.interruption import abandoned, raise_if_abandoned
from nucleus_unet.errors import NucleusError

BACKEND_LOG = "backend.log"
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OOM when allocating")
"""What JAX and TensorFlow say where a device has not enough memory."""
POLL_S = 0.5
STOP_S = 60.0
"""What is given to work that was asked to stop, before its process is killed."""

_LESS_MEMORY = "free some, or take smaller batches (training.batch_size, inference.batch_size)"
_choosing = threading.Lock()
_idle = threading.Event()  # in the process that was started
_workers: dict[int, tuple[ProcessPoolExecutor, Future[int]]] = {}  # with their process ids
_followed: set[int] = set()


def new_process() -> ProcessPoolExecutor:
    """An executor of one fresh process, which ends when the process that made it is gone."""
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), home_folder() / BACKEND_LOG),
    )


def follow(function: str, *args: Any, poll: Callable[[], list[Any]]) -> Generator[Any, None, None]:
    """Run a function in a fresh process and yield what it reports meanwhile.

    Parameters
    ----------
    function : str
        ``module:name``; this process does not import it.
    args
        What can be pickled.
    poll : callable
        Returns the reports that are new since it was last called.

    Raises
    ------
    Exception
        What the function raised; `OutOfMemoryError` where its process was killed, or its device had
        not enough memory; `StoppedError` where the run has ended.
    """
    with new_process() as process:
        pid = 0
        try:
            pid = process.submit(os.getpid).result()
            _followed.add(pid)
            raise_if_abandoned()
            yield from _reports(process.submit(_call, function, *args), pid, poll)
        except BrokenProcessPool as error:
            raise_if_abandoned()
            raise _killed() from error
        finally:
            _followed.discard(pid)


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
        if not future.done():  # who follows has failed, and would wait for hours
            _signal(pid, signal.SIGTERM)
            wait([future], timeout=STOP_S)
        if not future.done():
            _signal(pid, signal.SIGKILL)


@contextlib.contextmanager
def abandoned_on_error() -> Iterator[None]:
    """Processes that compute are asked to stop where an exception ends the block.

    A signal may come to this process alone, while other threads wait for them.
    """
    abandoned.clear()
    try:
        yield
    except BaseException:
        abandoned.set()
        for pid in list(_followed):
            _signal(pid, signal.SIGTERM)
        with _choosing:
            started = [pid for _, pid in _workers.values()]
            _workers.clear()  # for what runs in this process next, new ones are started
        for known in started:
            with contextlib.suppress(BrokenProcessPool):
                _signal(known.result(), signal.SIGTERM)
        deadline = time.monotonic() + STOP_S + POLL_S
        while _followed and time.monotonic() < deadline:  # it still saves, and is at the same work
            time.sleep(0.1)
        raise


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
        os.kill(pid, number)


def run_in_worker(
    threads: int, function: str, *args: Any, meanwhile: Callable[[], None] = lambda: None
) -> Any:
    """Run a function, ``module:name``, in a lasting process, which keeps what it has loaded.

    There is one for each number of CPU threads that Keras is to compute with, as a process cannot
    change it. Safe to call from many threads; the calls run one after another. `meanwhile` is called
    before, now and then until the function ends, and once after; where it raises, a call that has not
    begun is dropped.

    Raises
    ------
    Exception
        As of `follow`.
    """
    meanwhile()
    with _choosing:
        if threads not in _workers:
            process = new_process()
            _workers[threads] = process, process.submit(os.getpid)
        worker, _ = _workers[threads]
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
        with _choosing:
            if threads in _workers and _workers[threads][0] is worker:
                del _workers[threads]  # the next call, as of a task tried again, gets a new one
        raise _killed() from error


class OutOfMemoryError(NucleusError):
    """A process that computes had too little memory, or its device had; it may have more next time."""


def _killed() -> OutOfMemoryError:
    return OutOfMemoryError(
        f"the process that computes was killed, mostly for want of memory: {_LESS_MEMORY}, and start "
        f"again; {home_folder() / BACKEND_LOG} may say more"
    )


def _call(function: str, *args: Any) -> Any:
    _idle.clear()
    try:
        return pkgutil.resolve_name(function)(*args)
    except Exception as error:
        for line in str(error).splitlines():
            if any(text in line for text in OUT_OF_MEMORY):
                said = f"not enough memory on the device: {_LESS_MEMORY}: {line.strip()}"
                raise OutOfMemoryError(said) from error
        raise
    finally:
        _idle.set()


def _start(parent: int, log: Path) -> None:
    """Choose the backend, send its chatter to a file, and end soon after the parent's end."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # By itself TensorFlow takes these kernels on some processors alone; they train faster on others.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML numbers them
    # By itself JAX takes three quarters of a GPU in each process; one trains, another predicts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # TensorFlow's C++ part writes to descriptor 2 whatever its log level; Python's stderr stays.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    end_with(parent, STOP_S, _idle)


def end_with(parent: int, grace_s: float, idle: threading.Event | None = None) -> None:
    """See to it that this process ends soon after the one that started it.

    Parameters
    ----------
    parent : int
        Process id.
    grace_s : float
        What it has to end by itself after SIGTERM, or to become idle.
    idle : threading.Event, optional
        Set while the process has nothing to do.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # who heeds it saves what it has
        (idle or threading.Event()).wait(grace_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
