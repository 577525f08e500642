"""Compare a reproduced submission with the logged one."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from nucleus_unet.data import read_images
from nucleus_unet.engine import Stage
from nucleus_unet.runs import (
    ImageDifference,
    Record,
    Reproduction,
    compare_submissions,
    records,
    run_differences,
    submission_scores,
    tracking,
)
from tasks.publish_submission import Submission
from tasks.reporting import progress, uncached_task


@uncached_task("compare with run {record.run_id}")
def compare(
    record: Record,
    submission: Submission,
    images: Stage,
    test_data: Sequence[Path],
    weights: tuple[str, str] | None,
    run: tracking.Run,
) -> Reproduction:
    """Compare a submission, and the digests of weights if there are any, and log the report."""
    logged = record.tags["submission.sha256"]
    differences: Sequence[ImageDifference] = ()
    scores = None
    if logged != submission.sha256:
        both = records.fetch_submission(record), submission.path
        entries = read_images(images.folder).entries
        differences = compare_submissions(*both, {e.id: (e.height, e.width) for e in entries})
        report = progress("reading the annotation", "files")
        scores = submission_scores(both, test_data, images.home, report)
    same_weights = weights and weights[0] == weights[1]
    result = Reproduction(
        run.id,
        record.run_id,
        identical=logged == submission.sha256 and same_weights is not False,
        sha256=(logged, submission.sha256),
        images=differences,
        weights_equal=same_weights,
        scores=(scores[0], scores[1]) if scores else None,
        causes=run_differences(record, records.fetch_record(run.id)),
    )
    page = result.report()
    create_markdown_artifact(page, key="reproduction", description="What was reproduced")
    tracking.log_bytes(run, "reproduction.md", page.encode())
    tracking.log_json(run, "reproduction.json", asdict(result))
    tracking.describe(run.id, page)
    tracking.log_tags(run, {"outcome": result.outcome})
    get_run_logger().info("the submission is %s", result.outcome)
    return result
