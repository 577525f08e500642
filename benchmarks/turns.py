"""Training steps of several ways, one of each in turn, so that what else the machine does hits all."""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

from nucleus_unet.engine.isolation import new_process


def step_seconds(
    step: Callable[..., float], ways: Sequence[tuple[Any, ...]], steps: int, warm_up: int
) -> dict[tuple[Any, ...], float]:
    """Median seconds of a step of each way.

    Parameters
    ----------
    step : callable
        Called with a way's words; its seconds. Ways of the same first word, which sets what is global
        to a process, run in one process.
    steps, warm_up : int
        Steps that count, and those before them that do not: they compile.
    """
    processes = {way[0]: new_process() for way in ways}
    seconds: dict[tuple[Any, ...], list[float]] = {way: [] for way in ways}
    try:
        for _ in range(warm_up + steps):
            for way in ways:
                seconds[way].append(processes[way[0]].submit(step, *way).result())
    finally:
        for process in processes.values():
            process.shutdown()
    return {way: median(times[warm_up:]) for way, times in seconds.items()}


def timed(model: Any, images: Any, targets: Any) -> float:
    """Seconds of one step, with its result."""
    start = perf_counter()
    model.train_on_batch(images, targets)  # returns the loss, and so waits for it
    return perf_counter() - start
