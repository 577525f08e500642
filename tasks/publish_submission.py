"""Write the submission of all images, check it and log it to MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect.logging import get_run_logger

from nucleus_unet.data import read_images
from nucleus_unet.engine import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file, writing
from nucleus_unet.nuclei import read_submission, validate_submission, write_submission
from nucleus_unet.runs import tracking
from tasks.encode import ROWS
from tasks.predict import FoundNuclei
from tasks.reporting import uncached_task

NO_SPACE = "Free some disk space, or choose another folder with NUCLEUS_HOME or --out."


@dataclass(frozen=True)
class Submission:
    """A submission that was checked and written."""

    path: Path
    sha256: str
    images: int
    nuclei: int


@uncached_task("write and log the submission")
def publish_submission(
    images: Stage, found_nuclei: Sequence[FoundNuclei], run: tracking.Run, folder: Path
) -> Submission:
    """Join the rows of all shards into ``submission.csv``.

    Parameters
    ----------
    images : Stage
        The prepared images.
    found_nuclei : sequence of FoundNuclei
        Those of each shard.
    run : Run
    folder : Path
        Where ``submission.csv`` is written.
    """
    entries = read_images(images.folder).entries
    found: dict[str, list[str]] = {}
    for one in found_nuclei:
        found |= read_submission(one.encoded.folder / ROWS)
    rows = [(entry.id, rle) for entry in entries for rle in found[entry.id] or [""]]
    path = folder / "submission.csv"
    with writing(path, NO_SPACE):
        write_submission(path, rows)
    sizes = {entry.id: (entry.height, entry.width) for entry in entries}
    if problems := validate_submission(path, sizes):
        row, image_id, what = problems[0]
        raise NucleusError(
            f"{path} is not a valid submission: row {row}, image {image_id} {what}. Please report this."
        )
    made = Submission(path, sha256_file(path), len(entries), sum(bool(rle) for _, rle in rows))
    tracking.log_files(run, "", [path])
    tracking.log_tags(run, {"submission.sha256": made.sha256})
    tracking.log_metrics(run, {"submission/images": made.images, "submission/nuclei": made.nuclei})
    seconds: dict[str, float] = {}
    for stage in (stage for one in found_nuclei for stage in (one.maps, one.larger, one.encoded)):
        seconds[f"seconds/{stage.name}"] = seconds.get(f"seconds/{stage.name}", 0) + stage.seconds
    tracking.log_metrics(run, seconds)
    get_run_logger().info("wrote %s: %d nuclei in %d images", path, made.nuclei, made.images)
    return made
