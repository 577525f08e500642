"""What a run made, beside what it is to be the same as."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nucleus_unet.data.raw import open_raw
from nucleus_unet.data.truth import read_truth
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei.scoring import instance_scores
from nucleus_unet.reports.card import markdown_table
from nucleus_unet.reports.evaluation import match_submission
from nucleus_unet.runs import records, tracking
from nucleus_unet.runs.reproduction import (
    ImageDifference,
    Record,
    compare_submissions,
    data_changes,
    run_differences,
)
from tasks.ingest import images_of
from tasks.publish import Submission, files_of
from tasks.reporting import progress

MOST_IMAGES = 20
"""That are in the report by name."""


def require_data(record: Record, context: str, images: Stage, labels: Stage | None) -> None:
    """See that a data set is that of a logged run.

    Raises
    ------
    NucleusError
        It is not; names the files.
    """
    if found := data_changes(record.data[context].files, files_of(images, labels)):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise NucleusError(
            f"the {context} data are not those of run {record.run_id}: {', '.join(found[:5])}{more}; "
            f"name those it had with --{'train' if context == 'training' else 'test'}"
        )


@dataclass(frozen=True)
class Answer:
    """Whether a reproduction made the same as the run it reproduces; if not, what differs and why."""

    run: tracking.Run
    reproduces: str
    identical: bool
    sha256: tuple[str, str]
    """Of the two submissions, the logged one first."""
    images: Sequence[ImageDifference]
    weights_equal: bool | None
    """Of the model; None where it was not trained again."""
    scores: tuple[float, float] | None
    """Of the two submissions, where the test data have masks."""
    causes: Sequence[str]
    """In what the two runs differ, the likeliest first."""

    @property
    def outcome(self) -> str:
        """``identical`` or ``different``."""
        return "identical" if self.identical else "different"


@task(cache_policy=NO_CACHE)
def compare(
    record: Record,
    submission: Submission,
    images: Stage,
    test_data: Sequence[Path],
    weights: tuple[str, str] | None,
    run: tracking.Run,
) -> Answer:
    """Compare a submission, and the digests of weights, with a logged run's; log the report."""
    logged = record.tags["submission.sha256"]
    differences: Sequence[ImageDifference] = ()
    scores = None
    if logged != submission.sha256:
        before = records.fetch_submission(record)
        sizes = {entry.id: (entry.height, entry.width) for entry in images_of(images.folder)}
        differences = compare_submissions(before, submission.path, sizes)
        scores = _scores(test_data, before, submission.path)
    answer = Answer(
        run,
        record.run_id,
        identical=logged == submission.sha256 and (weights is None or weights[0] == weights[1]),
        sha256=(logged, submission.sha256),
        images=differences,
        weights_equal=weights and weights[0] == weights[1],
        scores=scores,
        causes=run_differences(record, records.fetch_record(run.id)),
    )
    page = report(answer)
    create_markdown_artifact(page, key="reproduction", description="What was reproduced")
    tracking.log_bytes(run, "reproduction.md", page.encode())
    tracking.log_json(run, "reproduction.json", asdict(answer))
    tracking.describe(run.id, page)
    tracking.log_tags(run, {"outcome": answer.outcome})
    get_run_logger().info("%s: %s", answer.outcome, run.url)
    return answer


def report(answer: Answer) -> str:
    """The answer as a page, in markdown; ``reproduction.json`` has all of it."""
    lines = [
        f"# Reproduction of {answer.reproduces}: {answer.outcome}",
        f"submission.csv: logged {answer.sha256[0]}, made {answer.sha256[1]}.",
    ]
    if answer.weights_equal is not None:
        lines.append(f"Weights: {'identical' if answer.weights_equal else 'different'}.")
    if answer.scores:
        lines.append(f"Score {answer.scores[0]:.4f} → {answer.scores[1]:.4f}.")
    if not answer.identical:
        causes = answer.causes or ["none that the two runs logged"]
        lines.append("Likely causes, in order:\n\n" + "\n".join(f"1. {cause}" for cause in causes))
    if answer.images:
        lines.append(f"{len(answer.images)} images differ:")
        worst = answer.images[:MOST_IMAGES]
        head = ["image", "nuclei gained", "lost", "pixels changed"]
        lines.append(markdown_table(head, [(d.id, d.gained, d.lost, d.pixels) for d in worst]))
    return "\n\n".join(lines)


def _scores(test_data: Sequence[Path], *submissions: Path) -> tuple[float, float] | None:
    """Of two submissions, where every image of one data set is annotated."""
    with open_raw(test_data[0]) as raw:
        if len(test_data) > 1 or not all(sample.annotated for sample in raw.samples):
            return None
    matched = (
        match_submission(
            path, read_truth(test_data[0], home_folder(), progress("reading the truth", "files"))
        )
        for path in submissions
    )
    before, after = (instance_scores(list(matches.values())).score for matches in matched)
    return before, after
