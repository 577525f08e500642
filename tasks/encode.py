"""Nuclei told apart, as label images and as rows of the submission."""

from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from nucleus_unet.engine.interruption import raise_if_abandoned
from nucleus_unet.engine.stages import Stage
from nucleus_unet.files import write_atomically
from nucleus_unet.nuclei import label_images, submission
from nucleus_unet.nuclei.instances import separate_nuclei
from nucleus_unet.recipe import Inference
from tasks.predict import images_in
from tasks.reporting import stage_in_home, state_of

ROWS = "rows.csv"


@task(cache_policy=NO_CACHE, task_run_name="encode {shard.start}-{shard.stop}")
def encode(images: Stage, shard: range, maps: Stage, inference: Inference) -> Any:
    """Tell the nuclei of a shard apart and encode them; returns the `Stage`.

    Its folder holds ``rows.csv``, a submission of these images alone, and a label image for each.
    """
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        rows = []
        for entry in entries:
            raise_if_abandoned()
            labels = separate_nuclei(np.load(maps.folder / f"{entry.id}.npy"), inference)
            rows += submission.submission_rows(entry.id, labels)
            suffix, content = label_images.encode_label_image(labels)
            write_atomically(folder / f"{entry.id}{suffix}", content)
        submission.write_submission(folder / ROWS, rows)

    return state_of(
        stage_in_home(
            "encode",
            {"maps": maps.digest, "inference": inference.model_dump(mode="json")},
            build,
            code=["nuclei.instances", "nuclei.submission", "nuclei.label_images", __name__],
            libraries=["numpy", "opencv-python-headless", "scikit-image", "scipy"],
        )
    )
