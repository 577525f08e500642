"""The servers that the environment names."""

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
    """Say in a line that a server refuses the log-in, or is another, where its answer is that."""
    if status == httpx.codes.NOT_FOUND:  # as of Prefect's pages, or where two are swapped
        raise NucleusError(
            f"{variable}={os.environ[variable]} is another server (HTTP {status}): give one as "
            f"{_EXAMPLES[variable]}"
        ) from error
    if status in (401, 403):
        raise NucleusError(
            f"{variable}={os.environ[variable]} refuses the log-in: set {LOG_INS[variable]}"
        ) from error


def is_refusal(status: int) -> bool:
    """Whether a server's answer would be the same another time: not that it was late or too busy."""
    return 400 <= status < 500 and status not in (408, 429)


def check_servers(*variables: str) -> None:
    """See that the servers that the environment names answer.

    Parameters
    ----------
    variables : str
        Names of those that are looked at, by default both: PREFECT_API_URL, MLFLOW_TRACKING_URI.

    Raises
    ------
    NucleusError
        One does not, is another, or is no address.
    """
    for variable in variables or ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        url = os.environ.get(variable, "").rstrip("/")
        if not url.startswith(("http://", "https://")):
            if url and not (variable == "MLFLOW_TRACKING_URI" and _DATABASE.match(url)):
                # not shown: without http:// it is not known where a password would be
                raise _no_address(variable)
            continue
        try:
            # Whether somebody is there; both tools check certificates, by settings of their own.
            httpx.get(f"{url}/health", timeout=10, verify=False).raise_for_status()
            continue
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):  # it asks for a log-in, as it may
                continue
            raise_if_refused(variable, status, error)
            reason = f"HTTP {status}"
        except httpx.InvalidURL as error:
            raise _no_address(variable) from error
        except httpx.HTTPError as error:
            reason = type(error).__name__
        raise NucleusError(
            f"{variable}={url} does not answer ({reason}): start that server, or unset it"
        )


def _no_address(variable: str) -> NucleusError:
    return NucleusError(f"{variable} is no address: give one as {_EXAMPLES[variable]}")
