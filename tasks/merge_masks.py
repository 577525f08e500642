"""One mask file a nucleus, merged into one label image an image."""

from collections import Counter
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nucleus_unet.data import prepared
from nucleus_unet.data.provenance import labels_code
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.stages import Stage, is_whole
from tasks.ingest import IMAGES_INDEX as IMAGES
from tasks.ingest import check_unchanged, digests
from tasks.reporting import progress, stage_in_home, state_of

LABELS_INDEX = "labels.json"


@task(cache_policy=NO_CACHE)
def merge_masks(raws: list[Path], images: Stage) -> Any:
    """Merge the masks that are not merged yet; returns the `Stage`, and reports what was wrong."""
    found = digests(raws)

    def build(folder: Path) -> None:
        index = prepared.read_index(images.folder / IMAGES, prepared.Images)
        labels = prepared.prepare_labels(
            raws, index, home_folder(), labels_code(), progress("merging masks")
        )
        prepared.write_index(folder / LABELS_INDEX, labels)
        check_unchanged(raws, found)

    stage = stage_in_home(
        "merge_masks",
        {"raws": found, "images": images.digest},
        build,
        code=["data.prepared", __name__],
        libraries=prepared.DECODERS,
        whole=lambda folder: (
            is_whole(folder) and not prepared.damaged_entries(home_folder(), labels_of(folder))
        ),
    )
    problems = prepared.read_index(stage.folder / LABELS_INDEX, prepared.Labels).problems
    if problems:
        kinds = Counter(problem.kind for problem in problems)
        get_run_logger().warning(
            "problems in the masks, decided by rule and listed by file in the artifact "
            "mask-problems: %s",
            ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
        )
        create_table_artifact(
            [{"problem": p.kind, "detail": p.detail, "file": p.file} for p in problems[:1000]],
            key="mask-problems",
            description=f"{len(problems)} problems in the masks (`nucleus check` lists all)",
        )
    return state_of(stage)


def dataset_of(images: Stage, labels: Stage | None) -> str:
    """Digest of a data set's ids and contents, whatever holds them."""
    return prepared.dataset_digest(
        prepared.read_index(images.folder / IMAGES, prepared.Images),
        prepared.read_index(labels.folder / LABELS_INDEX, prepared.Labels) if labels else None,
    )


def labels_of(folder: Path) -> tuple[prepared.LabelsEntry, ...]:
    """The entries of a merge_masks stage, sorted by id."""
    return prepared.read_index(folder / LABELS_INDEX, prepared.Labels).entries
