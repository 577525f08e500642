"""Commands about nuclei: predict them, score a submission, suggest images to annotate."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nucleus_cli.completion import complete_model
from nucleus_cli.options import (
    PATH,
    ignore_value_option,
    overrides_option,
    plane_options,
)
from nucleus_cli.starting import (
    command_progress,
    print_columns,
    print_table,
    printed_submission,
    read_data,
    run_rows,
    start,
    using_home,
)
from nucleus_unet import data, engine, network, nuclei, reports, runs
from nucleus_unet.errors import NucleusError

if TYPE_CHECKING:
    from nucleus_unet.recipe import Plane


model_option = click.option(
    "--model",
    default="champion",
    metavar="champion|builtin|RUN_ID",
    shell_complete=complete_model,
    help="The champion among your models (default; without one, the built-in model), the built-in "
    "model, or the model of a run.",
)


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@model_option
@click.option("--out", required=True, type=PATH, help="Folder for the results.")
@click.option(
    "--outlines",
    type=click.Choice(["geojson", "imagej", "coco"]),
    multiple=True,
    help="Write outlines too: geojson for QuPath, imagej for ImageJ's ROI manager, coco for COCO JSON.",
)
@click.option(
    "--labels",
    "label_format",
    type=click.Choice(["png", "ome-tiff", "ome-zarr"]),
    default="png",
    show_default=True,
    help="Format of the label images. ome-tiff also holds the pixel size, and ome-zarr the image too.",
)
@click.option(
    "--diameter",
    "diameter_px",
    type=click.FloatRange(0, min_open=True),
    metavar="PX",
    help="Usual diameter of the nuclei in pixels. The images are then predicted at the size at which "
    "their nuclei look like those of the training. By default a first prediction finds the diameter in "
    "each image, and images with much smaller or larger nuclei are enlarged or reduced.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, 8, min_open=True),
    metavar="F",
    help="The same as a factor: 0.5 for nuclei twice as large as in the training, 1 to predict images "
    "at their own size.",
)
@click.option(
    "--pixel-size",
    "pixel_size_um",
    type=click.FloatRange(0, min_open=True),
    metavar="UM",
    help="Side of a pixel in µm, if the files do not say it, or instead of what they say.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["skip", "stop"]),
    default="skip",
    show_default=True,
    help="What to do if an image cannot be read. With skip the others are predicted, and the exit code "
    "is 1.",
)
@plane_options
@overrides_option
def predict(
    images: tuple[Path, ...],
    model: str,
    out: Path,
    outlines: tuple["nuclei.Outlines", ...],
    label_format: "nuclei.LabelFormat",
    diameter_px: float | None,
    scale: float | None,
    pixel_size_um: float | None,
    on_bad: Literal["skip", "stop"],
    plane: "Plane",
    overrides: tuple[str, ...],
) -> None:
    """Find the nuclei in IMAGES: folders, zips or image files.

    The images are flat (2-D), gray or RGB. Of a stack, choose one plane with --channel, --z and --time,
    and of a file with several images one with --scene.

    Writes submission.csv, nuclei.csv and nuclei.parquet (position, size, shape and intensity of each
    nucleus), images.csv (what became of each image), overlays/<id>.png and labels/<id>.png (16 bit, one
    number for each nucleus; from 65,536 nuclei <id>.tif, 32 bit).
    """
    from nucleus_unet.recipe import load_recipe, require_inference

    data.require_outside(images, out)
    if scale and diameter_px:
        raise NucleusError("Give --scale or --diameter, not both.")
    if scale:
        overrides = (*overrides, f"inference.scale={scale}")
    require_inference(overrides)
    nuclei.require_format(label_format)
    load_recipe("best", overrides)  # refuses bad values at once
    read_data(images, plane, on_bad=on_bad)
    start()
    from flows.predict import predict as flow

    run_id = runs.run_of(model)
    runs.describe_model(run_id)  # refuses an unknown run at once
    model = run_id if run_id == network.BUILTIN else model  # Prefect shows which it was
    made = flow(
        [*images],
        out,
        model,
        outlines,
        label_format,
        diameter_px,
        pixel_size_um,
        *plane,
        on_bad,
        overrides,
    )
    click.echo("\nThe prediction has finished.")
    written = {"label images": "labels", "overlays": "overlays", "overview": "overview.png"}
    written |= {"table of nuclei": "nuclei.csv", "the same as Parquet": "nuclei.parquet"}
    written["table of images"] = "images.csv"
    if set(outlines) - {"coco"}:
        written["outlines"] = "outlines"
    if "coco" in outlines:
        written |= {"for COCO": "coco.json", "for COCO.loadRes": "coco_results.json"}
    print_table(
        [
            ("model", made.model),
            *printed_submission(made.submission),
            *((name, str(out / file)) for name, file in written.items()),
            *run_rows(made.run.id),
        ]
    )
    _end_if_skipped(made.skipped, out)


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@model_option
@click.option("--out", required=True, type=PATH, help="Folder for the predictions.")
@click.option(
    "--n", "count", type=click.IntRange(1), default=20, show_default=True, help="Number of images."
)
@plane_options
def suggest(images: tuple[Path, ...], model: str, out: Path, count: int, plane: "Plane") -> None:
    """Suggest which of IMAGES to annotate next, the most useful first.

    Predicts the images as nucleus predict does, with a model of several folds. Its networks disagree
    most on the images that it can learn most from; images of as many slides as possible are named.
    """
    data.require_outside(images, out)
    read_data(images, plane, on_bad="skip")
    start()
    from flows.predict import predict as flow
    from nucleus_unet.runs import records

    if not records.fetch_model(runs.run_of(model))[0].training.folds:
        raise NucleusError(
            "This model is one network, so nothing says where it is unsure. Train with --folds, or name "
            "the run of such a training with --model."
        )
    channel, z, time, scene = plane
    made = flow([*images], out, model, channel=channel, z=z, time=time, scene=scene)
    uncertainty = reports.read_uncertainty(out / "images.csv")
    home = engine.home_folder()
    index = data.prepare_images(images, home, data.images_code(), plane=plane, on_bad="skip")
    slides = data.slides_of_entries(home, index.entries)
    chosen = reports.most_uncertain(uncertainty, slides, count)
    files = {entry.id: entry.source for entry in index.entries}
    click.echo()
    rows = [(f"{uncertainty[id_]:.3f}", id_, files[id_]) for id_ in chosen]
    print_columns(("uncertainty", "image", "file"), rows)
    _end_if_skipped(made.skipped, out)


@click.command()
@click.argument("submission", type=PATH)
@click.argument("truth", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print all scores of all images as JSON.")
@ignore_value_option
@plane_options
def score(
    submission: Path,
    truth: Path,
    as_json: bool,
    ignore_value: int | None,
    plane: "Plane",
) -> None:
    """Score SUBMISSION against TRUTH like the 2018 Data Science Bowl.

    TRUTH is a data set with masks, or the solution CSV of the organisers.
    """
    progress = command_progress("reading the annotation", "files")
    with using_home():
        labels = data.read_truth(truth, engine.home_folder(), progress, plane, ignore_value)
        table = reports.scores_table(reports.match_submission(submission, labels))
    click.echo(json.dumps(table, indent=1) if as_json else reports.format_scores(table))


def _end_if_skipped(skipped: int, out: Path) -> None:
    """Say how many images could not be read, and end with exit code 1 if there are any."""
    if skipped:
        click.echo(f"{skipped} of the images could not be read: see {out / 'images.csv'}")
        sys.exit(1)
