"""The train/validation split."""

import json
from pathlib import Path
from typing import Any

from prefect import task

from nucleus_unet.dataset.sample import Sample
from nucleus_unet.files import write_atomically
from nucleus_unet.home import home
from nucleus_unet.recipe import Data
from nucleus_unet.split import random_split
from nucleus_unet.stages import Stage, run_stage
from tasks.ingest import images_of
from tasks.merge_masks import labels_of
from tasks.reporting import state_of

SPLIT = "split.json"


@task
def split(labels: Stage, data: Data) -> Any:
    """Decide which images the network never trains on; returns the `Stage`."""
    ids = [entry.id for entry in labels_of(labels.folder)]

    def build(folder: Path) -> None:
        training, validation = random_split(ids, data.validation_fraction, data.split_seed)
        sides = {"training": training, "validation": validation}
        write_atomically(folder / SPLIT, json.dumps(sides, indent=1))

    inputs = {"ids": ids, "fraction": data.validation_fraction, "seed": data.split_seed}
    return state_of(
        run_stage(home(), "split", inputs, build, code=["split"], libraries=["scikit-learn"])
    )


def samples(split: Stage, images: Stage, labels: Stage, side: str) -> list[Sample]:
    """The prepared samples of one side of the split, ``training`` or ``validation``."""
    ids = json.loads((split.folder / SPLIT).read_text())[side]
    image = {entry.id: entry.path(home()) for entry in images_of(images.folder)}
    label = {entry.id: entry.path(home()) for entry in labels_of(labels.folder)}
    return [Sample(id_, image[id_], label[id_]) for id_ in ids]
