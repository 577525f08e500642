"""Probabilities at the images' original size."""

from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from nucleus_unet import instances
from nucleus_unet.home import home
from nucleus_unet.stages import Stage, run_stage
from tasks.predict import images_in
from tasks.reporting import state_of


@task(task_run_name="upsample {shard.start}-{shard.stop}")
def upsample(images: Stage, shard: range, probabilities: Stage) -> Any:
    """Resize the probabilities of a shard to the images' own sizes; returns the `Stage`."""
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        for entry in entries:
            probability = np.load(probabilities.folder / f"{entry.id}.npy")
            larger = instances.upsample(probability, entry.height, entry.width)
            np.save(folder / f"{entry.id}.npy", larger)

    return state_of(
        run_stage(
            home(),
            "upsample",
            {
                "probabilities": probabilities.digest,
                "sizes": [[entry.height, entry.width] for entry in entries],
            },
            build,
            code=["instances"],
            libraries=["opencv-python-headless"],
        )
    )
