"""The train/validation split, with the imaging kind and the slide of each image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nucleus_unet.data.kinds import KINDS, imaging_kind
from nucleus_unet.data.prepared import load_image
from nucleus_unet.data.sample import Sample
from nucleus_unet.data.slides import group_by_slide
from nucleus_unet.data.split import split_ids
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import write_atomically
from nucleus_unet.recipe import Data
from nucleus_unet.reports import figures
from nucleus_unet.runs import records
from tasks.ingest import identities, images_of
from tasks.merge_masks import labels_of
from tasks.reporting import stage_in_home, state_of

SPLIT_FILE, SPLIT_PICTURE = "split.json", "split.png"
_SHOWN = 10
"""How many slides of each kind and side are in the picture."""


@task(cache_policy=NO_CACHE)
def split(images: Stage, data: Data) -> Any:
    """Decide which images the network never trains on; returns the `Stage`."""
    entries = images_of(images.folder)

    def build(folder: Path) -> None:
        slide_of = group_by_slide(
            (e.id, e.source_sha256, load_image(home_folder(), e)) for e in entries
        )
        kinds = {entry.id: imaging_kind(load_image(home_folder(), entry)) for entry in entries}
        sides = split_ids(slide_of, data)
        rows = {
            side: [{"id": id_, "kind": kinds[id_], "slide": slide_of[id_]} for id_ in ids]
            for side, ids in zip(("training", "validation"), sides, strict=True)
        }
        write_atomically(folder / SPLIT_FILE, json.dumps(rows, indent=1))
        by_id = {entry.id: entry for entry in entries}
        picture = _split_sheet(rows, lambda id_: load_image(home_folder(), by_id[id_]))
        write_atomically(folder / SPLIT_PICTURE, picture)

    inputs = {
        "images": identities(entries),
        "data": data.model_dump(include={"split", "validation_fraction", "split_seed"}),
    }
    stage = stage_in_home(
        "split",
        inputs,
        build,
        code=["data.split", "data.slides", "data.kinds", "reports.figures", __name__],
        libraries=["scikit-learn", "numpy", "opencv-python-headless", "scipy", "matplotlib"],
    )
    sides = sides_of(stage)
    trained, validated = (
        {row["kind"] for row in sides[side]} for side in ("training", "validation")
    )
    for kind in sorted(trained ^ validated):
        get_run_logger().warning(
            "no %s image is %s: another data.split_seed may give it both",
            kind,
            "validated, its score will not be known" if kind in trained else "trained on",
        )
    return state_of(stage)


def sides_of(split: Stage) -> dict[str, list[dict[str, str]]]:
    """``training`` and ``validation``: id, kind and slide of each image."""
    sides: dict[str, list[dict[str, str]]] = json.loads((split.folder / SPLIT_FILE).read_text())
    return sides


def samples(split: Stage, images: Stage, labels: Stage, side: str) -> list[Sample]:
    """The prepared samples of one side of the split, ``training`` or ``validation``."""
    image = {entry.id: entry.path(home_folder()) for entry in images_of(images.folder)}
    label = {entry.id: entry.path(home_folder()) for entry in labels_of(labels.folder)}
    return [
        Sample(row["id"], image[row["id"]], label[row["id"]], row["kind"])
        for row in sides_of(split)[side]
    ]


def slide_of(split: Stage) -> dict[str, str]:
    """The slide of each image."""
    return {row["id"]: row["slide"] for rows in sides_of(split).values() for row in rows}


def slides_seen(split: Stage, images: Stage, run_id: str | None) -> set[str]:
    """The slides with an image that a logged model was trained on; none where there is no model."""
    slides, seen = slide_of(split), _trained_on(run_id)
    return {slides[e.id] for e in images_of(images.folder) if e.source_sha256 in seen}


def validation_seen(split: Stage, images: Stage, start_from: str | None) -> str | None:
    """What to tell the user where the model from which a training starts knows validation images."""
    try:
        known = slides_seen(split, images, start_from)
    except (NucleusError, LookupError) as error:  # of a run that is gone, or older
        return f"it is not known what of the validation images run {start_from} was trained on: {error}"
    validation = sides_of(split)["validation"]
    if not (seen := sum(row["slide"] in known for row in validation)):
        return None
    return (
        f"{seen} of {len(validation)} validation images are of slides of which run {start_from} was "
        "trained, from which this training starts: scores are flattered"
    )


def _trained_on(run_id: str | None) -> set[str]:
    """SHA-256 of the image files that a logged model was trained on, and those it started from."""
    found: set[str] = set()
    while run_id:
        record = records.fetch_record(run_id)
        sides = json.loads(records.fetch_artifact(run_id, SPLIT_FILE).read_text())
        digests = {file["id"]: file["image_sha256"] for file in record.data["training"].files}
        found |= {digests[row["id"]] for row in sides["training"]}
        run_id = record.recipe["training"]["start_from"]
    return found


def _split_sheet(
    sides: dict[str, list[dict[str, str]]], load: Callable[[str], NDArray[np.uint8]]
) -> bytes:
    """Picture of the split: by imaging kind, an image of each slide, training beside validation."""
    tiles = []
    present = {row["kind"] for rows in sides.values() for row in rows}
    for kind in (kind for kind in KINDS if kind in present):
        for side, rows in sides.items():
            one_each = {row["slide"]: row["id"] for row in rows if row["kind"] == kind}
            count = sum(row["kind"] == kind for row in rows)
            title = f"{side}: {count} images of {kind}, {len(one_each)} slides"
            shown = (load(id_) for id_ in list(one_each.values())[:_SHOWN])
            tiles.append((title, figures.strip(shown, 96)))
    return figures.contact_sheet(tiles)
