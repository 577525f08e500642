"""Images of raw data sets, decoded once and kept as arrays on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nucleus_unet.data import prepared
from nucleus_unet.data.check import first_few
from nucleus_unet.data.provenance import images_code
from nucleus_unet.data.raw import open_raw
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.stages import Stage, is_whole
from nucleus_unet.errors import NucleusError
from tasks.reporting import progress, stage_in_home, state_of

IMAGES_INDEX = "images.json"


@task(cache_policy=NO_CACHE)
def ingest(raws: list[Path], annotated: bool) -> Any:
    """Decode the images of raw data sets that are not decoded yet; returns the `Stage`."""
    return state_of(ingest_stage(raws, annotated))


def ingest_stage(raws: list[Path], annotated: bool) -> Stage:
    """The images of raw data sets as an index over the store."""
    found = digests(raws)
    for path in raws:
        with open_raw(path) as raw:
            if raw.unread:
                get_run_logger().warning(
                    "%s: %s: not read, as no image", path, first_few(raw.unread)
                )

    def build(folder: Path) -> None:
        images = prepared.prepare_images(
            raws, home_folder(), images_code(), progress("decoding images"), annotated=annotated
        )
        prepared.write_index(folder / IMAGES_INDEX, images)
        check_unchanged(raws, found)

    return stage_in_home(
        "ingest",
        {"raws": found, "annotated": annotated},
        build,
        code=["data.prepared", __name__],
        libraries=prepared.DECODERS,
        whole=lambda folder: (
            is_whole(folder) and not prepared.damaged_entries(home_folder(), images_of(folder))
        ),
    )


def images_of(folder: Path) -> tuple[prepared.ImageEntry, ...]:
    """The entries of an ingest stage, sorted by id."""
    return prepared.read_index(folder / IMAGES_INDEX, prepared.Images).entries


def identities(entries: Sequence[prepared.Entry]) -> list[list[str]]:
    """Id of each entry, and the digest of its content and of the code and libraries that read it."""
    return [[entry.id, entry.digest] for entry in entries]


def digests(raws: list[Path]) -> list[str]:
    """Content digest of raw data sets, wherever they lie."""
    found = []
    for path in raws:
        with open_raw(path) as raw:
            found.append(raw.digest())
    return found


def check_unchanged(raws: list[Path], found: list[str]) -> None:
    """Refuse to keep under the digests of raw data sets what may have been read of others."""
    for path, before, after in zip(raws, found, digests(raws), strict=True):
        if before != after:
            raise NucleusError(f"{path}: changed while it was read: start again")
