"""Where everything is kept, and the environment that Prefect and MLflow read."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, make_folder, write_atomically

LOG_INS = {
    "PREFECT_API_URL": "PREFECT_API_AUTH_STRING=USER:PASSWORD",
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""The variables that a server's login belongs in. Its address is shown and logged."""

_fresh: ContextVar[Path | None] = ContextVar("home of this block", default=None)


def ui_url(tool: str) -> str:
    """Address at which ``nucleus ui`` serves a tool.

    Parameters
    ----------
    tool : str
        ``prefect`` or ``mlflow``. Their ports are set by ``NUCLEUS_PREFECT_PORT`` (default 4200) and
        ``NUCLEUS_MLFLOW_PORT`` (default 5000).
    """
    variable = f"NUCLEUS_{tool.upper()}_PORT"
    port = os.environ.get(variable, {"prefect": "4200", "mlflow": "5000"}[tool])
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise NucleusError(f"{variable}={port} is not a port. Set it to a number from 1 to 65535.")
    return f"http://127.0.0.1:{port}"


def home_folder() -> Path:
    """The folder that everything is kept in, as an absolute path. It is made if it does not exist.

    It is ``NUCLEUS_HOME`` or, if that is not set, ``.nucleus`` in the working directory.

    Raises
    ------
    NucleusError
        If the folder cannot be made or written to, or if its path has a ``?``, which would end the
        address of an SQLite database.
    """
    folder = _fresh.get() or Path(os.environ.get("NUCLEUS_HOME") or ".nucleus").absolute()
    if "?" in str(folder):
        raise NucleusError(
            f"{folder} cannot hold databases, because its path has a question mark. Set NUCLEUS_HOME to "
            "another folder."
        )
    make_folder(folder, "Set NUCLEUS_HOME to a folder that you can write.")
    return folder


def home_id() -> str:
    """A random id of this home, the same on every machine that mounts it. It is made at first use."""
    path = home_folder() / "id"
    with locked(home_folder() / "locks" / "id"):
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex)
    return path.read_text()


@contextmanager
def home_in_use(on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block, nothing is removed from the home. Any number of processes may use it.

    Parameters
    ----------
    on_wait : callable
        Called once if another process is removing something, which this one waits for.
    """
    with locked(use_lock(), on_wait, shared=True):
        yield


@contextmanager
def home_unused() -> Iterator[None]:
    """Within the block, no work uses the home: what starts in the meantime waits.

    Raises
    ------
    NucleusError
        If a process uses the home.
    """

    def refuse() -> None:
        raise NucleusError(
            f"{home_folder()} is in use by a command or a flow run. Wait until it has ended, or stop it."
        )

    with locked(use_lock(), refuse):
        yield


def use_lock() -> Path:
    """The lock that `home_in_use` shares and `home_unused` holds alone."""
    return home_folder() / "locks" / "use"


@contextmanager
def fresh_home(name: str) -> Iterator[None]:
    """Within the block, use an empty home inside the home, so that nothing made before is found.

    The inner home is removed if the block succeeds. After an error it is kept for another attempt.
    """
    inner = home_folder() / "fresh" / name
    token = _fresh.set(inner)
    try:
        yield
    finally:
        _fresh.reset(token)
    shutil.rmtree(inner)


def prepare_environment() -> None:
    """Set the variables that Prefect and MLflow read. Call it before either is imported.

    - ``PREFECT_API_URL`` names a Prefect server and ``MLFLOW_TRACKING_URI`` an MLflow server. If they
      are not set, both tools keep their data in the home.
    - Without ``PREFECT_API_URL``, Prefect's own home moves into ours.
    - Prefect's active profile is not used, unless ``PREFECT_PROFILE`` names it: its key, perhaps of a
      cloud account, would be sent to the server that ``PREFECT_API_URL`` names.
    - Telemetry of both tools is switched off.
    - An empty variable counts as not set.

    Raises
    ------
    NucleusError
        If the home cannot be made, if a Prefect profile is named without the address of its server, or
        if the address of a server holds a login.
    """
    for name, value in list(os.environ.items()):
        if not value and name.startswith(("NUCLEUS_", "PREFECT_", "MLFLOW_", "DASK_", "KERAS_")):
            del os.environ[name]
    for name, variables in LOG_INS.items():
        url = os.environ.get(name, "")
        if url.startswith(("http://", "https://")) and without_credentials(url) != url:
            raise NucleusError(
                f"{name} holds a login, which would be shown and logged. Set {name} to "
                f"{without_credentials(url)} and put the login into {variables}."
            )
    folder = home_folder()
    defaults = {
        "NUCLEUS_HOME": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_MAX_PARAMETER_SIZE": "0",  # no limit: there may be thousands of images
        "DO_NOT_TRACK": "true",
        # Wait for a server that does not respond for some minutes.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # By default both write into the home directory of the user.
        "KERAS_HOME": str(folder / "keras"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
    }
    profile = os.environ.get("PREFECT_PROFILE")
    if not profile:
        defaults["PREFECT_PROFILES_PATH"] = str(folder / "prefect" / "profiles.toml")
    if "PREFECT_API_URL" not in os.environ:
        if profile:
            raise NucleusError(
                f"PREFECT_PROFILE={profile} is not used. Set PREFECT_API_URL and the login to the "
                f"values that prefect profile inspect {profile} shows, or unset PREFECT_PROFILE."
            )
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Do not ask a proxy for our own servers.
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if direct != "*" and "127.0.0.1" not in direct.split(","):  # a * must stand alone
        direct = ",".join(filter(None, [direct, "127.0.0.1", "localhost"]))
    os.environ |= {"no_proxy": direct, "NO_PROXY": direct}


def without_credentials(address: str) -> str:
    """An address without login and, for the address of a database server, without settings.

    Examples
    --------
    >>> without_credentials("postgresql://mlflow:secret@db:5432/mlflow")
    'postgresql://db:5432/mlflow'
    >>> without_credentials("https://ann:secret@host/team@lab/api")
    'https://host/team@lab/api'
    >>> without_credentials("sqlite:////home/ann@corp/mlflow.db")
    'sqlite:////home/ann@corp/mlflow.db'
    """
    scheme, _, rest = address.partition("://")
    if scheme.startswith("sqlite") or not rest:
        return address
    if scheme in ("http", "https"):
        host = urlsplit(address).netloc
        return address.replace(host, host.rpartition("@")[2], 1)
    place, _, settings = rest.partition("?")  # which may be part of a password
    return f"{scheme}://{'...' if '@' in settings else place.rpartition('@')[2]}"
