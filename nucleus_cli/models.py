"""Commands about trained models and runs: list, promote, roll back, compare, suspect and export."""

import csv
import getpass
import os
from pathlib import Path

import click

from nucleus_cli.options import PATH
from nucleus_cli.starting import find_mlflow, print_columns, print_table
from nucleus_unet import data, network

IMAGES_SHOWN = 20
"""Largest number of images that ``diff`` lists."""


def user_name() -> str:
    """The name of the user, or the number if a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@click.command()
@click.option(
    "--last", type=click.IntRange(1), default=20, show_default=True, help="Number of runs."
)
def runs(last: int) -> None:
    """List the latest runs, with their data, score and state."""
    find_mlflow()
    from nucleus_unet.runs import listing

    print_columns(listing.RUN_COLUMNS, listing.recent_runs(last))


@click.command()
def models() -> None:
    """List the versions of the model: champion, challenger, score, and why."""
    find_mlflow()
    from nucleus_unet.runs import listing

    print_columns(listing.VERSION_COLUMNS, listing.model_versions())


why_option = click.option(
    "--why", required=True, help="The reason, which is kept with the version."
)
who_option = click.option(
    "--who", default=user_name, help="Your name, which is kept too. Default: the user."
)


@click.command()
@click.argument("version")
@why_option
@who_option
def promote(version: str, why: str, who: str) -> None:
    """Make VERSION of the registered model the champion, which nucleus predict uses."""
    find_mlflow()
    from nucleus_unet.runs import registry

    now = registry.promote_version(version, who, why)
    click.echo(f"The champion is version {now.number} of run {now.run_id}.")


@click.command()
@why_option
@who_option
def rollback(why: str, who: str) -> None:
    """Restore the previous champion."""
    find_mlflow()
    from nucleus_unet.runs import registry

    now = registry.restore_champion(who, why)
    click.echo(f"The champion is version {now.number} of run {now.run_id}.")


@click.command()
@click.argument("run_a")
@click.argument("run_b")
def diff(run_a: str, run_b: str) -> None:
    """Show in what two runs differ (recipe, data, machine, packages, source) and what each made."""
    find_mlflow()
    from nucleus_unet.runs import compare_submissions, records, run_differences, side_by_side

    a, b = (records.fetch_record(run_id) for run_id in (run_a, run_b))
    same = "Recipe, data, machine, packages and source are the same."
    for line in run_differences(a, b) or [same]:
        click.echo(line)
    click.echo()
    rows = side_by_side(a, b)
    width = max((len(left) for _, left, _ in rows), default=0)
    print_table([(name, f"{left:{width}}  {right}") for name, left, right in rows])
    if "submission.sha256" in a.tags and "submission.sha256" in b.tags:
        sizes_a, sizes_b = (
            {file["id"]: (file["height"], file["width"]) for file in record.data["test"].files}
            for record in (a, b)
        )
        either = (sizes_a | sizes_b).items()
        sizes = {id_: size for id_, size in either if sizes_a.get(id_, size) == size}
        both = records.fetch_submission(a), records.fetch_submission(b)
        different = compare_submissions(*both, sizes)
        click.echo(f"\nThe nuclei differ in {len(different)} of {len(sizes)} images.")
        for image in different[:IMAGES_SHOWN]:
            click.echo(
                f"{image.id}  {image.gained} gained, {image.lost} lost, {image.pixels} pixels changed"
            )


@click.command()
@click.argument("run_id")
@click.option(
    "--n", "count", type=click.IntRange(1), default=20, show_default=True, help="Number of nuclei."
)
def suspect(run_id: str, count: int) -> None:
    """List annotations that the model of run RUN_ID contradicts, the worst first.

    They are nuclei that it does not see, and nuclei that it sees where none is annotated, in images that
    it was not trained on: all images if it has several folds, else those of validation.
    """
    find_mlflow()
    from nucleus_unet.runs import records

    records.require_model(run_id)
    table = records.fetch_artifact(run_id, records.SUSPECTS)
    head, *rows = csv.reader(table.read_text().splitlines())
    print_columns(head, [[*map(data.plain_cell, row)] for row in rows[:count]])
    found = [(f"all {len(rows):,}", str(table))]
    if rows:
        picture = records.fetch_artifact(run_id, "pictures/validation_suspects.png")
        found.append(("pictures of the first", str(picture)))
    click.echo()
    print_table(found)


@click.command()
@click.argument("model", metavar="champion|builtin|RUN_ID")
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["onnx", "savedmodel", "bioimageio"]),
    help="ONNX, TensorFlow's SavedModel, or a package for bioimage.io.",
)
@click.option("--out", required=True, type=PATH, help="New or empty folder.")
@click.option(
    "--license",
    "licence",
    metavar="SPDX",
    help="With bioimageio: the licence under which you publish the model, such as CC-BY-4.0.",
)
@click.option(
    "--author",
    "authors",
    multiple=True,
    metavar="NAME",
    help="With bioimageio: who publishes the model. May be repeated.",
)
def export(
    model: str,
    form: "network.ExportFormat",
    out: Path,
    licence: str | None,
    authors: tuple[str, ...],
) -> None:
    """Write the network of a model for other programs.

    MODEL is the champion, the built-in model, or the model of a run. The file holds the network alone:
    images in, probability maps out. README.md describes the steps before and after it.
    """
    target = network.require_export(form, licence, authors)
    find_mlflow()
    from nucleus_unet.runs import fetch_origin, records, run_of

    run_id = run_of(model)
    origin = fetch_origin(run_id)
    recipe, trained = records.fetch_model(run_id)
    written = network.export_model(recipe, trained, origin, out, target)
    print_table([("model", origin.description), *(("written", str(path)) for path in written)])
