import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nucleus_unet.engine import back_up_home, home_unused
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import write_atomically


@pytest.fixture
def home(bare: Path) -> Path:
    """With a file of each kind."""
    names = (
        *("mlartifacts/1/a.log", "runs/1/submission.csv", "images/a.npy", "id", "locks/work-1"),
        *(
            "images/b.npy.partial",
            "runs/.new/a",
            "stages/train/a/model.keras",
            "locks/use",
            "a.log",
        ),
    )
    for name in names:
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(bare / name, name)
    return bare


def files_in(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found}


def test_a_copy_does_not_take_the_runs_of_a_server_for_its_own(home: Path, tmp_path: Path) -> None:
    home.chmod(0o700)
    back_up_home(tmp_path / "copy")
    assert not {name for name in files_in(tmp_path / "copy") if name.startswith(("id", "locks"))}
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_made_again_is_copied(home: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home / "mlflow.db", isolation_level=None)) as used:
        used.execute("PRAGMA journal_mode = WAL")
        used.execute("CREATE TABLE runs (id)")
        used.execute("INSERT INTO runs VALUES (1)")
        used.execute("BEGIN IMMEDIATE")
        used.execute("INSERT INTO runs VALUES (2)")  # not committed
        back_up_home(tmp_path / "copy")
    assert files_in(tmp_path / "copy") == {
        *("mlflow.db", "mlartifacts/1/a.log", "runs/1/submission.csv", "images/a.npy"),
        *("locks/work-1", "locks/use"),
    }
    with closing(sqlite3.connect(tmp_path / "copy" / "mlflow.db")) as copy:
        assert copy.execute("SELECT id FROM runs").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (
            "home/copy",
            "home/copy is inside the home, which is to be copied. Choose another folder.",
        ),
        ("full", "full: the folder is not empty. Choose another folder."),
    ],
)
def test_a_folder_that_cannot_hold_a_copy(
    home: Path, tmp_path: Path, to: str, message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(NucleusError) as caught:
        back_up_home(tmp_path / to)
    assert str(caught.value) == f"{tmp_path}/{message}"
    assert not (home / "copy").exists()


def test_nothing_is_removed_while_a_home_is_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(*_: object, **__: object) -> None:
        with pytest.raises(NucleusError, match="is in use"), home_unused():
            pass

    monkeypatch.setattr("shutil.copytree", copy)
    back_up_home(tmp_path / "copy")
