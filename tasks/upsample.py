"""The network's maps at the images' original size."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from nucleus_unet.engine.interruption import raise_if_abandoned
from nucleus_unet.engine.stages import Stage
from nucleus_unet.nuclei import instances
from tasks.predict import images_in
from tasks.reporting import stage_in_home, state_of


@task(cache_policy=NO_CACHE, task_run_name="upsample {shard.start}-{shard.stop}")
def upsample(images: Stage, shard: range, maps: Stage) -> Any:
    """Resize the maps of a shard to the images' own sizes; returns the `Stage`."""
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        for entry in entries:
            raise_if_abandoned()
            name = f"{entry.id}.npy"
            predicted = np.load(maps.folder / name)
            if predicted.shape[:2] == (entry.height, entry.width):
                try:
                    os.link(maps.folder / name, folder / name)  # takes no more of the disk
                except OSError:  # of another user's file, or where there are no links
                    shutil.copyfile(maps.folder / name, folder / name)
            else:
                larger = instances.resize_maps(predicted, entry.height, entry.width)
                np.save(folder / name, larger)

    return state_of(
        stage_in_home(
            "upsample",
            {
                "maps": maps.digest,
                "sizes": [[entry.height, entry.width] for entry in entries],
            },
            build,
            code=["nuclei.instances", __name__],
            libraries=["opencv-python-headless"],
        )
    )
