"""Commands about data sets: check, fetch and import."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nucleus_cli.options import PATH, ignore_value_option, plane_options
from nucleus_cli.starting import command_progress, print_table, typed_command
from nucleus_unet.files import first_names

if TYPE_CHECKING:
    from nucleus_unet.recipe import Plane


@click.command()
@click.argument("data", type=PATH)
@click.option("--against", type=PATH, help="Report images that this other data set holds too.")
@ignore_value_option
@plane_options
def check(
    data: Path,
    against: Path | None,
    ignore_value: int | None,
    plane: "Plane",
) -> None:
    """Report what a data set holds, what is wrong with it, and whether it can be used.

    The exit code is 1 if it cannot be used, and 2 if it cannot be opened.
    """
    from nucleus_unet.data import check_dataset, format_report
    from nucleus_unet.network import builtin_model

    progress = command_progress("checking", "images")
    report = check_dataset(data, progress, against, plane, ignore_value)
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


@click.command("import")
@click.argument("annotations", type=PATH)
@click.argument("images", type=PATH)
@click.option("--to", required=True, type=PATH, help="New folder for the data set.")
@click.option(
    "--category",
    "categories",
    multiple=True,
    metavar="NAME",
    help="A category of a COCO file that means nuclei. May be repeated.",
)
@plane_options
def import_(
    annotations: Path,
    images: Path,
    to: Path,
    categories: tuple[str, ...],
    plane: "Plane",
) -> None:
    """Make a data set of images and annotations of QuPath, ImageJ, COCO or cellpose.

    ANNOTATIONS is a file or a folder: GeoJSON, ImageJ ROIs (.roi or .zip), COCO JSON or cellpose's
    _seg.npy. Files have the names of their images; COCO JSON names them.
    """
    from nucleus_unet.data import format_problems
    from nucleus_unet.nuclei import import_annotations

    report = command_progress("importing", "images")
    made = import_annotations(annotations, images, to, plane, report, categories)
    if made.problems:
        click.echo("\n".join([*format_problems(made.problems), ""]))
    rows = [("images", str(made.images)), ("nuclei", str(made.nuclei))]
    rows.append(("problems", str(len(made.problems))))
    if made.left_out:
        rows.append(
            ("not annotated", f"{len(made.left_out)}, left out: {first_names(made.left_out)}")
        )
    if made.renamed:
        rows.append(
            ("renamed", f"{len(made.renamed)}, without folders: {first_names(made.renamed)}")
        )
    chosen = plane._asdict().items()
    given = [word for key, value in chosen if value for word in (f"--{key}", f"{value}")]
    check_it = f"{typed_command()} check {shlex.join([f'{to}', *given])}"
    print_table([*rows, ("to check it, type", check_it)])
