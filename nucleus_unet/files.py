"""Files that are either whole or not there, their digests, and locks."""

import contextlib
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from nucleus_unet.errors import NucleusError

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no name may hold that is written to text: line breaks, what a terminal takes for a command,
and lone surrogates, which are how Python names files whose names are not UTF-8."""

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


@contextlib.contextmanager
def writing(place: Path, way_out: str) -> Iterator[None]:
    """Within the block what the disk refuses is told in a line, with what the user can do.

    Raises
    ------
    NucleusError
        A file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise NucleusError(f"{place}: cannot be written ({error.strerror}): {way_out}") from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that its name never stands for half of it, not even after a power cut.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
