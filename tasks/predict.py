"""Predict the maps of images, a shard of images at a time."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleus_unet.data import ImageEntry, identities, read_images
from nucleus_unet.engine import RECORD, Stage, damaged_files
from nucleus_unet.network import KERAS_LIBRARIES, prediction_key, write_maps
from nucleus_unet.recipe import Recipe
from tasks.reporting import StageResult, cached_stage, finished, progress, shard_name, uncached_task

SHARD = 32
"""Images in a shard, which is retried, stored and held in memory as one."""


@dataclass(frozen=True)
class Shard:
    """Images that are predicted together, by their positions in the index."""

    positions: tuple[int, ...]
    scale: float = 1.0
    """By how much they are enlarged because of the size of their nuclei."""

    def __str__(self) -> str:
        if self.scale == 1:
            return f"images {self.positions[0] + 1}-{self.positions[-1] + 1}"
        images = "1 image" if len(self.positions) == 1 else f"{len(self.positions)} images"
        return f"{images} at {self.scale:g} times the size"


@dataclass(frozen=True)
class FoundNuclei:
    """The stages that found the nuclei of a shard."""

    shard: Shard
    maps: Stage
    larger: Stage
    """The maps at the size of the images."""
    encoded: Stage


def shards(images: Stage, scales: Mapping[str, float] | None = None) -> list[Shard]:
    """Divide images into shards, in the order of the index, and by their scales if there are any.

    Parameters
    ----------
    images : Stage
    scales : mapping of str to float, optional
        The scale of each image, by id.
    """
    by_scale: defaultdict[float, list[int]] = defaultdict(list)
    for position, entry in enumerate(read_images(images.folder).entries):
        by_scale[scales[entry.id] if scales else 1.0].append(position)
    return [
        Shard(tuple(positions[start : start + SHARD]), scale)
        for scale, positions in sorted(by_scale.items())
        for start in range(0, len(positions), SHARD)
    ]


def images_in(images: Stage, shard: Shard) -> Sequence[ImageEntry]:
    """The images of a shard."""
    entries = read_images(images.folder).entries
    return [entries[position] for position in shard.positions]


@uncached_task(shard_name("predict"), retries=1)
def predict(recipe: Recipe, network: Path, images: Stage, shard: Shard) -> StageResult:
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
