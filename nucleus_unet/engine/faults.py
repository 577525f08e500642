"""Explain errors of disks and databases to the user, whichever library reports them."""

import errno
import os
from collections.abc import Iterator

from nucleus_unet.errors import NucleusError

_AGAIN = "and run the same command again: it continues"
_ROOM, _WRITABLE = f"Free some disk space {_AGAIN}", f"Make it writable {_AGAIN}"
_FILES, _BACKUP = f"Allow more with ulimit -n {_AGAIN}", "Restore it from a backup"
_ADVICE_ABOUT_FILES = {
    os.strerror(number): advice
    for number, advice in (
        (errno.ENOSPC, _ROOM),
        (errno.EDQUOT, _ROOM),
        (errno.EROFS, _WRITABLE),
        (errno.ENFILE, _FILES),  # its text begins with that of the next one
        (errno.EMFILE, _FILES),
        (errno.EIO, "Check the disk"),
    )
}
"""What to do about an error of the operating system, by its text."""
_ADVICE_ABOUT_DATABASES = {
    "database or disk is full": _ROOM,
    "attempt to write a readonly database": _WRITABLE,
    "disk I/O error": "Check the disk",
    "database is locked": f"Wait until the program that uses it, perhaps a backup, has ended {_AGAIN}",
    "database disk image is malformed": _BACKUP,
    "file is not a database": _BACKUP,
}
"""What to do about an error of SQLite, by its text."""
_LOCKED = "database is locked"


def explained(
    error: BaseException, database: str = "A database of Prefect or MLflow"
) -> NucleusError | None:
    """Explain an error of a disk or database in one line, with advice; None if it is another error.

    Examples
    --------
    >>> explained(OSError(errno.ENOSPC, "No space left on device", "/data/map.npy"))
    NucleusError('/data/map.npy: No space left on device. Free some disk space and run the same \
command again: it continues.')
    >>> explained(RuntimeError("(sqlite3.OperationalError) database or disk is full")).args
    ('A database of Prefect or MLflow: database or disk is full. Free some disk space and run the same \
command again: it continues.',)
    >>> explained(FileNotFoundError(errno.ENOENT, "No such file or directory", "a")) is None
    True
    """
    if isinstance(error, NucleusError):
        return error
    for cause in _causes(error):
        place = (isinstance(cause, OSError) and cause.filename) or "A file"
        tables = ((place, _ADVICE_ABOUT_FILES), (database, _ADVICE_ABOUT_DATABASES))
        for where, advice in tables:
            for said in advice:
                if said in str(cause):
                    return NucleusError(f"{where}: {said}. {advice[said]}.")
    return None


def is_database_locked(error: BaseException) -> bool:
    """Whether SQLite gave up waiting for another program that uses a database."""
    return any(_LOCKED in str(cause) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that caused it, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
