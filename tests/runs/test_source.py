import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from nucleus_unet.engine.switches import SWITCHES
from nucleus_unet.errors import NucleusError
from nucleus_unet.runs import source as module
from nucleus_unet.runs.source import (
    CPU_FLAGS,
    checkout_source,
    describe_machine,
    installed_packages,
    requirements_lock,
)

AUTHOR = ["-c", "user.name=n", "-c", "user.email=e@example.org"]


def git(folder: Path, *args: str) -> str:
    return subprocess.check_output(["git", "-C", str(folder), *AUTHOR, *args], text=True).strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean checkout that our package seems to lie in."""
    folder = tmp_path / "checkout"
    (folder / "nucleus_unet" / "runs").mkdir(parents=True)
    (folder / "nucleus_unet" / "runs" / "source.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("ignored.py\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(module, "__file__", str(folder / "nucleus_unet" / "runs" / "source.py"))
    return folder


def test_a_clean_checkout(checkout: Path) -> None:
    assert checkout_source().commit == git(checkout, "rev-parse", "HEAD")
    assert checkout_source().diff == ""


def test_the_patch_makes_the_working_tree_from_the_commit(checkout: Path, tmp_path: Path) -> None:
    changes = {
        "nucleus_unet/runs/source.py": "x = 2\n",
        "nucleus_unet/new.py": "y = 'ä'\n",
        "nucleus_unet/größe.py": "z = 1\n",
        "nucleus_unet/no_newline.toml": "a = 1",
    }
    for name, text in changes.items():
        (checkout / name).write_text(text)
    (checkout / "ignored.py").touch()
    (checkout / "notes.txt").touch()
    found = checkout_source()
    git(tmp_path, "clone", "--quiet", str(checkout), "clone")
    (tmp_path / "patch").write_text(found.diff)
    git(tmp_path / "clone", "apply", str(tmp_path / "patch"))
    made = {p: (tmp_path / "clone" / p).read_text() for p in changes}
    assert made == changes
    assert not (tmp_path / "clone" / "ignored.py").exists()
    assert not (tmp_path / "clone" / "notes.txt").exists()


def test_a_change_that_is_not_text_is_refused(checkout: Path) -> None:
    (checkout / "nucleus_unet" / "runs" / "source.py").write_bytes(b"x = 'caf\xe9'\n")
    with pytest.raises(
        NucleusError, match=r"^The revision of the source cannot be logged: 'utf-8' codec"
    ):
        checkout_source()


def test_files_of_settings_are_not_logged(checkout: Path) -> None:
    (checkout / "prefect.yaml").write_text("password: none\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "settings")
    (checkout / "prefect.yaml").write_text("password: secret\n")
    (checkout / "winner.toml").write_text("password = 'secret'\n")
    assert checkout_source().diff == ""


def test_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "nucleus_unet" / "runs" / "source.py"))
    assert (checkout_source().commit, checkout_source().diff) == ("unknown", "")


def test_in_a_worktree_without_its_repository(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").write_text("gitdir: /gone/.git/worktrees/x\n")
    assert checkout_source().commit == "unknown"


def test_installed_in_the_checkout_of_something_else(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = checkout / ".venv" / "nucleus_unet"
    (place / "runs").mkdir(parents=True)
    (place / "runs" / "source.py").touch()
    monkeypatch.setattr(module, "__file__", str(place / "runs" / "source.py"))
    assert checkout_source().commit == "unknown"


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert checkout_source().commit == "unknown"


def test_a_checkout_that_git_refuses(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(
        NucleusError, match=r"^The revision .* logged: fatal: .*dubious owner.*config"
    ):
        checkout_source()


def test_packages_are_sorted_and_pinned() -> None:
    found = installed_packages()
    assert f"numpy=={metadata.version('numpy')}" in found
    assert found == sorted(set(found), key=str.lower)


def test_the_lock_is_the_one_that_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert requirements_lock() is None
    (tmp_path / "installed-cpu.lock").write_text("numpy==2.4.0\n")
    assert requirements_lock() == "numpy==2.4.0\n"
    (tmp_path / "installed-cpu.lock-microscopy").write_text("zarr==3.1.6\n")
    assert requirements_lock() == "numpy==2.4.0\nzarr==3.1.6\n"


def test_the_machine_and_the_switches_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--x")
    found = describe_machine()
    assert found["python"] == platform.python_version()
    assert set(found["cpu flags"].split()) <= set(CPU_FLAGS)
    assert int(found["cores"]) >= 1
    assert found["gpu"]
    assert {name: found[name] for name in found.keys() & set(SWITCHES)} == {
        "KERAS_BACKEND": "tensorflow",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "XLA_FLAGS": "--x",
    }
