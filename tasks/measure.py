"""Find the usual size of the nuclei of each image, in a quick first prediction."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nucleus_unet.data import identities
from nucleus_unet.engine import Stage
from nucleus_unet.files import write_atomically
from nucleus_unet.network import KERAS_LIBRARIES, prediction_key, write_maps
from nucleus_unet.nuclei import separate_nuclei
from nucleus_unet.recipe import Recipe
from tasks.predict import Shard, images_in
from tasks.reporting import StageResult, cached_stage, finished, progress, shard_name, uncached_task

DIAMETERS = "diameters.json"
FIRST_SCALES = (1.0, 0.5, 0.25)
"""Nuclei of up to 150 px are found at one of these."""


def read_diameters(stage: Stage) -> dict[str, list[float]]:
    """The diameters of the nuclei of each image in pixels, by its id."""
    found: dict[str, list[float]] = json.loads((stage.folder / DIAMETERS).read_text())
    return found


@uncached_task(shard_name("measure nuclei of"), retries=1)
def measure(recipe: Recipe, network: Path, images: Stage, shard: Shard) -> StageResult:
    """Predict a shard of images once, and note the diameters of the nuclei of each image."""
    entries = images_in(images, shard)
    quick = {"scales": FIRST_SCALES, "flips": False, "scale": 1.0}
    first = recipe.model_copy(update={"inference": recipe.inference.model_copy(update=quick)})

    def build(folder: Path) -> None:
        arrays = {entry.id: entry.path(images.home) for entry in entries}
        diameters = {}
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as maps:
            saved = write_maps(first, network, arrays, Path(maps), progress("measuring"))
            for entry, path in zip(entries, saved, strict=True):
                areas = np.bincount(separate_nuclei(np.load(path), first.inference).ravel())[1:]
                diameters[entry.id] = (2 * np.sqrt(areas / np.pi)).round(2).tolist()
        write_atomically(folder / DIAMETERS, json.dumps(diameters))

    stage = cached_stage(
        images.home,
        "measure",
        prediction_key(first, network)
        | {
            "images": identities(entries),
            "inference": first.inference.model_dump(mode="json"),
        },
        build,
        code=["network.prediction", "nuclei.instances", __name__],
        libraries=[*KERAS_LIBRARIES, "scikit-image", "scipy"],
    )
    return finished(stage, f"measured the nuclei of {len(entries)} images")
