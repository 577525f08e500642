"""Resize predicted maps to the original size of the images."""

import os
import shutil
from pathlib import Path

import numpy as np

from nucleus_unet.engine import Stage, raise_if_abandoned
from nucleus_unet.nuclei import SPREAD, resize_maps
from tasks.predict import Shard, images_in
from tasks.reporting import StageResult, cached_stage, finished, shard_name, uncached_task


@uncached_task(shard_name("upsample"))
def upsample(images: Stage, shard: Shard, maps: Stage) -> StageResult:
    """Resize the maps of a shard of images to the original size of each image."""
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        for entry in entries:
            raise_if_abandoned()
            (folder / entry.id).parent.mkdir(parents=True, exist_ok=True)  # an id may have folders
            shape, spread = (entry.height, entry.width), f"{entry.id}{SPREAD}"
            _resize(maps.folder / f"{entry.id}.npy", folder / f"{entry.id}.npy", shape)
            if (maps.folder / spread).exists():
                _resize(maps.folder / spread, folder / spread, shape)

    stage = cached_stage(
        images.home,
        "upsample",
        {"maps": maps.digest, "sizes": [[entry.height, entry.width] for entry in entries]},
        build,
        code=["nuclei.instances", __name__],
        libraries=["opencv-python-headless"],
    )
    return finished(stage, f"resized the maps of {len(entries)} images to their original size")


def _resize(source: Path, to: Path, shape: tuple[int, int]) -> None:
    """Resize maps to the height and width of an image."""
    predicted = np.load(source)
    if predicted.shape[:2] != shape:
        with to.open("wb") as file:  # numpy would add an ending to a name
            np.save(file, resize_maps(predicted, *shape))
        return
    try:
        os.link(source, to)  # takes no disk space
    except OSError:  # another user's file, or a file system without links
        shutil.copyfile(source, to)
