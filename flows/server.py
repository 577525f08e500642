"""A Prefect server for one command where none is named: on loopback, over the home's database.

The server that Prefect would start by itself outlives a command that is killed, and is ended by a
Ctrl-C that is meant for the command. This one ends with the command, and with nothing else.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from nucleus_unet.errors import NucleusError
from nucleus_unet.home import home
from nucleus_unet.isolation import end_with

HOST = "127.0.0.1"


def start() -> tuple[str, subprocess.Popen[bytes]]:
    """Start a server that ends with this process; the address of its API, and its process."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    with _log().open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(port), str(os.getpid())],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return f"http://{HOST}:{port}/api", process


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when a server answers.

    Raises
    ------
    NucleusError
        It has ended.
    """
    while process.poll() is None:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise NucleusError(f"Prefect's local server ended: see {_log()}")


def serve(port: int, parent: int) -> None:
    """Serve until the parent process has ended."""
    end_with(parent)
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    uvicorn.run(app, host=HOST, port=port, log_level="error", lifespan="on")


def _log() -> Path:
    return home() / "own-prefect-server.log"


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
