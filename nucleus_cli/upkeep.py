"""Commands about the home and the machine: clean, backup and doctor."""

import contextlib
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import click

from nucleus_cli.options import PATH
from nucleus_cli.starting import command_progress, find_mlflow, print_columns, print_table
from nucleus_unet import engine
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import bytes_text, file_states, is_locked


@click.command()
@click.option("--yes", is_flag=True, help="Remove what the table lists. Without it, only print it.")
@click.option(
    "--unfinished",
    "unfinished_days",
    type=click.FloatRange(0),
    metavar="DAYS",
    default=30,
    show_default=True,
    help="Remove unfinished trainings and reproductions that did not change for so many days.",
)
def clean(yes: bool, unfinished_days: float) -> None:
    """Free disk space: list what can be made again, and with --yes remove it.

    Runs, models, pictures and submissions stay, and so does everything that a logged run needs to be
    reproduced.
    """
    find_mlflow()
    from nucleus_unet.runs import cleaning

    home = engine.home_folder()
    with engine.home_unused() if yes else contextlib.nullcontext():
        click.echo("Comparing with MLflow and with the raw data ...", err=True)
        logged = cleaning.read_logged(
            home, lambda path: command_progress(f"reading {path.name}", "images")
        )
        found = cleaning.take_inventory(home, logged, unfinished_days)
        free = [one for one in found if not one.keep]
        if yes:
            free = cleaning.remove_stored(free)
    head = "freed" if yes else "can be freed"
    rows = [(one.kind, one.size_bytes, one.again) for one in free]
    print_columns((head, "number", "size", "made again by"), _counted(rows, total=True))
    if kept := [(one.kind, one.size_bytes, one.keep) for one in found if one.keep]:
        click.echo()
        print_columns(("kept", "number", "size", "because"), _counted(kept))
    if free and not yes:
        busy = is_locked(engine.use_lock())
        wait = "when no command or flow run uses the home" if busy else "to free the space"
        click.echo(f"\nNothing was removed. Type nucleus clean --yes {wait}.")


@click.command()
@click.argument("to", type=PATH)
def backup(to: Path) -> None:
    """Copy the home to the new folder TO, also while commands and flow runs use the home.

    The copy has all runs, models, submissions and decoded images. To use it, set NUCLEUS_HOME to it, or
    move it to where the home was.
    """
    find_mlflow()
    engine.back_up_home(to)
    size = sum(state.st_size for state in file_states(to))
    click.echo(f"{to}: a copy of {engine.home_folder()}, {bytes_text(size)}")


@click.command()
@click.option("--quick", is_flag=True, help="Do not measure how fast training and prediction are.")
def doctor(quick: bool) -> None:
    """Show versions, processor, GPU, disk and servers, and what is wrong or slow and why.

    Trains for a few steps and predicts an image, which takes about 20 seconds on two cores. The exit
    code is 1 if something does not work at all.
    """
    from nucleus_unet.network import resolve
    from nucleus_unet.network.speed import measure_speed
    from nucleus_unet.recipe import load_recipe
    from nucleus_unet.runs import diagnosis

    failed = diagnosis.failed_checks()
    rows, said = diagnosis.software_rows(failed), list[str]()
    if "home" not in failed:
        found, recipe = diagnosis.read_resources(engine.home_folder()), load_recipe("best")
        rows += diagnosis.home_rows(found, failed)
        speed = None
        if not quick and "backend" not in failed:
            click.echo("Measuring the speed ...", err=True)
            try:
                speed = measure_speed(resolve(recipe))
            except NucleusError as error:
                failed["speed"] = str(error)
        said = diagnosis.findings(found, speed, recipe)
    print_table(rows)
    lines = [f"- {one}" for one in (*failed.values(), *said)]
    click.echo("\n" + "\n".join(lines or ["Nothing is wrong."]))
    sys.exit(1 if failed else 0)


def _counted(rows: Iterable[tuple[str, int, str]], total: bool = False) -> list[tuple[str, ...]]:
    """Rows of a kind, how many there are, their size and a remark; one for each kind and remark."""
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))
    found: list[tuple[str, ...]] = []
    for (kind, remark), group in groupby(ordered, key=lambda row: (row[0], row[2])):
        sizes = [size for _, size, _ in group]
        found.append((kind, f"{len(sizes):,}", bytes_text(sum(sizes)), remark))
    if total:
        size = bytes_text(sum(size for _, size, _ in ordered))
        found.append(("total", f"{len(ordered):,}", size, ""))
    return found
