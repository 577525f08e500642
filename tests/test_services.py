"""The units of systemd and the shell scripts."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "deploy").glob("*.service"))
MOST_EXPOSED = 25
"""Ten times what ``systemd-analyze security`` calls the exposure of a unit; without care it is 96."""

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)


def hardening(unit: Path) -> set[str]:
    """What a unit forbids its service; the worker needs devices, for the GPU."""
    lines = unit.read_text().splitlines()
    kinds = ("NoNew", "Private", "Protect", "Restrict", "Lock", "Capability", "SystemCall", "UMask")
    return {line for line in lines if line.startswith(kinds)} - {"PrivateDevices=true"}


def test_all_units_are_hardened_alike() -> None:
    assert len(UNITS) == 3
    assert len({frozenset(hardening(unit)) for unit in UNITS}) == 1


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@each_unit
@pytest.mark.fault(
    "Security",
    "a service that is broken into",
    "systemd keeps it from the rest of the machine",
)
def test_a_unit_is_not_exposed(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}"]
    done = subprocess.run([*command, str(unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_the_shell_scripts_have_no_pitfalls() -> None:
    scripts = [*(ROOT / "deploy").glob("*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert len(scripts) == 3
    assert done.returncode == 0, done.stdout
