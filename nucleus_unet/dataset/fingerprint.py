"""Whether raw data changed since they were last looked at, without reading them."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nucleus_unet.files import sha256_bytes


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over the name, size and time of change of every file of raw data sets.

    Of a million files it takes seconds. Equal fingerprints mean that nothing was written meanwhile;
    copied or touched files have another one although their content is the same. What is not there
    counts as absent.

    Parameters
    ----------
    paths : iterable of Path
        Folders, zips or image files.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    found = [[str(path.absolute()), sorted(_files(path))] for path in paths]
    return sha256_bytes(json.dumps(found).encode())


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    if path.is_dir():
        for entry in os.scandir(path):
            if entry.is_dir():
                for name, size, time_ns in _files(Path(entry.path)):
                    yield f"{entry.name}/{name}", size, time_ns
            else:
                with contextlib.suppress(FileNotFoundError):  # a link to nowhere, or just removed
                    yield entry.name, entry.stat().st_size, entry.stat().st_mtime_ns
    elif path.exists():
        yield "", path.stat().st_size, path.stat().st_mtime_ns
