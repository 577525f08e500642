"""How long work shows itself: a bar in a terminal, plain lines in a log, artifacts in Prefect."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed, State

from nucleus_unet.engine import stages
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.interruption import raise_if_abandoned
from nucleus_unet.engine.progress import reporter
from nucleus_unet.engine.stages import Stage
from nucleus_unet.reports import figures


def stage_in_home(
    name: str,
    inputs: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    code: Sequence[str],
    libraries: Sequence[str] = (),
    resumable: bool = False,
    whole: Callable[[Path], bool] = stages.is_whole,
) -> Stage:
    """`stages.run_stage` in our home; where it has to wait for another process it says so."""

    def wait() -> None:
        get_run_logger().warning("the same %s is under way in another process: waiting", name)

    return stages.run_stage(
        home_folder(),
        name,
        inputs,
        build,
        code=code,
        libraries=libraries,
        resumable=resumable,
        whole=whole,
        on_wait=wait,
    )


def state_of(stage: Stage) -> Stage | State[Stage]:
    """What a task returns for a stage: itself, in a state named Cached where nothing was done."""
    logger = get_run_logger()
    if stage.cached:
        logger.info("%s is there already: %s", stage.name, stage.folder)
        return Completed(name="Cached", data=stage, message=f"nothing to do: {stage.digest[:20]}")
    logger.info("%s took %.1f s: %s", stage.name, stage.seconds, stage.folder)
    return stage


def progress(what: str, unit: str = "images") -> Callable[[int, int | None], None]:
    """A callable for (done, total): moves a bar in a terminal, logs a line now and then.

    It raises `StoppedError` where the flow run has ended: by Ctrl-C, SIGTERM or a failed task.
    """
    move = reporter(what, unit, get_run_logger().info)

    def move_or_stop(done: int, total: int | None) -> None:
        raise_if_abandoned()
        move(done, total)

    return move_or_stop


def show(png: bytes, key: str, description: str) -> None:
    """Show a picture in Prefect's UI, which draws only what is at an address."""
    create_image_artifact(figures.data_uri(png), key=key, description=description)


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row with its numbers at four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
