"""Resize predicted maps to the original size of the images."""

import os
import shutil
from pathlib import Path

import numpy as np

from nucleus_unet.engine import Stage, raise_if_abandoned
from nucleus_unet.nuclei import resize_maps
from tasks.predict import Shard, images_in
from tasks.reporting import StageResult, cached_stage, finished, shard_name, uncached_task


@uncached_task(shard_name("upsample"))
def upsample(images: Stage, shard: Shard, maps: Stage) -> StageResult:
    """Resize the maps of a shard of images to the original size of each image."""
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        for entry in entries:
            raise_if_abandoned()
            name = f"{entry.id}.npy"
            predicted = np.load(maps.folder / name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)  # an id may have folders
            if predicted.shape[:2] != (entry.height, entry.width):
                np.save(folder / name, resize_maps(predicted, entry.height, entry.width))
                continue
            try:
                os.link(maps.folder / name, folder / name)  # takes no disk space
            except OSError:  # another user's file, or a file system without links
                shutil.copyfile(maps.folder / name, folder / name)

    stage = cached_stage(
        images.home,
        "upsample",
        {"maps": maps.digest, "sizes": [[entry.height, entry.width] for entry in entries]},
        build,
        code=["nuclei.instances", __name__],
        libraries=["opencv-python-headless"],
    )
    return finished(stage, f"resized the maps of {len(entries)} images to their original size")
