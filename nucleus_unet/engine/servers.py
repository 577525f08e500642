"""Check the Prefect and MLflow servers that the environment variables name."""

import os
import re

import httpx

from nucleus_unet.engine.home import LOG_INS
from nucleus_unet.errors import NucleusError

_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://")
_EXAMPLES = {
    "PREFECT_API_URL": "http://HOST:4200/api",
    "MLFLOW_TRACKING_URI": "http://HOST:5000 or sqlite:////FOLDER/mlflow.db",
}


def raise_if_refused(variable: str, status: int, error: Exception) -> None:
    """Raise an error that explains a server's 401, 403 or 404; do nothing for any other status.

    Parameters
    ----------
    variable : str
        The environment variable that holds the server's address.
    status : int
        HTTP status of the server's answer.
    error : Exception
        The error that the client raised for this answer.

    Raises
    ------
    NucleusError
        If the server rejected the login, or if the address belongs to another server.
    """
    if status == httpx.codes.NOT_FOUND:  # the address of Prefect's UI, or both addresses swapped
        raise NucleusError(
            f"{variable}={os.environ[variable]} is the address of another server or page (HTTP "
            f"{status}). Use an address like {_EXAMPLES[variable]}"
        ) from error
    if status in (401, 403):
        raise NucleusError(
            f"{variable}={os.environ[variable]} rejected the login. Set {LOG_INS[variable]}"
        ) from error


def is_refusal(status: int) -> bool:
    """Return True if a retry would get the same answer; False if the server was slow or too busy."""
    return 400 <= status < 500 and status not in (408, 429)


def check_servers(*variables: str) -> None:
    """Check that the servers named by environment variables respond.

    A variable that is not set, or that holds the address of an MLflow database, is skipped.

    Parameters
    ----------
    *variables : str
        Environment variables to check. Default: PREFECT_API_URL and MLFLOW_TRACKING_URI.

    Raises
    ------
    NucleusError
        If a server does not respond, if it is another kind of server, or if a variable does not
        hold a valid address.
    """
    for variable in variables or ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        url = os.environ.get(variable, "").rstrip("/")
        if not url.startswith(("http://", "https://")):
            if url and not (variable == "MLFLOW_TRACKING_URI" and _DATABASE.match(url)):
                # The message leaves the value out: it may contain a password.
                raise _no_address(variable)
            continue
        try:
            # Prefect and MLflow verify certificates themselves, with their own settings.
            httpx.get(f"{url}/health", timeout=10, verify=False).raise_for_status()
            continue
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):  # the server runs and asks for a login
                continue
            raise_if_refused(variable, status, error)
            reason = f"HTTP {status}"
        except httpx.InvalidURL as error:
            raise _no_address(variable) from error
        except httpx.HTTPError as error:
            reason = type(error).__name__
        raise NucleusError(
            f"{variable}={url} does not respond ({reason}). Start this server or unset {variable}."
        )


def _no_address(variable: str) -> NucleusError:
    return NucleusError(
        f"{variable} is not a valid address. Use an address like {_EXAMPLES[variable]}"
    )
