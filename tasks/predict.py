"""The network's maps of new images, a shard of images at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from nucleus_unet.data.prepared import ImageEntry
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.isolation import run_in_worker
from nucleus_unet.engine.stages import Stage
from nucleus_unet.files import sha256_file
from nucleus_unet.network.backend import device_kind
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports.evaluation import GRID
from tasks.ingest import identities, images_of
from tasks.reporting import progress, stage_in_home, state_of
from tasks.train import LIBRARIES

SHARD = 32
"""Images in a shard: what is tried again, and held on disk and in memory, as one."""


def shards(images: Stage) -> list[range]:
    """Positions of the images in shards, in the order of the index."""
    count = len(images_of(images.folder))
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


@task(cache_policy=NO_CACHE, retries=1, task_run_name="predict {shard.start}-{shard.stop}")
def predict(recipe: Recipe, network: Path, images: Stage, shard: range) -> Any:
    """Predict the maps of a shard of images; returns the `Stage`."""
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        arrays = {entry.id: entry.path(home_folder()) for entry in entries}
        write_maps(recipe, network, arrays, folder)

    return state_of(
        stage_in_home(
            "predict",
            prediction_key(recipe, network) | {"images": identities(entries)},
            build,
            code=["network.inference", __name__],
            libraries=LIBRARIES,
        )
    )


def write_maps(recipe: Recipe, network: Path, images: Mapping[str, Path], to: Path) -> list[Path]:
    """Predict prepared images, by id, and save ``<to>/<id>.npy`` each; returns these."""
    saved = [to / f"{id_}.npy" for id_ in images]
    job = (network, recipe, list(images.values()), saved)
    move = progress("predicting")
    run_in_worker(
        recipe.training.cpu_threads,
        "nucleus_unet.network.inference:predict_to_files",
        *job,
        meanwhile=lambda: move(sum(path.exists() for path in saved), len(saved)),
    )
    return saved


def prediction_key(recipe: Recipe, network: Path) -> dict[str, Any]:
    """What the maps depend on beside the images."""
    return {
        "model": sha256_file(network),
        "data": recipe.data.model_dump(include={"framing", "normalize"}),
        # But for how maps are cut.
        "inference": recipe.inference.model_dump(exclude={*GRID, "large_cutoff", "tune"}),
        "threads": recipe.training.cpu_threads,
        "device": device_kind(),
    }


def images_in(images: Stage, shard: range) -> Sequence[ImageEntry]:
    """The entries of a shard."""
    return images_of(images.folder)[shard.start : shard.stop]
