"""Predict: new images in; submission, label images, overlays and a table out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import Field, PositiveFloat, PositiveInt

from flows.running import Work, prepare, task_runner, tracked
from nucleus_unet.data import (
    TrainingImages,
    fitting_scale,
    read_images,
    require_outside,
    scale_for,
)
from nucleus_unet.engine import Stage, home_folder
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import make_folder, sha256_file
from nucleus_unet.network import resolve
from nucleus_unet.nuclei import LabelFormat, Outlines, require_format
from nucleus_unet.recipe import Depth, Recipe, require_inference
from nucleus_unet.runs import CHAMPION, records, registry, tracking
from tasks.encode import encode
from tasks.ingest import ingest
from tasks.measure import measure, read_diameters
from tasks.predict import FoundNuclei, shards
from tasks.predict import predict as predict_shard
from tasks.publish_nuclei import Output, publish_nuclei
from tasks.publish_submission import Submission, publish_submission
from tasks.reporting import stage_of
from tasks.upsample import upsample


@dataclass(frozen=True)
class Predicted:
    """What a prediction made."""

    run: tracking.Run
    model: str
    """Which model it was, in a few words."""
    submission: Submission
    skipped: int
    """Number of images that could not be read."""


@flow(flow_run_name="predict with {model}", task_runner=task_runner())
def predict(
    images: Annotated[list[Path], Field(min_length=1)],
    out: Path,
    model: str = CHAMPION,
    outlines: Sequence[Outlines] = (),
    label_format: LabelFormat = "png",
    diameter_px: PositiveFloat | None = None,
    pixel_size_um: PositiveFloat | None = None,
    channel: str | None = None,
    z: Depth | None = None,
    time: PositiveInt | None = None,
    scene: str | None = None,
    on_bad: Literal["skip", "stop"] = "skip",
    overrides: tuple[str, ...] = (),
) -> Predicted:
    """Find the nuclei in images with a trained model.

    Args:
        images: Folders, zips or image files.
        out: Folder for the results: submission.csv, nuclei.csv, images.csv, labels/ and overlays/.
        model: Id of the MLflow run that trained the model, champion, or builtin for the model that comes
            with the program. Without a champion, that is the built-in model too.
        outlines: Outlines to write in addition: geojson for QuPath, imagej for ImageJ's ROI manager,
            coco for COCO JSON.
        label_format: png; ome-tiff, which also holds the pixel size; or ome-zarr, which also holds
            the image.
        diameter_px: Usual diameter of the nuclei in these images, in pixels. The images are then
            predicted at the size at which their nuclei look like those of the training.
        pixel_size_um: Side of a pixel in µm, if the files do not say it.
        channel: If the images have several channels: the name or number, from 1.
        z: If the images have several z planes: max, middle or a number, from 1.
        time: If the images are time series: the number, from 1.
        scene: If the files hold several images (scenes, series, positions): the name or number, from 1.
        on_bad: What to do if an image cannot be read: skip it, or stop.
        overrides: Changes of the inference settings, for example inference.cutoff=0.4.
    """
    require_inference(overrides)
    require_outside(images, out)
    has_scale = any(one.startswith("inference.scale=") for one in overrides)
    if diameter_px and has_scale:
        raise NucleusError("Give a diameter or inference.scale, not both.")
    require_format(label_format)
    prepare()
    run_id, home = registry.run_of(model), home_folder()
    recipe, network = records.fetch_model(run_id)
    trained_on = records.fetch_training_images(run_id)
    if diameter_px:
        overrides = (*overrides, f"inference.scale={scale_for(diameter_px, trained_on)}")
    elif trained_on and recipe.data.framing == "crop" and not has_scale:
        overrides = ("inference.fit_scale=true", *overrides)
    chosen = {"channel": channel, "z": z, "time": time, "scene": scene, "on_bad": on_bad}
    data = recipe.data.model_copy(update=chosen)
    recipe = resolve(recipe.model_copy(update={"data": data}).with_overrides(overrides))
    said = registry.describe_model(run_id)
    drawn = ["outlines"] if {"geojson", "imagej"} & set(outlines) else []
    for name in ("labels", "overlays", *drawn):
        make_folder(out / name, "Choose another folder with --out.")
    tags = {"model.run_id": run_id, "model.sha256": sha256_file(network)}
    with tracked(Work("predict", recipe, images, tags)) as run:
        get_run_logger().info("predicting with %s", said)
        new = stage_of(ingest.submit(home, images, "new", recipe.data.plane, on_bad))
        index = read_images(new.folder)
        tracking.log_dataset(run, "test", images, index, None)
        found = find_nuclei(recipe, network, new, trained_on)
        submission = publish_submission(new, found, run, out)
        output = Output(out, outlines, label_format, pixel_size_um)
        publish_nuclei(images, new, found, recipe, trained_on, output)
    return Predicted(run, said, submission, len(index.skipped))


def find_nuclei(
    recipe: Recipe, network: Path, images: Stage, trained_on: TrainingImages | None
) -> list[FoundNuclei]:
    """Predict, upsample and encode images, shard by shard.

    Parameters
    ----------
    trained_on : TrainingImages, optional
        What the model was trained on. Needed if the recipe fits the scale of the images.
    """
    futures = []
    for shard in shards(images, _fitting_scales(recipe, network, images, trained_on)):
        scale = recipe.inference.scale * shard.scale
        inference = recipe.inference.model_copy(update={"scale": scale})
        fitted = recipe.model_copy(update={"inference": inference})
        maps = predict_shard.submit(fitted, network, images, shard)
        larger = upsample.submit(images, shard, maps)
        futures.append((shard, maps, larger, encode.submit(images, shard, larger, inference)))
    return [FoundNuclei(shard, *map(stage_of, stages)) for shard, *stages in futures]


def _fitting_scales(
    recipe: Recipe, network: Path, images: Stage, trained_on: TrainingImages | None
) -> dict[str, float] | None:
    """The scale of each image by id; None if the recipe does not fit it."""
    if not recipe.inference.fit_scale:
        return None
    if trained_on is None:
        raise NucleusError(
            "inference.fit_scale needs the size of the nuclei that the model was trained on, which its "
            "run did not log. Set it to false."
        )
    measuring = [measure.submit(recipe, network, images, shard) for shard in shards(images)]
    sizes: dict[str, list[float]] = {}
    for future in measuring:
        sizes |= read_diameters(stage_of(future))
    scales = {id_: fitting_scale(diameters, trained_on) for id_, diameters in sizes.items()}
    changed = {id_: scale for id_, scale in scales.items() if scale != 1}
    if changed:
        get_run_logger().info(
            "%d of %d images are enlarged or reduced, because their nuclei are much smaller or larger "
            "than those of the training: see the column scale of images.csv",
            *(len(changed), len(scales)),
        )
    return scales
