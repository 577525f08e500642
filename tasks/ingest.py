"""Decode the images of raw data sets."""

from pathlib import Path
from typing import Literal

from prefect.logging import get_run_logger

from nucleus_unet.data import (
    DECODERS,
    damaged_entries,
    dataset_name,
    images_code,
    open_raw,
    prepare_images,
    raw_digests,
    read_images,
    reader_versions,
    require_unchanged,
    write_index,
)
from nucleus_unet.engine import Stage, damaged_files
from nucleus_unet.files import first_names
from nucleus_unet.recipe import ONLY_PLANE, OnBad, Plane
from tasks.reporting import StageResult, cached_stage, finished, progress, uncached_task

Role = Literal["training", "test", "new"]
"""What images are for. Training images must be annotated."""


@uncached_task("ingest {role} images")
def ingest(
    home: Path, raws: list[Path], role: Role, plane: Plane, on_bad: OnBad = "stop"
) -> StageResult:
    """Decode images into the home, except those that are there already."""
    stage = ingest_stage(home, raws, annotated=role == "training", plane=plane, on_bad=on_bad)
    images = read_images(stage.folder)
    if images.skipped:
        get_run_logger().warning(
            "%d images were skipped, because they cannot be read, for example %s: %s",
            *(len(images.skipped), images.skipped[0].source, images.skipped[0].reason),
        )
    said = f"read {len(images.entries):,} {role} images from {dataset_name(raws)}"
    return finished(stage, said)


def ingest_stage(
    home: Path,
    raws: list[Path],
    annotated: bool,
    plane: Plane = ONLY_PLANE,
    on_bad: OnBad = "stop",
) -> Stage:
    """The decoded images of raw data sets, as a list of entries in the store of the home."""
    digests = raw_digests(raws)
    for path in raws:
        with open_raw(path) as raw:
            if raw.unread:
                get_run_logger().warning(
                    "%s: %d files were not read, because they are not images: %s",
                    *(path, len(raw.unread), first_names(raw.unread)),
                )

    def build(folder: Path) -> None:
        report = progress("decoding images")
        code = images_code()
        images = prepare_images(
            raws, home, code, report, annotated=annotated, plane=plane, on_bad=on_bad
        )
        write_index(folder, images)
        require_unchanged(raws, digests)

    return cached_stage(
        home,
        "ingest",
        {
            "raws": digests,
            "annotated": annotated,
            "plane": plane,
            "on_bad": on_bad,
            "readers": reader_versions(),
        },
        build,
        code=["data.identity", "data.prepared", __name__],
        libraries=DECODERS,
        damage=lambda folder: (
            damaged_files(folder) or damaged_entries(home, read_images(folder).entries)
        ),
    )
