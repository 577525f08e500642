import doctest
import errno
import os
import sqlite3

import pytest

from nucleus_unet.engine import faults as module
from nucleus_unet.engine.faults import explained, is_database_locked
from nucleus_unet.errors import NucleusError


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some disk space and"),
        (errno.EDQUOT, "Free some disk space and"),
        (errno.EROFS, "Make it writable and"),
        (errno.EMFILE, "Allow more with ulimit -n and"),
        (errno.ENFILE, "Allow more with ulimit -n and"),
        (errno.EIO, "Check the disk."),
    ],
)
@pytest.mark.fault(
    "Disks and databases",
    "read-only disk, quota, too many open files",
    "one line that names the file and what to do",
    simulated=True,
)
def test_a_fault_of_the_disk_is_explained(number: int, advice: str) -> None:
    said = str(explained(OSError(number, os.strerror(number), "/a/b.npy")))
    assert said.startswith(f"/a/b.npy: {os.strerror(number)}. {advice}")


def raised_from(cause: Exception) -> Exception:
    """An error of a library with a cause."""
    try:
        try:
            raise cause
        except type(cause) as error:
            raise RuntimeError("cannot log") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("database is locked", "Wait until the program that uses it, perhaps a backup, has ended"),
        ("database disk image is malformed", "Restore it from a backup"),
        ("attempt to write a readonly database", "Make it writable"),
    ],
)
def test_a_fault_of_a_database_is_explained_through_other_errors(said: str, advice: str) -> None:
    error = raised_from(sqlite3.OperationalError(said))
    explanation = explained(error, "The database X")
    assert str(explanation).startswith(f"The database X: {said}. {advice}")
    assert is_database_locked(error) == (said == "database is locked")


def test_other_errors_are_not_explained() -> None:
    assert explained(raised_from(ValueError("a bug"))) is None
    assert explained(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None
    ours = NucleusError("Choose another file.")
    assert explained(ours) is ours
