"""Faults of disks and databases that a user can mend, whatever library they come through."""

import errno
import os
from collections.abc import Iterator

from nucleus_unet.errors import NucleusError

_AGAIN = "and run the same command again: it continues"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"Free some disk space {_AGAIN}"),
    errno.EROFS: f"Make it writable {_AGAIN}",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"Allow more with ulimit -n {_AGAIN}"),
    errno.EIO: "Check the disk",
}
"""What to do about an error of the operating system."""
_OF_SQLITE = {
    "database or disk is full": _ADVICE[errno.ENOSPC],
    "attempt to write a readonly database": _ADVICE[errno.EROFS],
    "disk I/O error": _ADVICE[errno.EIO],
    "database is locked": f"Wait until the program that uses it, perhaps a backup, has ended {_AGAIN}",
    "database disk image is malformed": "Restore it from a backup",
    "file is not a database": "Restore it from a backup",
}
"""What to do about an error of SQLite."""
_LOCKED = "database is locked"


def explained(
    error: BaseException, database: str = "A database of Prefect or MLflow"
) -> NucleusError | None:
    """The fault of a disk or database behind an error, as one line with advice, if there is one.

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
        if isinstance(cause, OSError) and cause.errno in _ADVICE:
            place = cause.filename or "A file"
            return NucleusError(
                f"{place}: {os.strerror(cause.errno or 0)}. {_ADVICE[cause.errno or 0]}."
            )
        for said, advice in _OF_SQLITE.items():
            if said in str(cause):
                return NucleusError(f"{database}: {said}. {advice}.")
    return None


def is_database_locked(error: BaseException) -> bool:
    """Whether SQLite gave up waiting for another program that uses a database."""
    return any(_LOCKED in str(cause) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from and what was handled when it was raised, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
