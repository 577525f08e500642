"""The MLflow store: its database, its experiment and the addresses of its pages."""

import functools
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient, get_tracking_uri
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DBAPIError

from nucleus_unet.engine import (
    explained,
    home_folder,
    is_database_locked,
    is_refusal,
    raise_if_refused,
    ui_url,
    use_lock,
    without_credentials,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import is_locked, locked, make_folder

Answer = TypeVar("Answer")
EXPERIMENT = "nucleus-unet"
TRAINING = "?workflowType=machine_learning"
"""Without it MLflow's pages open as those of language models."""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Error codes of MLflow for something that does not exist, or for an id that cannot exist."""
ARTIFACTS = "mlartifacts"
"""Folder in the home for what runs log, without an MLflow server."""
HOME = "nucleus.home"
"""Tag of an experiment: the address of the home that its artifacts are in."""
ADDRESSES = ("artifact_location", "artifact_uri", "source", "storage_location")
"""Columns of MLflow's tables that hold addresses of artifacts."""
LOCK_TIMEOUT_S = 900.0
"""How long to wait for another program, for example a backup, that has locked MLflow's database."""
_logger = logging.getLogger(__name__)
_waits = ContextVar("waits", default=False)


class PatientClient(MlflowClient):
    """MLflow's client, but each call waits while the database is locked, for `LOCK_TIMEOUT_S`."""

    def __init__(self) -> None:
        for name in ("store.db.utils", "system_metrics"):  # their errors also come as exceptions
            logging.getLogger(f"mlflow.{name}").setLevel(logging.CRITICAL)
        patiently(super().__init__)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return functools.partial(patiently, found) if callable(found) and name[0] != "_" else found


def patiently(call: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
    """Call a function, and again while MLflow's database is locked, for `LOCK_TIMEOUT_S`."""
    if _waits.get():  # within another call, which will do the waiting
        return call(*args, **kwargs)
    until, warned = time.monotonic() + LOCK_TIMEOUT_S, False
    token = _waits.set(True)
    try:
        while True:
            try:
                return call(*args, **kwargs)
            except (MlflowException, DBAPIError) as error:
                if not is_database_locked(error) or time.monotonic() > until:
                    raise
                if not warned:
                    _logger.warning(
                        "MLflow's database is locked by another program; waiting for it"
                    )
                warned = True
                time.sleep(1)
    finally:
        _waits.reset(token)


def make_database() -> None:
    """Make MLflow's database if it is a file that does not exist yet, completely or not at all.

    MLflow makes its database in many steps and cannot use one that a killed process left half made.
    The database of a home that was moved, or copied to another place, gets the new addresses of its
    artifacts.
    """
    uri = os.environ["MLFLOW_TRACKING_URI"].partition("?")[0]
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_absolute():
        return
    make_folder(
        path.parent, "Set MLFLOW_TRACKING_URI to a database in a folder that you can write."
    )
    with locked(home_folder() / "locks" / "mlflow"):
        if path == home_folder() / "mlflow.db":
            _follow_home(path)
        if path.exists():
            return
        folder = path.with_suffix(".partial")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        MlflowClient(f"sqlite:///{folder / path.name}").search_experiments(max_results=1)
        (folder / path.name).rename(path)
        folder.rmdir()


def _follow_home(database: Path) -> None:
    """Let the addresses in the home's database point into the home, wherever it was before."""
    here = database.parent.as_uri()
    if not (database.exists() and (database.parent / ARTIFACTS).exists()):
        return
    if is_locked(use_lock()):  # perhaps by work that knows the same home by another path
        return
    with closing(sqlite3.connect(database, timeout=LOCK_TIMEOUT_S)) as connection, connection:
        places = connection.execute(
            "SELECT experiment_id, value, artifact_location FROM experiments LEFT JOIN "
            "(SELECT * FROM experiment_tags WHERE key = ?) USING (experiment_id)",
            (HOME,),
        ).fetchall()
        for experiment, noted, location in places:
            # Version 0.2.0 did not note it.
            before = noted or str(location).removesuffix(f"/{ARTIFACTS}")
            if before not in (here, location):
                _move_addresses(connection, before, here)
                connection.execute(
                    "INSERT OR REPLACE INTO experiment_tags (key, value, experiment_id) "
                    "VALUES (?, ?, ?)",
                    (HOME, here, experiment),
                )


def _move_addresses(connection: sqlite3.Connection, before: str, now: str) -> None:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    for (table,) in tables.fetchall():
        for _, column, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
            if column in ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, len(before) + 1, f"{before}/"),
                )


def require_mlflow() -> None:
    """Make sure that MLflow can be used.

    Raises
    ------
    NucleusError
        If its server refuses the login or is another server, or if its database was made by another
        version of MLflow, is damaged or cannot be read.
    """
    uri = without_credentials(os.environ["MLFLOW_TRACKING_URI"])
    try:
        PatientClient().search_experiments(max_results=1)
    except DBAPIError as error:
        if fault := explained(error, f"The MLflow database {uri}"):
            raise fault from error
        raise NucleusError(
            f"The MLflow database {uri} cannot be used ({error.orig}). Set MLFLOW_TRACKING_URI to "
            "another database."
        ) from error
    except MlflowException as error:
        raise_if_refused("MLFLOW_TRACKING_URI", error.get_http_status_code(), error)
        if "out-of-date database schema" in str(error):  # MLflow has no code of its own for it
            raise NucleusError(
                f"The MLflow database {uri} was made by another version of MLflow. Back it up, then "
                f"run: mlflow db upgrade {uri}"
            ) from error
        raise


def refused_by_mlflow(error: Exception) -> bool:
    """Whether an error is an answer of MLflow that another try would not change."""
    return isinstance(error, MlflowException) and is_refusal(error.get_http_status_code())


def experiment_id(client: MlflowClient) -> str:
    """The experiment's id. The experiment is made at first use, locally with artifacts in the home.

    Raises
    ------
    NucleusError
        If the experiment was deleted.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            raise NucleusError(
                f"The MLflow experiment {name} was deleted. Restore it with mlflow experiments restore "
                f"--experiment-id {found.experiment_id}, or set MLFLOW_EXPERIMENT_NAME to another name."
            )
        return str(found.experiment_id)
    local = not get_tracking_uri().startswith(("http://", "https://"))
    location = (home_folder() / ARTIFACTS).as_uri() if local else None
    # Without this tag MLflow's pages show the experiment as one of language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    if local:
        tags[HOME] = home_folder().as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(client)  # another process made it in the meantime


def run_url(run_id: str) -> str:
    """Address of a run's page."""
    experiment = PatientClient().get_run(run_id).info.experiment_id
    return f"{ui_address()}/#/experiments/{experiment}/runs/{run_id}{TRAINING}"


def runs_url() -> str:
    """Address of the page that lists all runs."""
    return f"{ui_address()}/#/experiments/{experiment_id(PatientClient())}/runs{TRAINING}"


def ui_address() -> str:
    """Address of MLflow's pages: the tracking server, or where ``nucleus ui`` serves the database.

    At 127.0.0.1 and localhost the pages open an assistant over the values of the metrics, but not at
    mlflow.localhost, which browsers send to this machine too (RFC 6761).
    """
    uri = str(get_tracking_uri())
    if uri.startswith("http"):
        return uri.rstrip("/")
    return ui_url("mlflow").replace("127.0.0.1", "mlflow.localhost")
