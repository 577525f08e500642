"""What can be removed from the home because it can be made again, and what a logged run needs."""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Run

from nucleus_unet.data import ImageEntry, LabelsEntry, Progress, source_digests
from nucleus_unet.engine import damaged_files
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import file_states, first_names, is_locked, locked
from nucleus_unet.runs.logged import LoggedDataset

REMOVED = ".removed"
"""Ending of a folder that is being removed. Nothing takes it for a result."""
ENTRIES = (ImageEntry, LabelsEntry)
"""Kinds of prepared arrays, each in a folder of its own."""
_TRAIN = "train"
"""Name of the stage that takes hours, and continues from checkpoints."""
_YOUNG = "they can be continued"


@dataclass(frozen=True)
class Logged:
    """What MLflow knows about the home."""

    runs: frozenset[str] = frozenset()
    """Ids of all runs."""
    trainings: frozenset[str] = frozenset()
    """Digests of the trainings whose model a finished run holds."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each logged image or annotation that is in the home and no longer in its raw data, and
    where it was."""


@dataclass(frozen=True)
class Stored:
    """Files or a folder in the home that are removed together."""

    kind: str
    paths: tuple[Path, ...]
    """In the order in which they are removed."""
    again: str
    """What makes it again."""
    keep: str | None = None
    """Why it must not be removed; None if it can be."""
    lock: Path | None = None
    """The lock that a process holds while it uses this."""
    size_bytes: int = 0


def read_logged(home: Path, progress: Callable[[Path], Progress] | None = None) -> Logged:
    """Ask MLflow what its runs need of the home, and look for their raw data.

    Parameters
    ----------
    home : Path
        Its own MLflow database is asked too, if another one is in use.
    progress : callable, optional
        Called with the path of each raw data set that is read; returns what is called as
        ``(done, total)``.

    Notes
    -----
    A file counts as lost if no data set that a run logged holds the same content now, so a changed file
    is lost too. Only data sets with files in the home are read. Runs that were deleted in MLflow do not
    count.
    """
    entries = (path for entry in ENTRIES for path in home.glob(f"{entry.folder}/*.json"))
    stored = {digest for path in entries if (digest := _source(path))}
    ids, trainings = set(), set()
    users: dict[str, list[tuple[MlflowClient, str, str]]] = {}
    for client in _clients(home):
        for run in _all_runs(client):
            run_id, tags = str(run.info.run_id), run.data.tags
            ids.add(run_id)
            if run.info.status == "FINISHED" and "stage.train" in tags:
                trainings |= {tags["stage.train"], *tags.get("stage.folds", "").split()}
            inputs = run.inputs.dataset_inputs if run.inputs else []
            for context in (tag.value for one in inputs for tag in one.tags):
                same = tags.get(f"dataset.{context}", run_id)
                users.setdefault(same, []).append((client, run_id, context))
    places: dict[str, str] = {}
    contents: dict[str, set[str]] = {}
    for group in users.values():
        for data in (_logged_dataset(*user) for user in group):
            needed = stored & _digests(data)
            places |= dict.fromkeys(needed, first_names(data.paths))
            for path in data.paths if needed else ():
                if path not in contents:
                    contents[path] = _found(Path(path), progress)
            if not needed.difference(*contents.values()):
                break  # other runs with these data need nothing else
    found = set[str]().union(*contents.values())
    lost = {digest: place for digest, place in places.items() if digest not in found}
    return Logged(frozenset(ids), frozenset(trainings), lost)


def take_inventory(home: Path, logged: Logged, unfinished_days: float) -> list[Stored]:
    """List what lies in the home and can be made again, and what of it must stay.

    Databases, artifacts, ``runs``, the built-in sample, locks and logs are not listed.

    Parameters
    ----------
    home : Path
    logged : Logged
        From `read_logged`.
    unfinished_days : float
        Unfinished trainings and reproductions that changed within this time are kept.
    """
    oldest, counted = time.time() - unfinished_days * 24 * 3600, set[tuple[int, int]]()
    found = [
        *_stages(home, logged, oldest),
        *_prepared(home, logged),
        *_fetched(home, logged),
        *_fresh(home, logged, oldest),
    ]
    return [replace(one, size_bytes=sum(_size(p, counted) for p in one.paths)) for one in found]


def _stages(home: Path, logged: Logged, oldest: float) -> Iterator[Stored]:
    for folder in _folders(home, "stages/*"):
        name = folder.parent.name
        digest, _, ending = folder.name.partition(".")
        lock = home / "locks" / f"{name}-{digest}"
        kind, again, keep = f"results of {name}", "the next run that needs them", None
        if name == _TRAIN and (ending or damaged_files(folder)):
            kind, again = "unfinished trainings", "training from the first step"
            keep = _YOUNG if _changed(folder) > oldest else None
        elif name == _TRAIN:
            again = "training again; their models stay in MLflow"
            if not any(one.startswith(digest) for one in logged.trainings):
                keep = "no finished run in MLflow has their models"
        if folder.name.endswith(REMOVED):
            keep = None
        yield Stored(kind, (folder,), again, "in use" if is_locked(lock) else keep, lock)


def _prepared(home: Path, logged: Logged) -> Iterator[Stored]:
    """The record and array of each entry, and what a killed process left of one."""
    for entry in ENTRIES:
        for path in sorted(home.glob(f"{entry.folder}/*")):
            record, array = path.with_suffix(".json"), path.with_suffix(".npy")
            if path == array and record.exists():
                continue  # listed by its record
            paths = (record, array) if path == record else (path,)
            yield Stored(
                f"prepared {entry.folder}", paths, "reading the raw data", _gone(path, logged)
            )


def _fetched(home: Path, logged: Logged) -> Iterator[Stored]:
    for folder in _folders(home, "fetched"):
        known = folder.name in logged.runs or folder.name.endswith(REMOVED)
        keep = None if known else "MLflow does not have their runs"
        yield Stored("files fetched from MLflow", (folder,), "fetching them again", keep)


def _fresh(home: Path, logged: Logged, oldest: float) -> Iterator[Stored]:
    for folder in _folders(home, "fresh"):
        reasons = (_gone(path, logged) for path in folder.glob("*/*.json"))
        keep = next(filter(None, reasons), _YOUNG if _changed(folder) > oldest else None)
        if folder.name.endswith(REMOVED):
            keep = None
        yield Stored("unfinished reproductions", (folder,), "nucleus reproduce", keep)


def _folders(home: Path, below: str) -> list[Path]:
    return sorted(path for path in home.glob(f"{below}/*") if path.is_dir())


def _gone(record: Path, logged: Logged) -> str | None:
    """Why a prepared entry is kept, if its raw data are gone."""
    place = logged.lost.get(_source(record) or "")
    return place and f"a run was made from them, and they are no longer in {place}"


def remove_stored(items: Iterable[Stored]) -> list[Stored]:
    """Remove what `take_inventory` listed; returns what was removed.

    What a process has begun to use in the meantime is left. A folder is renamed before its files are
    removed, so that a killed process leaves no folder that looks complete.

    Raises
    ------
    NucleusError
        If something cannot be removed.
    """
    removed = []
    for item in items:
        try:
            if item.lock is None:
                _remove(item.paths)
            else:
                with locked(item.lock, _raise_in_use):
                    _remove(item.paths)
        except _InUseError:
            continue
        except OSError as error:
            raise NucleusError(
                f"{error.filename} cannot be removed ({error.strerror}). Run nucleus clean as the user "
                "who owns it."
            ) from error
        removed.append(item)
    return removed


class _InUseError(Exception):
    """A process holds the lock."""


def _raise_in_use() -> None:
    raise _InUseError


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            continue
        if not path.name.endswith(REMOVED):
            path = path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex}{REMOVED}"))
        shutil.rmtree(path)


def _clients(home: Path) -> Iterator[MlflowClient]:
    """Of the MLflow store that is in use, and of the home's own database."""
    used, own = get_tracking_uri(), home / "mlflow.db"
    yield MlflowClient(used)
    if own.exists() and used != f"sqlite:///{own}":
        yield MlflowClient(f"sqlite:///{own}")


def _all_runs(client: MlflowClient) -> Iterator[Run]:
    experiments = [one.experiment_id for one in client.search_experiments()]
    page = client.search_runs(experiments)
    yield from page
    while page.token:
        page = client.search_runs(experiments, page_token=page.token)
        yield from page


def _logged_dataset(client: MlflowClient, run_id: str, context: str) -> LoggedDataset:
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, f"datasets/{context}.json", folder)
        return LoggedDataset(**json.loads(Path(path).read_text()))


def _digests(data: LoggedDataset) -> set[str]:
    keys = ("image_sha256", "masks_sha256")
    return {str(file[key]) for file in data.files for key in keys if key in file}


def _found(path: Path, progress: Callable[[Path], Progress] | None) -> set[str]:
    """The contents of a raw data set; nothing if it cannot be read."""
    try:
        return source_digests(path, progress(path) if progress else None)
    except NucleusError:
        return set()


def _source(record: Path) -> str | None:
    """`Entry.source_sha256` in the record of a prepared entry; None if it is damaged or missing."""
    try:
        return str(json.loads(record.read_bytes())["source_sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _size(path: Path, counted: set[tuple[int, int]]) -> int:
    """Bytes of a file or folder. A file with several names counts once."""
    total = 0
    for state in file_states(path):
        if (place := (state.st_dev, state.st_ino)) not in counted:
            counted.add(place)
            total += state.st_size
    return total


def _changed(folder: Path) -> float:
    """When a file of a folder was written last, in seconds since 1970; 0 without any."""
    return max((state.st_mtime for state in file_states(folder)), default=0)
