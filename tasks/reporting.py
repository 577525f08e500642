"""How long work shows itself: a bar in a terminal, plain lines in a log, artifacts in Prefect."""

import sys
import time
from collections.abc import Callable
from typing import Any

from prefect.logging import get_run_logger
from prefect.states import Completed, State
from tqdm import tqdm

from nucleus_unet.stages import Stage

LINE_EVERY_S = 15.0


def state_of(stage: Stage) -> Stage | State[Stage]:
    """What a task returns for a stage: itself, in a state named Cached where nothing was done."""
    logger = get_run_logger()
    if stage.cached:
        logger.info("%s is there already: %s", stage.name, stage.folder)
        return Completed(name="Cached", data=stage, message=f"nothing to do: {stage.digest[:20]}")
    logger.info("%s took %.1f s: %s", stage.name, stage.seconds, stage.folder)
    return stage


def progress(what: str, unit: str = "image") -> Callable[[int, int], None]:
    """A callable for (done, total): moves a bar in a terminal, logs a line now and then elsewhere."""
    if sys.stderr.isatty():
        bar = tqdm(desc=what, unit=unit, leave=False)

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        return move
    logger, last = get_run_logger(), time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            logger.info("%s: %d of %d", what, done, total)

    return line


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row with its numbers at four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
