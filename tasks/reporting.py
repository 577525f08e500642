"""How tasks are declared and report: a line in the log, progress, tables and pictures in Prefect."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed, State

from nucleus_unet.engine import Stage, damaged_files, raise_if_abandoned, reporter, run_stage
from nucleus_unet.files import first_names
from nucleus_unet.reports import data_uri

P = ParamSpec("P")
R = TypeVar("R")
StageResult = Stage | State[Stage]
"""What a task of a stage returns: the stage, in a state named Cached if nothing had to be done."""


def uncached_task(
    run_name: str | Callable[[], str], **options: Any
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that Prefect never answers from its cache, because stages have a cache of their own."""
    return task(cache_policy=NO_CACHE, task_run_name=run_name, **options)


def cached_stage(
    home: Path,
    name: str,
    inputs: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    code: Sequence[str],
    libraries: Sequence[str] = (),
    resumable: bool = False,
    damage: Callable[[Path], Sequence[str]] = damaged_files,
) -> Stage:
    """`run_stage`, which logs if it waits for another process or rebuilds a damaged output."""
    warn = get_run_logger().warning
    return run_stage(
        home,
        name,
        inputs,
        build,
        code=code,
        libraries=libraries,
        resumable=resumable,
        damage=damage,
        on_wait=lambda: warn("waiting for another process that computes the same %s", name),
        on_damage=lambda names: warn(
            "rebuilding the result of %s, because it is damaged: %s", name, first_names(names)
        ),
    )


def finished(stage: Stage, summary: str) -> StageResult:
    """Log what a stage found, and return what its task returns."""
    logger = get_run_logger()
    if stage.cached:
        logger.info("%s (done before)", summary)
        return Completed(name="Cached", data=stage, message="nothing to do: it was done before")
    logger.info("%s in %.1f s", summary, stage.seconds)
    return stage


def stage_of(future: PrefectFuture[StageResult]) -> Stage:
    """Wait for the stage of a submitted task; raises what the task raised."""
    stage = future.result()
    assert isinstance(stage, Stage)
    return stage


def warn_of_leaks(shared: Sequence[tuple[str, str]]) -> None:
    """Report test images that the model was trained on or validated on."""
    if not shared:
        return
    get_run_logger().warning(
        "%d test images are also in the training data, so scores on them are too high: %s",
        *(len(shared), first_names([test_id for test_id, _ in shared])),
    )
    create_table_artifact(
        [{"test image": test_id, "training image": id_} for test_id, id_ in shared],
        key="leaked-images",
        description="Test images that are also in the training data",
    )


def shard_name(verb: str) -> Callable[[], str]:
    """Name task runs by what they do with which images, for example ``predict images 1-32``."""

    def name() -> str:
        return f"{verb} {task_run.parameters['shard']}"

    return name


def progress(what: str, unit: str = "images") -> Callable[[int, int | None], None]:
    """A function of (done, total) that moves a bar in a terminal, or logs a line now and then.

    It raises `StoppedError` if the run has failed or was stopped.
    """
    move = reporter(what, unit, get_run_logger().info)

    def move_or_stop(done: int, total: int | None) -> None:
        raise_if_abandoned()
        move(done, total)

    return move_or_stop


def show(png: bytes, key: str, description: str) -> None:
    """Show a picture in Prefect, whose pages draw only pictures that have an address."""
    create_image_artifact(data_uri(png), key=key, description=description)


def short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table with four digits for each number."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
