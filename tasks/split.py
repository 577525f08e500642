"""Split the images into training and validation, and find the imaging kind and slide of each."""

from pathlib import Path

from prefect.logging import get_run_logger

from nucleus_unet.data import (
    SplitImage,
    identities,
    imaging_kind,
    load_image,
    make_split,
    read_images,
    read_labels,
    read_split,
    slides_of_entries,
    split_of_all_folds,
)
from nucleus_unet.engine import Stage
from nucleus_unet.files import write_atomically
from nucleus_unet.recipe import Data
from nucleus_unet.reports import split_sheet
from tasks.reporting import StageResult, cached_stage, finished, uncached_task

SPLIT_PICTURE = "split.png"


@uncached_task("split into training and validation")
def split(images: Stage, labels: Stage, data: Data, *, all_folds: bool = False) -> StageResult:
    """Decide which images with labels the network never trains on.

    Parameters
    ----------
    all_folds : bool
        Put every image on both sides, for the model that joins the networks of all folds.
    """
    labelled, home = {entry.id for entry in read_labels(labels.folder).entries}, images.home
    entries = [entry for entry in read_images(images.folder).entries if entry.id in labelled]

    def build(folder: Path) -> None:
        slide_of = slides_of_entries(home, entries)
        kinds = {entry.id: imaging_kind(load_image(home, entry)) for entry in entries}
        rows = [
            SplitImage(
                id=entry.id,
                kind=kinds[entry.id],
                slide=slide_of[entry.id],
                source=f"{kinds[entry.id]} {entry.height}×{entry.width}",
            )
            for entry in entries
        ]
        made = split_of_all_folds(rows) if all_folds else make_split(rows, data)
        made.write(folder)
        by_id = {entry.id: entry for entry in entries}
        picture = split_sheet(made, lambda id_: load_image(home, by_id[id_]))
        write_atomically(folder / SPLIT_PICTURE, picture)

    stage = cached_stage(
        home,
        "split",
        {
            "images": identities(entries),
            "all folds": all_folds,
            "data": data.model_dump(include={"split", "validation_fraction", "fold", "split_seed"}),
        },
        build,
        code=[
            "data.prepared",
            "data.split",
            "data.slides",
            "data.kinds",
            "reports.overlays",
            __name__,
        ],
        libraries=["scikit-learn", "numpy", "opencv-python-headless", "scipy", "matplotlib"],
    )
    made = read_split(stage.folder)
    if all_folds:
        return finished(stage, f"{len(made.training):,} images in all folds")
    trained, validated = made.kinds("training"), made.kinds("validation")
    warn = get_run_logger().warning
    for kind in sorted(trained - validated) if not data.fold else ():  # another fold has them
        warn(
            "no %s image is validated, so its score stays unknown; try another data.split_seed",
            kind,
        )
    for kind in sorted(validated - trained):
        other = "" if data.fold else "; try another data.split_seed"
        warn("no %s image is trained on%s", kind, other)
    counts = f"{len(made.training):,} images to train on, {len(made.validation):,} to validate on"
    return finished(stage, counts)
