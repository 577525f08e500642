"""Time training steps of several variants in turn, so that other load slows down all of them."""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

from nucleus_unet.engine import new_process


def step_seconds(
    step: Callable[..., float], ways: Sequence[tuple[Any, ...]], steps: int, warm_up: int
) -> dict[tuple[Any, ...], float]:
    """Measure the median duration of a step of each variant.

    Parameters
    ----------
    step : callable
        Runs one step with the values of a variant and returns its seconds.
    ways : sequence of tuple
        The variants. Variants with the same first value run in the same process; the first value
        decides the settings that are global to a process.
    steps : int
        Number of steps that count.
    warm_up : int
        Number of steps before them, which do not count because they compile.

    Returns
    -------
    dict of tuple to float
        Median seconds of a step of each variant.
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
    """Time one training step, in seconds, until its result is there."""
    start = perf_counter()
    model.train_on_batch(images, targets)  # returns the loss, so it waits for the result
    return perf_counter() - start
