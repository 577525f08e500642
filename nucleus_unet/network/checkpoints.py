"""Checkpoints of a training: each file is complete or absent, and damaged files are skipped."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.files import sha256_bytes, write_atomically

KEPT = 2
"""Number of checkpoints that stay on disk."""
_NAME = re.compile(r"checkpoint-(\d{9})-([0-9a-f]{16})\.npz")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training.

    step
        Number of steps trained.
    arrays
        The state, by name.
    damaged
        Names of later checkpoint files that were skipped because they are damaged.
    """

    step: int
    arrays: Mapping[str, NDArray[Any]]
    damaged: tuple[str, ...]


def save_checkpoint(folder: Path, step: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a checkpoint, ``checkpoint-<step>-<digest>.npz``, and keep only the last two.

    Damaged checkpoints and incomplete files of killed writers are deleted.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    digest = sha256_bytes(content.getvalue())[:16]
    write_atomically(folder / f"checkpoint-{step:09d}-{digest}.npz", content.getvalue())
    left = [*folder.glob(".checkpoint-*"), *folder.glob("checkpoint-*.damaged")]
    for path in [*_newest_first(folder)[KEPT:], *left]:
        path.unlink()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load the latest undamaged checkpoint; without one, return step 0 and no arrays.

    A file is damaged if its bytes do not match the digest in its name. Damaged files are renamed to
    ``*.damaged`` and listed in `Checkpoint.damaged`.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        content = path.read_bytes()
        name = _NAME.fullmatch(path.name)
        assert name
        if sha256_bytes(content)[:16] == name[2]:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return Checkpoint(int(name[1]), dict(arrays), tuple(damaged))
        damaged.append(path.name)
        path.rename(path.with_suffix(".damaged"))
    return Checkpoint(0, {}, tuple(damaged))


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*") if _NAME.fullmatch(p.name)), reverse=True)
