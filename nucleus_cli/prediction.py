"""Commands about nuclei: predict them, and score a submission."""

import json
from pathlib import Path

import click

from nucleus_cli.options import PATH, overrides_option, plane_options, plane_overrides
from nucleus_cli.starting import (
    command_progress,
    print_table,
    printed_submission,
    read_data,
    run_rows,
    start,
)
from nucleus_unet import data, engine, network, nuclei, reports, runs


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option(
    "--model",
    default="champion",
    metavar="champion|builtin|RUN_ID",
    help="The champion among your models (default; without one, the built-in model), the built-in "
    "model, or the model of a run.",
)
@click.option("--out", required=True, type=PATH, help="Folder for the results.")
@click.option(
    "--outlines",
    type=click.Choice(["geojson", "imagej", "coco"]),
    multiple=True,
    help="Write outlines too: geojson for QuPath, imagej for ImageJ's ROI manager, coco for COCO JSON.",
)
@plane_options
@overrides_option
def predict(
    images: tuple[Path, ...],
    model: str,
    out: Path,
    outlines: tuple["nuclei.Outlines", ...],
    channel: str | None,
    z: str | None,
    time: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Find the nuclei in IMAGES: folders, zips or image files.

    The images are flat (2-D), gray or RGB. Of a stack, choose one plane with --channel, --z and --time.

    Writes submission.csv, nuclei.csv (position, size, shape and intensity of each nucleus),
    overlays/<id>.png and labels/<id>.png (16 bit, one number for each nucleus; from 65,536 nuclei
    <id>.tif, 32 bit).
    """
    from nucleus_unet.recipe import load_recipe, require_inference

    data.require_outside(images, out)
    require_inference(overrides)
    chosen = load_recipe("best", (*plane_overrides(channel, z, time), *overrides))
    read_data(images, chosen.data.plane)
    start()
    from flows.predict import predict as flow

    run_id = runs.run_of(model)
    runs.describe_model(run_id)  # refuses an unknown run at once
    model = run_id if run_id == network.BUILTIN else model  # Prefect shows which it was
    made = flow(list(images), out, model, outlines, *chosen.data.plane, overrides=overrides)
    click.echo("\nThe prediction has finished.")
    written = {"label images": "labels", "overlays": "overlays", "overview": "overview.png"}
    written["table of nuclei"] = "nuclei.csv"
    if set(outlines) - {"coco"}:
        written["outlines"] = "outlines"
    if "coco" in outlines:
        written["outlines for COCO"] = "coco.json"
    print_table(
        [
            ("model", made.model),
            *printed_submission(made.submission),
            *((name, str(out / file)) for name, file in written.items()),
            *run_rows(made.run.id),
        ]
    )


@click.command()
@click.argument("submission", type=PATH)
@click.argument("truth", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print all scores of all images as JSON.")
def score(submission: Path, truth: Path, as_json: bool) -> None:
    """Score SUBMISSION against TRUTH like the 2018 Data Science Bowl.

    TRUTH is a data set with masks, or the solution CSV of the organisers.
    """
    progress = command_progress("reading the annotation", "files")
    labels = data.read_truth(truth, engine.home_folder(), progress)
    table = reports.scores_table(reports.match_submission(submission, labels))
    click.echo(json.dumps(table, indent=1) if as_json else reports.format_scores(table))
