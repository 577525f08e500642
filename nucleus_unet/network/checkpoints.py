"""The state of a training on disk: whole or not there, the last two kept, damaged ones passed over."""

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
_NAME = re.compile(r"checkpoint-(\d{9})-([0-9a-f]{16})\.npz")


@dataclass(frozen=True)
class Checkpoint:
    """Named arrays, after so many steps; and the files of later steps that are damaged."""

    step: int
    arrays: Mapping[str, NDArray[Any]]
    damaged: tuple[str, ...]


def save_checkpoint(folder: Path, step: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the state after a step, as ``checkpoint-<step>-<digest>.npz``; only the last two stay.

    Damaged ones and what killed writers left are removed.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    digest = sha256_bytes(content.getvalue())[:16]
    write_atomically(folder / f"checkpoint-{step:09d}-{digest}.npz", content.getvalue())
    left = [*folder.glob(".checkpoint-*"), *folder.glob("checkpoint-*.damaged")]
    for path in [*_newest_first(folder)[KEPT:], *left]:
        path.unlink()


def load_checkpoint(folder: Path) -> Checkpoint:
    """The state after the latest step of which there is a whole file; step 0, no arrays without any.

    A file whose bytes are not those that were written is taken out of the way, and named.
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
