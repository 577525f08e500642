"""Commands about data sets: check and fetch."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from nucleus_cli.options import PATH, plane_options, plane_overrides
from nucleus_cli.starting import command_progress, print_table


@click.command()
@click.argument("data", type=PATH)
@click.option("--against", type=PATH, help="Report images that this other data set holds too.")
@plane_options
def check(
    data: Path, against: Path | None, channel: str | None, z: str | None, time: int | None
) -> None:
    """Report what a data set holds, what is wrong with it, and whether it can be used.

    The exit code is 1 if it cannot be used, and 2 if it cannot be opened.
    """
    from nucleus_unet.data import check_dataset, format_report
    from nucleus_unet.network import builtin_model
    from nucleus_unet.recipe import load_recipe

    plane = load_recipe("best", plane_overrides(channel, z, time)).data.plane
    report = check_dataset(data, command_progress("checking", "images"), against, plane)
    small, _, large = builtin_model().trained_on.diameters_px
    click.echo(format_report(report, (small, large)))
    sys.exit(1 if report.faults else 0)


@click.command()
@click.argument("name")
@click.option("--to", required=True, type=PATH, help="Folder for the files.")
def fetch(name: str, to: Path) -> None:
    """Download a public data set: dsb2018, the 2018 Data Science Bowl, from its publisher."""
    from nucleus_unet.data import download

    moves: dict[str, Callable[[int, int | None], None]] = {}

    def move(file: str, done: int, total: int | None) -> None:
        if file not in moves:
            moves[file] = command_progress(file, "B")
        moves[file](done, total)

    files = download.download_dataset(name, to, progress=move)
    print_table([(path.name, str(path)) for path in files])
    click.echo(download.SOURCE)
