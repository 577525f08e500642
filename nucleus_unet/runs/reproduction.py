"""Whether two runs made the same, where they differ, and why that may be."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nucleus_unet.data import rle
from nucleus_unet.errors import NucleusError
from nucleus_unet.network.backend import SWITCHES
from nucleus_unet.nuclei.scoring import match_nuclei
from nucleus_unet.nuclei.submission import read_submission
from nucleus_unet.recipe import flatten

ARITHMETIC = (
    *("tensorflow", "jax", "jaxlib", "keras", "numpy", "opencv-python-headless", "scikit-image"),
    *("scipy", "scikit-learn", "tifffile", "imagecodecs"),
)
"""Packages that compute what is compared, those that compute most first."""


@dataclass(frozen=True)
class Record:
    """What a run logged of itself."""

    run_id: str
    recipe: Mapping[str, Any]
    """Resolved."""
    machine: Mapping[str, str]
    packages: Mapping[str, str]
    commit: str
    diff: str
    """What the working tree had beside the commit, as a patch."""
    data: Mapping[str, "LoggedDataset"]
    """By context: ``training`` and ``test``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    history: Sequence[Mapping[str, float]] = ()
    """Epochs of the training, where there was one."""


@dataclass(frozen=True)
class LoggedDataset:
    """A data set: where it was, and the digests of its files."""

    paths: Sequence[str]
    files: Sequence[Mapping[str, Any]]
    """``id``, ``height``, ``width``, ``image_sha256`` and, of training data, ``masks_sha256``."""


@dataclass(frozen=True)
class ImageDifference:
    """How the nuclei of one image differ between two submissions."""

    id: str
    gained: int
    """Nuclei of the second that have none of the first with an IoU above 0.5."""
    lost: int
    pixels: int
    """That are nucleus in one alone."""


def run_differences(a: Record, b: Record) -> list[str]:
    """In what two runs differ that can change what they made, the likeliest cause first.

    Recipe, data, the packages that compute, processor and switches, source, other packages.
    """
    recipes = _changed(flatten(dict(a.recipe)), flatten(dict(b.recipe)))
    recipes.pop("name", None)
    packages = _changed(a.packages, b.packages)
    found = [f"recipe {line}" for line in recipes.values()]
    found += [
        f"{context} data: {line}"
        for context in sorted(a.data.keys() & b.data.keys())
        for line in data_changes(a.data[context].files, b.data[context].files)
    ]
    found += [f"package {packages.pop(name)}" for name in ARITHMETIC if name in packages]
    found += [f"machine {line}" for line in _changed(a.machine, b.machine).values()]
    if a.commit != b.commit:
        found.append(f"source {a.commit[:12]} → {b.commit[:12]}")
    if a.diff != b.diff:
        found.append("source: what the working tree has beside the commit")
    return found + [f"package {line}" for line in packages.values()]


def data_changes(a: Sequence[Mapping[str, str]], b: Sequence[Mapping[str, str]]) -> list[str]:
    """Which files of a data set are missing, other, or new in the second list."""
    before, after = ({row["id"]: dict(row) for row in rows} for rows in (a, b))
    found = [f"image {id_} is missing" for id_ in before if id_ not in after]
    for id_ in before.keys() & after.keys():
        for key, what in (("image_sha256", "image"), ("masks_sha256", "masks of")):
            if before[id_].get(key) != after[id_].get(key):
                found.append(f"{what} {id_} changed")
    return sorted(found) + sorted(f"image {id_} is new" for id_ in after if id_ not in before)


def compare_submissions(
    a: Path, b: Path, sizes: Mapping[str, tuple[int, int]]
) -> list[ImageDifference]:
    """The images whose rows differ between two submissions, most changed pixels first.

    Parameters
    ----------
    a, b : Path
        Submissions of the same images.
    sizes : mapping of str to (int, int)
        Height and width of each image.
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


def side_by_side(a: Record, b: Record) -> list[tuple[str, str, str]]:
    """What two runs made, as rows of name and the two values: curves, scores, submission."""
    before, after = _made(a), _made(b)
    return [
        (key, before.get(key, "absent"), after.get(key, "absent"))
        for key in [*before, *(key for key in after if key not in before)]
    ]


def environment_script(
    record: Record, lock: Path | None, diff: Path | None, command: Sequence[str]
) -> str:
    """A shell script that runs a command in the revision, changes, packages and switches of a run.

    Parameters
    ----------
    record : Record
    lock : Path or None
        The lock that the run logged; packages that it does not name are taken by version alone.
    diff : Path or None
        What its working tree had beside the commit.
    command : sequence of str
        Arguments of ``nucleus``.
    """
    python = record.machine["python"]
    # Both go into a shell as they are, and whoever may edit the run may have set them.
    allowed = {record.commit: "[0-9a-f]{40}", python: r"\d+\.\d+\.\w+"}
    if not all(re.fullmatch(pattern, text) for text, pattern in allowed.items()):
        raise NucleusError(
            f"run {record.run_id} names no commit and no Python that could be installed: "
            f"{record.commit!r}, {python!r}"
        )
    folder = f"nucleus-{record.run_id[:8]}"
    pip = ".venv/bin/pip install --quiet --disable-pip-version-check --no-deps"
    locked = set(
        re.findall(r"^([\w.-]+)(?:\[.*\])?==", lock.read_text() if lock else "", re.MULTILINE)
    )
    installed = {_normalized(name): name for name in record.packages}
    for name in ("nucleus-unet", "pip", *map(_normalized, locked)):
        installed.pop(name, None)
    pins = [shlex.quote(f"{name}=={record.packages[name]}") for name in installed.values()]
    switches = [
        f"export {name}={shlex.quote(record.machine[name])}"
        if name in record.machine
        else f"unset {name}"
        for name in SWITCHES
        if name not in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # of the machine that it was
    ]
    lines = [
        f"# Run {record.run_id}: commit {record.commit}, Python {python}",
        # 1 would say that the submission differs.
        "set -e; trap 'exit 2' EXIT",
        f"rm -rf {folder}",
        f"git clone --quiet {shlex.quote(str(Path(__file__).parents[2]))} {folder}",
        f"cd {folder}",
        f"git checkout --quiet {record.commit}",
        *([f"git apply {shlex.quote(str(diff))}"] if diff else []),
        f"python{python.rpartition('.')[0]} -m venv .venv",
        *([f"{pip} --require-hashes --requirement {shlex.quote(str(lock))}"] if lock else []),
        *([f"{pip} {' '.join(pins)}"] if pins else []),
        f"{pip} --no-build-isolation --editable .",
        *switches,
        "trap - EXIT",
        f".venv/bin/nucleus {shlex.join(command)}",
    ]
    return "\n".join(lines)


def _normalized(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


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
    # MLflow's metrics are all floats; counts are to look whole.
    return {k: f"{round(v, 4):.10g}" if isinstance(v, float) else v for k, v in found.items()}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, str]:
    """By name what has another value: the name and both."""
    keys = [*a, *(key for key in b if key not in a)]
    pairs = {key: (a.get(key, "absent"), b.get(key, "absent")) for key in keys}
    return {key: f"{key} {x} → {y}" for key, (x, y) in pairs.items() if x != y}
