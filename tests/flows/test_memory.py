"""A machine with little memory, made by a cgroup."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MB = 1500
"""Enough for the command and its server, and not for the training below."""


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A cgroup, of version 1 or 2; what its file `cgroup.procs` names has `MB` of memory."""
    root = Path("/sys/fs/cgroup")
    first, second = root / "memory" / "nucleus-test", root / "nucleus-test"
    limits = {first: "memory.limit_in_bytes", second: "memory.max"}
    folder = first if first.parent.exists() else second
    try:
        folder.mkdir(exist_ok=True)
        (folder / limits[folder]).write_text(str(MB * 10**6))
    except OSError as error:
        pytest.skip(f"a cgroup with a limit of memory: {error}")
    yield folder
    deadline = time.monotonic() + 30
    while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.5)
    folder.rmdir()


@pytest.mark.slow
@pytest.mark.fault(
    "Kills and stops",
    "memory runs out during a training, and the kernel kills the process that trains",
    "one line with the settings that need less memory; with more memory the same command continues",
)
def test_memory_that_runs_out(place: Any, tmp_path: Path, little_memory: Path) -> None:
    here = place.elsewhere(tmp_path / "home")
    large = ("data.image_size=256", "network.base_filters=32", "training.batch_size=64")
    overrides = [word for one in large for word in ("--set", one)]
    process = here.start(*here.retraining(*overrides))
    (little_memory / "cgroup.procs").write_text(str(process.pid))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2, stderr
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert "The computing process was killed, probably because memory ran out." in last
    assert "training.batch_size" in last
