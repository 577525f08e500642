"""Separate the nuclei, rate them, and encode them as label images and as rows of the submission."""

import json
from pathlib import Path

import numpy as np

from nucleus_unet.engine import Stage, raise_if_abandoned
from nucleus_unet.files import write_atomically
from nucleus_unet.nuclei import (
    SPREAD,
    encode_label_image,
    mean_spread,
    rated_nuclei,
    read_submission,
    submission_rows,
    write_submission,
)
from nucleus_unet.recipe import Inference
from tasks.predict import Shard, images_in
from tasks.reporting import StageResult, cached_stage, finished, shard_name, uncached_task

ROWS = "rows.csv"
"""File of a shard: a submission of its images alone."""


UNCERTAINTY = ".uncertainty"


@uncached_task(shard_name("encode"))
def encode(images: Stage, shard: Shard, maps: Stage, inference: Inference) -> StageResult:
    """Separate the nuclei of a shard of images.

    Writes `ROWS` and, for each image, a label image and the confidences of its nuclei, ``.npy``; for a
    model of several networks also the `UNCERTAINTY` of the image and then of its nuclei, as JSON.
    """
    entries = images_in(images, shard)

    def build(folder: Path) -> None:
        rows = []
        for entry in entries:
            raise_if_abandoned()
            predicted = np.load(maps.folder / f"{entry.id}.npy")
            labels, confidence = rated_nuclei(predicted, inference)
            rows += submission_rows(entry.id, labels)
            suffix, content = encode_label_image(labels)
            write_atomically(folder / f"{entry.id}{suffix}", content)
            np.save(folder / f"{entry.id}.npy", confidence)
            if (spread := maps.folder / f"{entry.id}{SPREAD}").exists():
                found = mean_spread(labels, predicted, np.load(spread)[..., 0], inference)
                write_atomically(folder / f"{entry.id}{UNCERTAINTY}", json.dumps(found))
        write_submission(folder / ROWS, rows)

    stage = cached_stage(
        images.home,
        "encode",
        {"maps": maps.digest, "inference": inference.model_dump(mode="json")},
        build,
        code=["nuclei.instances", "nuclei.submission", "nuclei.exports", __name__],
        libraries=["numpy", "opencv-python-headless", "scikit-image", "scipy"],
    )
    nuclei = sum(map(len, read_submission(stage.folder / ROWS).values()))
    return finished(stage, f"found {nuclei:,} nuclei in {len(entries)} images")
