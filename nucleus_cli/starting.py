"""What commands do before a flow runs: settle the environment, read the data, start the server."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nucleus_unet import data, engine
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked

if TYPE_CHECKING:
    from nucleus_unet.recipe import OnBad, Plane


def find_mlflow() -> None:
    """Settle the environment and make sure that MLflow can be asked."""
    engine.prepare_environment()
    from nucleus_unet.runs import store

    engine.check_servers("MLFLOW_TRACKING_URI")
    store.make_database()
    store.require_mlflow()


def read_data(
    raws: Sequence[Path], plane: "Plane", *, annotated: bool = False, on_bad: "OnBad" = "stop"
) -> None:
    """Decode images into the home before any server is started, so that a bad file is found at once."""
    for path in raws:
        with data.open_raw(path, annotated=annotated):  # writes nothing if a path is wrong
            pass
    if raws:
        report = command_progress("reading images", "images")
        home, code = engine.home_folder(), data.images_code()
        with using_home():
            data.prepare_images(
                raws, home, code, report, annotated=annotated, plane=plane, on_bad=on_bad
            )


def using_home() -> AbstractContextManager[None]:
    """`engine.home_in_use` for a command that starts no flow."""
    return engine.home_in_use(lambda: click.echo("waiting until nucleus clean has ended", err=True))


def start() -> None:
    """Settle the environment and start or find the servers. Then flows may be imported."""
    engine.prepare_environment()
    click.echo("Starting Prefect and MLflow ...", err=True)
    from nucleus_cli import server

    # Two processes that make the same database at once both fail.
    with locked(engine.home_folder() / "locks" / "databases"):
        own = "PREFECT_API_URL" not in os.environ
        on_dask = os.environ.get("NUCLEUS_TASK_RUNNER") == "dask"
        if own and on_dask and "DASK_SCHEDULER_ADDRESS" in os.environ:
            raise NucleusError(
                "DASK_SCHEDULER_ADDRESS names workers on other machines, which need a Prefect server "
                "that they can reach. Start one and set PREFECT_API_URL."
            )
        if own:
            url, process = server.start_server()
            os.environ |= {"PREFECT_API_URL": url, "PREFECT_UI_URL": engine.ui_url("prefect")}
        import_module("prefect.main")  # sets up the log
        from flows import running  # takes as long as the server needs to start

        if own:
            server.wait_for(url, process, server.log_path())
        else:
            engine.check_servers("PREFECT_API_URL")
            running.require_prefect()
        find_mlflow()
        for handler in logging.getLogger().handlers:  # of the terminal
            handler.addFilter(running.without_our_errors)


def typed_command() -> Path | str:
    """The command as the user typed it, if the shell would not find it by its name."""
    typed = Path(sys.argv[0])
    return typed if typed.name == "nucleus" and not shutil.which("nucleus") else "nucleus"


def printed_submission(submission: Any) -> list[tuple[str, str]]:
    """What to print of a submission."""
    return [
        ("submission", str(submission.path)),
        ("SHA-256", submission.sha256),
        ("nuclei", f"{submission.nuclei} in {submission.images} images"),
    ]


def run_rows(run_id: str) -> list[tuple[str, str]]:
    """What to print of a run in MLflow."""
    return [("run", run_id), ("to see the run, type", f"{typed_command()} ui {run_id}")]


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Print rows of a name and a value."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"{name:{width}}  {value}")


def print_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a head, in aligned columns."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def command_progress(what: str, unit: str) -> Callable[[int, int | None], None]:
    """Progress of a command that runs no flow."""
    return engine.reporter(what, unit, lambda line: click.echo(line, err=True))
