"""A disk that fills up, and a database that another program uses."""

import errno
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system of its own: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@pytest.mark.parametrize("task", ["ingest", "train", "evaluate"])
@pytest.mark.fault(
    "Disks and databases",
    "the disk is full while a run works or is logged",
    "one line that names the file or database; with room again, the same command continues",
)
def test_a_full_disk_is_one_line_and_the_run_continues(place: Any, disk: Path, task: str) -> None:
    here = place.elsewhere(disk / "home")
    command = here.retraining("--no-registry")
    process = here.start(*command)
    for line in process.stderr:
        if f"Task run '{task} " in line and "in state Completed" in line:
            break
    fill(disk / "filler")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2, stderr
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "No space left on device" in last or "disk is full" in last
    assert "Free some disk space" in last
    (disk / "filler").unlink()
    again = here.nucleus(*command)
    assert again.returncode == 0, again.stderr
    with closing(sqlite3.connect(here.home / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]


@pytest.mark.fault(
    "Disks and databases",
    "a backup locks MLflow's database for 45 s",
    "one line that says so; the command waits, up to 15 minutes",
)
def test_a_backup_that_locks_the_database_is_waited_for(place: Any, tmp_path: Path) -> None:
    here = place.elsewhere(tmp_path / "home")
    assert here.nucleus("runs").returncode == 0

    def lock() -> None:
        with closing(sqlite3.connect(here.home / "mlflow.db", isolation_level=None)) as database:
            database.execute("begin exclusive")
            time.sleep(45)

    backup = Thread(target=lock)
    backup.start()
    time.sleep(1)
    done = here.nucleus("runs")
    backup.join()
    assert done.returncode == 0
    said = ["MLflow's database is locked by another program; waiting for it"]
    assert [line for line in done.stderr.splitlines() if "locked" in line] == said
