import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.runs.environment import environment_script
from nucleus_unet.runs.logged import Record

RECORD = Record(
    run_id="first-run",
    recipe={},
    machine={"python": "3.11.7"},
    packages={"numpy": "2.3.5"},
    commit="1" * 40,
    diff="",
    data={},
)


@pytest.mark.parametrize("locked", [True, False])
def test_the_script_has_the_source_packages_and_switches_of_the_run(
    tmp_path: Path, locked: bool
) -> None:
    record = replace(
        RECORD,
        machine={"python": "3.11.7", "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": "3"},
        packages={"NumPy": "2.3.5", "jax": "0.11.2", "nucleus-unet": "1", "pip": "26"},
    )
    lock, diff = (tmp_path / "a b.lock", tmp_path / "a.diff") if locked else (None, None)
    (tmp_path / "a b.lock").write_text("numpy==2.3.5 \\\n    --hash=sha256:00\n")
    text = environment_script(record, lock, diff, ["export A=1"], ["reproduce", "it's"])
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    by_hash = f"those that '{lock}' lists by hash, and 1 by version alone"
    head = [
        f"# This script repeats run {record.run_id} with Python 3.11.7. It runs",
        f"# - the source of commit {record.commit} of this checkout",
        *([f"# - changes of it that no commit has: {diff}"] if locked else []),
        f"# - packages that the run logged: {by_hash if locked else '2 by version alone'}",
    ]
    assert lines[: len(head)] == head
    assert lines[len(head)] == "export A=1"
    lines = lines[len(head) + 1 :]
    assert lines[0] == "set -e; trap 'exit 2' EXIT"
    assert lines[2].startswith("git clone --quiet ")
    assert lines[4] == f"git checkout --quiet {record.commit}"
    assert (f"git apply {diff}" in lines) == locked
    assert "python3.11 -m venv .venv" in lines
    pip = ".venv/bin/pip install --quiet --disable-pip-version-check --no-deps "
    assert [line.removeprefix(pip) for line in lines if line.startswith(pip)] == [
        *([f"--require-hashes --requirement '{lock}'", "jax==0.11.2"] if locked else []),
        *([] if locked else ["NumPy==2.3.5 jax==0.11.2"]),
        "--no-build-isolation --editable .",
    ]
    assert {"export KERAS_BACKEND=jax", "unset XLA_FLAGS"} <= {*lines}
    assert "CUDA_VISIBLE_DEVICES" not in text
    assert lines[-1] == ".venv/bin/nucleus reproduce 'it'\"'\"'s'"


@pytest.mark.parametrize(
    ("commit", "python"),
    [("c; touch x", "3.11.7"), ("c" * 40, "3.11$(touch x).7"), ("unknown", "")],
)
def test_text_that_is_not_a_commit_or_a_version_reaches_no_shell(commit: str, python: str) -> None:
    record = replace(RECORD, commit=commit, machine={"python": python})
    with pytest.raises(NucleusError) as caught:
        environment_script(record, None, None, [], ["reproduce", "it"])
    assert str(caught.value) == (
        f"Run first-run logged the commit {commit!r} and the Python version {python!r}, which cannot "
        "be installed. Reproduce it without --in-env."
    )


@pytest.mark.parametrize("name", ["--extra-index-url=x", "a b", "a;b"])
def test_an_option_is_not_taken_for_a_package(name: str) -> None:
    with pytest.raises(NucleusError, match="which cannot be installed"):
        environment_script(
            replace(RECORD, packages={name: "1"}), None, None, [], ["reproduce", "it"]
        )


@pytest.mark.parametrize(("pip", "nucleus", "answer"), [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 2)])
def test_the_script_exits_as_the_command_does_and_with_2_if_it_cannot_run_it(
    tmp_path: Path, pip: int, nucleus: int, answer: int
) -> None:
    (tmp_path / "bin").mkdir()
    stubs = {
        "git": 'if [ "$1" = clone ]; then mkdir "$4"; fi',  # it fails if the folder exists
        "python3.11": f"""mkdir -p .venv/bin
            printf '#!/bin/sh\nexit {pip}' > .venv/bin/pip
            printf '#!/bin/sh\nexit {nucleus}' > .venv/bin/nucleus
            chmod +x .venv/bin/*""",
    }
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    script = environment_script(RECORD, None, None, [], ["reproduce", "it"])
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for _ in "ab":  # the second finds the folder of the first
        done = subprocess.run(
            ["sh"], input=script, text=True, cwd=tmp_path, env=os.environ | {"PATH": path}
        )
        assert done.returncode == answer
