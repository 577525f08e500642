"""Whether two runs made the same, in what they differ, and what probably caused it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nucleus_unet.data import open_raw, read_truth, rle
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import first_names
from nucleus_unet.nuclei import match_nuclei, read_submission
from nucleus_unet.recipe import flatten
from nucleus_unet.reports import markdown_table, match_submission, scores_table
from nucleus_unet.runs.logged import Record

ARITHMETIC = (
    *("tensorflow", "jax", "jaxlib", "keras", "numpy", "opencv-python-headless", "scikit-image"),
    *("scipy", "scikit-learn", "tifffile", "imagecodecs"),
)
"""Packages that compute what is compared, the most important first."""
MOST_IMAGES = 20
"""Largest number of images that a report lists."""


@dataclass(frozen=True)
class ImageDifference:
    """How the nuclei of one image differ between two submissions."""

    id: str
    gained: int
    """Nuclei of the second submission that match none of the first with an IoU above 0.5."""
    lost: int
    """Nuclei of the first submission that match none of the second."""
    pixels: int
    """Pixels that are nucleus in only one of the two."""


@dataclass(frozen=True)
class Reproduction:
    """Whether a run made the same as the run that it reproduces and, if not, what differs."""

    run_id: str
    """The run that reproduced."""
    reproduces: str
    """The run that was reproduced."""
    identical: bool
    sha256: tuple[str, str]
    """Digests of the two submissions, the logged one first."""
    images: Sequence[ImageDifference]
    weights_equal: bool | None
    """None if the model was not trained again."""
    scores: tuple[float, float] | None
    """Scores of the two submissions, if the test images are annotated."""
    causes: Sequence[str]
    """In what the two runs differ, the likeliest cause first."""

    @property
    def outcome(self) -> str:
        """``identical`` or ``different``."""
        return "identical" if self.identical else "different"

    def report(self) -> str:
        """Describe the result in markdown."""
        lines = [
            f"# Reproduction of run {self.reproduces}: {self.outcome}",
            f"SHA-256 of submission.csv: {self.sha256[0]} logged, {self.sha256[1]} reproduced.",
        ]
        if self.weights_equal is not None:
            lines.append(f"Weights: {'identical' if self.weights_equal else 'different'}.")
        if self.scores:
            lines.append(f"Score: {self.scores[0]:.4f} logged, {self.scores[1]:.4f} reproduced.")
        if not self.identical:
            causes = self.causes or ["The two runs logged the same recipe, data and environment."]
            listed = "\n".join(f"1. {cause}" for cause in causes)
            lines.append(f"Likely causes, the likeliest first:\n\n{listed}")
        if self.images:
            lines.append(f"{len(self.images)} images differ:")
            head = ["image", "nuclei gained", "nuclei lost", "pixels changed"]
            rows = [(d.id, d.gained, d.lost, d.pixels) for d in self.images[:MOST_IMAGES]]
            lines.append(markdown_table(head, rows))
        return "\n\n".join(lines)


def run_differences(a: Record, b: Record) -> list[str]:
    """List the differences between two runs that can change their results, the likeliest cause first.

    The order is recipe, data, packages that compute, processor and switches, source, other packages.
    """
    recipes = _changed(flatten(dict(a.recipe)), flatten(dict(b.recipe)))
    recipes.pop("name", None)
    packages = _changed(a.packages, b.packages)
    found = [f"recipe {line}" for line in recipes.values()]
    found += [
        f"{context} data: {line}"
        for context in sorted(a.data.keys() & b.data.keys())
        for line in data_differences(a.data[context].files, b.data[context].files)
    ]
    found += [f"package {packages.pop(name)}" for name in ARITHMETIC if name in packages]
    found += [f"machine {line}" for line in _changed(a.machine, b.machine).values()]
    if a.commit != b.commit:
        found.append(f"source {a.commit[:12]} → {b.commit[:12]}")
    if a.diff != b.diff:
        found.append("source: uncommitted changes differ")
    return found + [f"package {line}" for line in packages.values()]


def data_differences(a: Sequence[Mapping[str, str]], b: Sequence[Mapping[str, str]]) -> list[str]:
    """List which images of a data set are missing from, changed in or new in the second list."""
    before, after = ({row["id"]: dict(row) for row in rows} for rows in (a, b))
    found = [f"image {id_} is missing" for id_ in before if id_ not in after]
    for id_ in before.keys() & after.keys():
        for key, what in (("image_sha256", "image"), ("masks_sha256", "masks of")):
            if before[id_].get(key) != after[id_].get(key):
                found.append(f"{what} {id_} changed")
    return sorted(found) + sorted(f"image {id_} is new" for id_ in after if id_ not in before)


def require_same_data(record: Record, context: str, files: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that a data set is the one that a run logged.

    Raises
    ------
    NucleusError
        If it differs; the message names the first files.
    """
    if found := data_differences(record.data[context].files, files):
        option = "--train" if context == "training" else "--test"
        raise NucleusError(
            f"The {context} data differ from the data of run {record.run_id}: "
            f"{first_names(found, 5)}. Give the original data with {option}."
        )


def compare_submissions(
    a: Path, b: Path, sizes: Mapping[str, tuple[int, int]]
) -> list[ImageDifference]:
    """Find the images whose rows differ between two submissions, most changed pixels first.

    Parameters
    ----------
    a, b : Path
        Submissions of the same images.
    sizes : mapping of str to (int, int)
        Image id to height and width in pixels.
    """
    first, second = read_submission(a), read_submission(b)
    found = []
    for id_, size in sizes.items():
        if first.get(id_) == second.get(id_):
            continue
        before, after = (rle.decode_rle(rows.get(id_, []), *size) for rows in (first, second))
        same = int(match_nuclei(before, after).tp[0])
        found.append(
            ImageDifference(
                id_,
                gained=int(after.max()) - same,
                lost=int(before.max()) - same,
                pixels=int(np.count_nonzero((before > 0) != (after > 0))),
            )
        )
    return sorted(found, key=lambda difference: (-difference.pixels, difference.id))


def submission_scores(
    submissions: Sequence[Path],
    data: Sequence[Path],
    store: Path,
    progress: Callable[[int, int], None],
) -> list[float] | None:
    """Score submissions on raw data; None unless it is one data set with all images annotated."""
    if len(data) > 1:
        return None
    with open_raw(data[0]) as raw:
        if not all(sample.annotated for sample in raw.samples):
            return None
    matched = (match_submission(path, read_truth(data[0], store, progress)) for path in submissions)
    return [scores_table(matches)["score"] for matches in matched]


def side_by_side(a: Record, b: Record) -> list[tuple[str, str, str]]:
    """What two runs made, as rows of a name and the two values: curves, scores, submission."""
    before, after = _made(a), _made(b)
    return [(key, before.get(key, "absent"), after.get(key, "absent")) for key in before | after]


def _made(record: Record) -> dict[str, str]:
    found: dict[str, Any] = {}
    if record.history:
        for key in ("loss", "val_loss", "mean_iou", "val_mean_iou"):
            found[f"{key} of the last epoch"] = record.history[-1][key]
        best = max(epoch["val_mean_iou"] for epoch in record.history)
        found["val_mean_iou of the best epoch"] = best
    for key in sorted(record.metrics):
        if key.startswith(("validation/", "tuned/", "submission/")):
            found[key] = record.metrics[key]
    for key in ("weights.sha256", "submission.sha256"):
        if key in record.tags:
            found[key] = record.tags[key][:16]
    # MLflow's metrics are all floats, but counts should look like whole numbers.
    return {k: f"{round(v, 4):.10g}" if isinstance(v, float) else v for k, v in found.items()}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, str]:
    """By name, each value that differs: the name and both values."""
    pairs = {key: (a.get(key, "absent"), b.get(key, "absent")) for key in {**a, **b}}
    return {key: f"{key} {x} → {y}" for key, (x, y) in pairs.items() if x != y}
