"""Merge the masks of each image, one file for each nucleus, into one label image."""

from collections import Counter
from pathlib import Path

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from nucleus_unet.data import (
    DECODERS,
    damaged_entries,
    labels_code,
    prepare_labels,
    raw_digests,
    read_images,
    read_labels,
    require_unchanged,
    write_index,
)
from nucleus_unet.engine import Stage, damaged_files
from nucleus_unet.files import first_names
from nucleus_unet.recipe import Data
from tasks.reporting import StageResult, cached_stage, finished, progress, uncached_task

MOST_ROWS = 1000
"""Largest number of problems that the table in Prefect lists."""


@uncached_task("merge masks of training images")
def merge_masks(raws: list[Path], images: Stage, data: Data) -> StageResult:
    """Merge masks into the home, except those that are there already, and report their problems."""
    digests = raw_digests(raws)

    def build(folder: Path) -> None:
        index = read_images(images.folder)
        report, rules = progress("merging masks"), (data.on_bad, data.ignore_value)
        labels = prepare_labels(raws, index, images.home, labels_code(), report, *rules)
        write_index(folder, labels)
        require_unchanged(raws, digests)

    stage = cached_stage(
        images.home,
        "merge_masks",
        {
            "raws": digests,
            "images": images.digest,
            "on_bad": data.on_bad,
            "ignore_value": data.ignore_value,
        },
        build,
        code=["data.identity", "data.prepared", __name__],
        libraries=DECODERS,
        damage=lambda folder: (
            damaged_files(folder) or damaged_entries(images.home, read_labels(folder).entries)
        ),
    )
    labels = read_labels(stage.folder)
    if problems := labels.problems:
        kinds = Counter(problem.kind for problem in problems)
        get_run_logger().warning(
            "%d problems in the masks (%s): see the table mask-problems of this run",
            len(problems),
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        )
        rows = [{"problem": p.kind, "detail": p.detail, "file": p.file} for p in problems]
        create_table_artifact(
            rows[:MOST_ROWS],
            key="mask-problems",
            description=f"{len(problems)} problems in the masks; `nucleus check` lists all of them",
        )
    if labels.skipped:
        get_run_logger().warning(
            "%d images are left out, because their annotation cannot be right: %s",
            *(len(labels.skipped), first_names([entry.id for entry in labels.skipped])),
        )
    nuclei = sum(entry.nuclei for entry in labels.entries)
    return finished(stage, f"found {nuclei:,} annotated nuclei in {len(labels.entries):,} images")
