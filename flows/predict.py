"""New images in; submission, label images and overlays out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.running import Work, prepare, task_runner, tracked
from nucleus_unet.data.raw import reads
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import make_folder
from nucleus_unet.network import backend
from nucleus_unet.nuclei.exports import Outlines
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import records, registry, tracking
from nucleus_unet.runs.registry import CHAMPION
from tasks.encode import encode
from tasks.ingest import ingest
from tasks.predict import predict as predict_shard
from tasks.predict import shards
from tasks.publish import Submission, publish_dataset, publish_nuclei, publish_submission
from tasks.upsample import upsample


@dataclass(frozen=True)
class Predicted:
    """What a prediction made, and the run of the model that made it."""

    run: tracking.Run
    model_run_id: str
    submission: Submission


@flow(flow_run_name="predict with {model}", task_runner=task_runner())
def predict(
    images: Annotated[list[Path], Field(min_length=1)],
    out: Path,
    model: str = CHAMPION,
    outlines: Sequence[Outlines] = (),
) -> Predicted:
    """Find the nuclei of images with a logged model.

    Args:
        images: Folders, zips or image files.
        out: Folder for ``submission.csv``, ``nuclei.csv``, ``labels/<id>.png`` (from 65,536 nuclei
            ``.tif``) and ``overlays/<id>.png``.
        model: MLflow run that logged the model; ``champion`` for that of the registry.
        outlines: More to write there: ``geojson`` for QuPath, ``imagej`` for its ROI manager,
            ``coco``.
    """
    made = [out / name for name in ("labels", "overlays", *["outlines"] * bool(outlines))]
    for path in images:
        folder = path if path.is_dir() else path.parent
        if reads(path, out) or folder.resolve() in [place.resolve() for place in made]:
            raise NucleusError(
                f"{out}: what is made there would be read as images of {path}, or written over them: "
                "name a folder elsewhere"
            )
    prepare()
    run_id = registry.run_of(model)
    recipe, network = records.fetch_model(run_id)
    recipe = backend.resolve(recipe)
    for place in made:
        make_folder(place, "name another folder for what is made")
    with tracked(Work("predict", recipe, images, {"model.run_id": run_id})) as run:
        prepared = ingest.submit(images, annotated=False).result()
        publish_dataset(run, "test", images, prepared)
        found = find_nuclei(recipe, network, prepared)
        submission = publish_submission(prepared, found, run, out)
        publish_nuclei(images, prepared, [stages[-1] for stages in found], outlines, out)
    return Predicted(run, run_id, submission)


def find_nuclei(recipe: Recipe, network: Path, images: Stage) -> list[list[Stage]]:
    """Predict, upsample and encode images, shard by shard; the three stages of each shard."""
    futures = []
    for shard in shards(images):
        maps = predict_shard.submit(recipe, network, images, shard)
        larger = upsample.submit(images, shard, maps)
        encoded = encode.submit(images, shard, larger, recipe.inference)
        futures.append([maps, larger, encoded])
    return [[future.result() for future in stages] for stages in futures]
