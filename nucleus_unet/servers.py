"""The servers that the environment names."""

import os
import re

import httpx

from nucleus_unet.errors import NucleusError


def check_servers() -> None:
    """See that the servers that the environment names answer.

    Raises
    ------
    NucleusError
        One does not.
    """
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        url = os.environ.get(variable, "").rstrip("/")
        if url.startswith("http"):
            try:
                httpx.get(f"{url}/health", timeout=10).raise_for_status()
            except httpx.HTTPError as error:
                shown = without_credentials(url)
                reason = str(error).replace(url, shown)
                raise NucleusError(
                    f"{variable}={shown} does not answer ({reason}): start that server, or unset it"
                ) from None  # the error names the password


def without_credentials(address: str) -> str:
    """An address as it may be shown: without user and password.

    Examples
    --------
    >>> without_credentials("postgresql://mlflow:secret@db:5432/mlflow")
    'postgresql://db:5432/mlflow'
    >>> without_credentials("sqlite:////srv/mlflow.db")
    'sqlite:////srv/mlflow.db'
    """
    return re.sub("^([^/]+://)[^/?#]*@", r"\1", address)
