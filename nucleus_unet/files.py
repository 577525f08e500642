"""Files that are either whole or not there, their digests, and locks."""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from nucleus_unet.errors import NucleusError

NOT_ONE_LINE = re.compile("[\r\n\ud800-\udfff]")
"""What no name may hold that is written to text: line breaks, and lone surrogates, which are how
Python names files whose names are not UTF-8."""


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
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock that one process on one file system has at a time; the others wait, and say so.

    It is free again when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
