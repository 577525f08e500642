"""Files that are either whole or not there, their digests, and locks."""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from nucleus_unet.errors import NucleusError

NOT_ONE_LINE = re.compile("[\r\n\ud800-\udfff]")
"""What no name may hold that is written to text: line breaks, and lone surrogates, which are how
Python names files whose names are not UTF-8."""

_POLL_S = 0.2


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, way_out: str) -> None:
    """Make a folder and those above it, where they are absent, and see that we may write there.

    Raises
    ------
    NucleusError
        It cannot be made or written to; `way_out` is what the user is told to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NucleusError(f"{folder}: cannot be made ({error.strerror}); {way_out}") from error
    if not os.access(folder, os.W_OK):
        raise NucleusError(f"{folder}: not writable; {way_out}")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that its name never stands for half of it, not even after a power cut.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(
    path: Path,
    on_wait: Callable[[], None] = lambda: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold a lock that one process on one file system has at a time; the others wait.

    It is free again when the process ends, however it ends. Who has to wait calls `on_wait` once, and
    `meanwhile` now and then; either may raise, and ends the wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not _take(file):
            on_wait()
            while not _take(file):
                meanwhile()
                time.sleep(_POLL_S)
        yield


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
