"""A copy of what a home holds and nothing can make again, taken while the home may be in use."""

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from nucleus_unet.engine.home import home_folder, home_in_use
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import new_folder

DATABASES = ("mlflow.db", "prefect/prefect.db")
_UNFINISHED = ("*.partial", ".*")
_LEFT_OUT = ("id", "stages", "fetched", "fresh", "keras", "matplotlib", "*.log")
_ADVICE = "Choose another folder."


def back_up_home(to: Path) -> None:
    """Copy the home into a new folder, which can be used as a home, also elsewhere.

    Results of single steps are left out, because runs make them again, and so are unfinished trainings.
    Each database is copied as it is at one moment. The copy is another home than this one: it continues
    none of its runs.

    Parameters
    ----------
    to : Path
        Must be empty or not exist, and lie outside of the home.

    Raises
    ------
    NucleusError
        If the folder is inside the home, is not empty or cannot be written.
    """
    home = home_folder()
    if to.resolve().is_relative_to(home.resolve()):
        raise NucleusError(f"{to} is inside the home, which is to be copied. {_ADVICE}")

    def left_out(folder: str, names: list[str]) -> Iterable[str]:
        own = [f"{Path(database).name}*" for database in DATABASES]
        patterns = [*_UNFINISHED, *own, *(_LEFT_OUT if Path(folder) == home else ())]
        if not (home / DATABASES[0]).exists():  # runs on a server are those of this home
            patterns.append("locks")
        return shutil.ignore_patterns(*patterns)(folder, names)

    with home_in_use(), new_folder(to, _ADVICE) as copy:
        for database in DATABASES:  # first, so that no artifact that they name is missing
            if (home / database).exists():
                (copy / database).parent.mkdir(exist_ok=True)
                address = f"{(home / database).as_uri()}?mode=ro"
                with (
                    closing(sqlite3.connect(address, uri=True)) as source,
                    closing(sqlite3.connect(copy / database)) as target,
                ):
                    source.backup(target)
        shutil.copytree(home, copy, ignore=left_out, dirs_exist_ok=True)
    to.chmod(home.stat().st_mode)
