"""Predict the maps of images, a shard of images at a time."""

from collections.abc import Sequence
from pathlib import Path

from nucleus_unet.data import ImageEntry, identities, read_images
from nucleus_unet.engine import RECORD, Stage, damaged_files
from nucleus_unet.network import KERAS_LIBRARIES, prediction_key, write_maps
from nucleus_unet.recipe import Recipe
from tasks.reporting import StageResult, cached_stage, finished, progress, shard_name, uncached_task

SHARD = 32
"""Images in a shard, which is retried, stored and held in memory as one."""


def shards(images: Stage) -> list[range]:
    """Positions of the images in shards, in the order of the index."""
    count = len(read_images(images.folder).entries)
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


def images_in(images: Stage, shard: range) -> Sequence[ImageEntry]:
    """The images of a shard."""
    return read_images(images.folder).entries[shard.start : shard.stop]


@uncached_task(shard_name("predict"), retries=1)
def predict(recipe: Recipe, network: Path, images: Stage, shard: range) -> StageResult:
    """Predict the maps of a shard of images."""
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        arrays = {entry.id: entry.path(images.home) for entry in entries}
        write_maps(recipe, network, arrays, folder, progress("predicting"))

    stage = cached_stage(
        images.home,
        "predict",
        prediction_key(recipe, network) | {"images": identities(entries)},
        build,
        code=["network.prediction", __name__],
        libraries=KERAS_LIBRARIES,
        resumable=True,
        damage=damage,
    )
    return finished(stage, f"predicted {len(entries)} images")


def damage(folder: Path) -> list[str]:
    """Damaged files; without a record nothing says which maps are whole."""
    found = damaged_files(folder)
    if RECORD not in found:
        return found
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
