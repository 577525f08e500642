"""A shell script that runs a command in the environment of a logged run."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from nucleus_unet.engine import SWITCHES
from nucleus_unet.errors import NucleusError
from nucleus_unet.runs.logged import Record


def environment_script(
    record: Record,
    lock: Path | None,
    diff: Path | None,
    settings: Sequence[str],
    command: Sequence[str],
) -> str:
    """Write a shell script that runs a command with the source, packages and switches of a run.

    Its first lines are comments that say whose code it runs.

    Parameters
    ----------
    record : Record
        The run.
    lock : Path, optional
        The lock that the run logged. Packages that it does not name are installed by version alone.
    diff : Path, optional
        The uncommitted changes that the run logged, as a patch.
    settings : sequence of str
        Lines of shell that come before all others.
    command : sequence of str
        Arguments of ``nucleus``.

    Raises
    ------
    NucleusError
        If the commit, the Python version or a package of the run do not look like one.
    """
    python = record.machine["python"]
    # Both go into a shell unquoted, and everybody who may edit the run may have changed them.
    allowed = {record.commit: "[0-9a-f]{40}", python: r"\d+\.\d+\.\w+"}
    if not all(re.fullmatch(pattern, text) for text, pattern in allowed.items()):
        raise NucleusError(
            f"Run {record.run_id} logged the commit {record.commit!r} and the Python version "
            f"{python!r}, which cannot be installed. Reproduce it without --in-env."
        )
    folder = f"nucleus-{record.run_id[:8]}"
    pip = ".venv/bin/pip install --quiet --disable-pip-version-check --no-deps"
    # CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS belong to the machine, not to the run.
    names = (name for name in SWITCHES if name not in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
    pins = _unlocked(record, lock)
    packages = [f"those that {shlex.quote(str(lock))} lists by hash"] if lock else []
    packages += [f"{len(pins)} by version alone"] if pins else []
    lines = [
        f"# This script repeats run {record.run_id} with Python {python}. It runs",
        f"# - the source of commit {record.commit} of this checkout",
        *([f"# - changes of it that no commit has: {shlex.quote(str(diff))}"] if diff else []),
        f"# - packages that the run logged: {', and '.join(packages) or 'none'}",
        *settings,
        # Exit code 1 would mean that the submission differs.
        "set -e; trap 'exit 2' EXIT",
        f"rm -rf {folder}",
        f"git clone --quiet {shlex.quote(str(Path(__file__).parents[2]))} {folder}",
        f"cd {folder}",
        f"git checkout --quiet {record.commit}",
        *([f"git apply {shlex.quote(str(diff))}"] if diff else []),
        f"python{python.rpartition('.')[0]} -m venv .venv",
        *([f"{pip} --require-hashes --requirement {shlex.quote(str(lock))}"] if lock else []),
        *([f"{pip} {' '.join(pins)}"] if pins else []),
        f"{pip} --no-build-isolation --editable .",
        *(
            f"export {name}={shlex.quote(record.machine[name])}"
            if name in record.machine
            else f"unset {name}"
            for name in names
        ),
        "trap - EXIT",
        f".venv/bin/nucleus {shlex.join(command)}",
    ]
    return "\n".join(lines)


def _unlocked(record: Record, lock: Path | None) -> list[str]:
    """The run's packages that the lock does not name, as ``name==version``."""
    text = lock.read_text() if lock else ""
    locked = re.findall(r"^([\w.-]+)(?:\[.*\])?==", text, re.MULTILINE)
    installed = {_normalized(name): name for name in record.packages}
    for name in ("nucleus-unet", "pip", *map(_normalized, locked)):
        installed.pop(name, None)
    pins = [f"{name}=={record.packages[name]}" for name in installed.values()]
    if odd := [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.+!]+", pin)]:
        raise NucleusError(
            f"Run {record.run_id} logged the package {odd[0]!r}, which cannot be installed. Reproduce "
            "it without --in-env."
        )
    return pins


def _normalized(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
