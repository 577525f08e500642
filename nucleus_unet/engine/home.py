"""Where things are kept, and the environment that Prefect and MLflow read."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, make_folder, write_atomically

LOG_INS = {
    "PREFECT_API_URL": "PREFECT_API_AUTH_STRING=USER:PASSWORD",
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""Where a server's log-in belongs; its address is shown and logged."""


def ui_url(tool: str) -> str:
    """Where ``nucleus ui`` serves a tool: ``NUCLEUS_PREFECT_PORT`` and ``NUCLEUS_MLFLOW_PORT``."""
    variable = f"NUCLEUS_{tool.upper()}_PORT"
    port = os.environ.get(variable, {"prefect": "4200", "mlflow": "5000"}[tool])
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise NucleusError(f"{variable}={port} is no port: give a number from 1 to 65535")
    return f"http://127.0.0.1:{port}"


def home_folder() -> Path:
    """``NUCLEUS_HOME``, or ``.nucleus`` in the working directory, as an absolute path; made if absent.

    Raises
    ------
    NucleusError
        It cannot be made or written to, or its name ends the address of an SQLite database.
    """
    folder = Path(os.environ.get("NUCLEUS_HOME") or ".nucleus").absolute()
    if "?" in str(folder):
        raise NucleusError(f"{folder}: no place for databases, as it holds a ?; set NUCLEUS_HOME")
    make_folder(folder, "set NUCLEUS_HOME to a folder you can write")
    return folder


def home_id() -> str:
    """What tells this home from others, on whichever machine it is mounted; made at first use."""
    path = home_folder() / "id"
    with locked(home_folder() / "locks" / "id"):
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex)
    return path.read_text()


@contextmanager
def fresh_home(name: str) -> Iterator[None]:
    """Within the block the home is a folder below ours: nothing that was made before is found.

    It is removed when the block ends well; after an error it is there for another attempt.
    """
    outer = home_folder()
    inner = outer / "fresh" / name
    os.environ["NUCLEUS_HOME"] = str(inner)
    try:
        yield
    finally:
        os.environ["NUCLEUS_HOME"] = str(outer)
    shutil.rmtree(inner)


def prepare_environment() -> None:
    """Point Prefect and MLflow at the home, where no server is named; before either is imported.

    ``PREFECT_API_URL`` names a Prefect server, ``MLFLOW_TRACKING_URI`` an MLflow server. Without the
    former Prefect's own home moves below ours, so that a profile that happens to be active, of a
    cloud account perhaps, is not used. Neither tool calls its makers. A variable of theirs or ours
    that is set and empty counts as not set.

    Raises
    ------
    NucleusError
        The home cannot be made; a Prefect profile is named, and not its server; or a server's
        address holds a log-in.
    """
    for name, value in list(os.environ.items()):
        if not value and name.startswith(("NUCLEUS_", "PREFECT_", "MLFLOW_", "DASK_", "KERAS_")):
            del os.environ[name]
    for name, variables in LOG_INS.items():
        url = os.environ.get(name, "")
        if url.startswith(("http://", "https://")) and without_credentials(url) != url:
            raise NucleusError(
                f"{name} holds a log-in, and would be shown: give {without_credentials(url)}, and the "
                f"log-in as {variables}"
            )
    folder = home_folder()
    defaults = {
        "NUCLEUS_HOME": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_MAX_PARAMETER_SIZE": "0",  # no limit: a folder's images may all be named
        "DO_NOT_TRACK": "true",
        # A server that is away for some minutes is waited for.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Else both write into the user's home directory.
        "KERAS_HOME": str(folder / "keras"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
    }
    if "PREFECT_API_URL" not in os.environ:
        if profile := os.environ.get("PREFECT_PROFILE"):
            raise NucleusError(
                f"PREFECT_PROFILE={profile} is not read: set PREFECT_API_URL, and its log-in, to what "
                "that profile has (prefect profile inspect), or unset it"
            )
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # A proxy would look for our own servers on its own machine.
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if direct != "*" and "127.0.0.1" not in direct.split(","):  # * holds alone only
        direct = ",".join(filter(None, [direct, "127.0.0.1", "localhost"]))
    os.environ |= {"no_proxy": direct, "NO_PROXY": direct}


def without_credentials(address: str) -> str:
    """An address as it may be shown: without log-in, and of a database's server without settings.

    Examples
    --------
    >>> without_credentials("postgresql://mlflow:secret@db:5432/mlflow")
    'postgresql://db:5432/mlflow'
    >>> without_credentials("sqlite:////srv/mlflow.db")
    'sqlite:////srv/mlflow.db'
    >>> without_credentials("sqlite:////home/ann@corp/mlflow.db")
    'sqlite:////home/ann@corp/mlflow.db'
    """
    scheme, _, rest = address.partition("://")
    if scheme.startswith("sqlite") or not rest:
        return address
    if scheme in ("http", "https"):
        return f"{scheme}://{rest.rpartition('@')[2]}"
    place, _, settings = rest.partition("?")  # which may be part of a password
    return f"{scheme}://{'...' if '@' in settings else place.rpartition('@')[2]}"
