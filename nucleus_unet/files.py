"""Atomic writing of files, digests and sizes of files, and locks."""

import contextlib
import fcntl
import hashlib
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from nucleus_unet.errors import NucleusError

LONGEST_LOG = 10_000_000
_POLL_S = 0.2


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def bytes_text(count: float) -> str:
    """A number of bytes in a readable unit.

    Examples
    --------
    >>> bytes_text(1_260_000), bytes_text(999)
    ('1.3 MB', '999 B')
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def sha256_bytes(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of the content of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_states(path: Path) -> Iterator[os.stat_result]:
    """Size and times of a file, or of each file in a folder. Files that disappear are left out."""
    below = (os.path.join(at, name) for at, _, names in os.walk(path) for name in names)
    for file in below if path.is_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):
            yield os.lstat(file)


def make_folder(folder: Path, advice: str) -> None:
    """Create a folder and its parents if they do not exist, and check that it is writable.

    Parameters
    ----------
    folder : Path
    advice : str
        What the user can do if this fails: a sentence, which ends the error message.

    Raises
    ------
    NucleusError
        If the folder cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NucleusError(f"{folder} cannot be created ({error.strerror}). {advice}") from error
    if not os.access(folder, os.W_OK):
        raise NucleusError(f"{folder} is not writable. {advice}")


@contextlib.contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Turn an `OSError` within the ``with`` block into a `NucleusError`.

    Parameters
    ----------
    path : Path
        The file that is written, for the error message.
    advice : str
        What the user can do if this fails: a sentence, which ends the error message.

    Raises
    ------
    NucleusError
        If the file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise NucleusError(f"{path} cannot be written ({error.strerror}). {advice}") from error


@contextlib.contextmanager
def new_folder(folder: Path, advice: str) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Parameters
    ----------
    folder : Path
        Must be empty or not exist.
    advice : str
        As for `writing`.

    Yields
    ------
    Path
        A temporary folder next to `folder`, which it replaces if the ``with`` block succeeds.

    Raises
    ------
    NucleusError
        If the folder is not empty or cannot be written.
    """
    with writing(folder, advice):
        if folder.exists() and any(folder.iterdir()):
            raise NucleusError(f"{folder}: the folder is not empty. {advice}")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name[:40]}.")
        )
    try:
        yield temporary
        with writing(folder, advice):
            temporary.chmod(0o755)
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_log(path: Path) -> BinaryIO:
    """Open a log to append to. One that has grown beyond `LONGEST_LOG` bytes begins again."""
    file = path.open("ab")
    if file.tell() > LONGEST_LOG:
        file.truncate(0)
    return file


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that it has either its old or its new content, even after a power failure.

    The content is written to a temporary file in the same folder, flushed to the disk and renamed.
    Missing folders are created.
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
    *,
    shared: bool = False,
) -> Iterator[None]:
    """Hold a lock within the ``with`` block; only one process at a time can hold it.

    The lock is released when the process ends, even if it is killed.

    Parameters
    ----------
    path : Path
        File of the lock. It is created and never deleted.
    on_wait : callable
        Called once if another process holds the lock. If it raises, waiting ends.
    meanwhile : callable
        Called repeatedly while waiting. If it raises, waiting ends.
    shared : bool
        Whether other processes may hold the lock too, if theirs is also shared.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w+") as file:  # NFS shares the lock of a file only if it can be read
        if not _take(file, shared):
            on_wait()
            while not _take(file, shared):
                meanwhile()
                time.sleep(_POLL_S)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock, shared or not."""
    if not path.exists():
        return False
    with path.open("w+") as file:
        return not _take(file)


def _take(file: IO[str], shared: bool = False) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
