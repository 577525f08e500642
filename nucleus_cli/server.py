"""A Prefect server for one command, on loopback, with the database in the home.

It is used if PREFECT_API_URL names no server. The server that Prefect would start by itself outlives a
command that is killed, and a Ctrl-C that is meant for the command ends it. This server ends with the
command and never before.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click
import httpx

from nucleus_unet.engine import end_with, home_folder, ui_url
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import open_log

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
SERVER = (sys.executable, "-m", "nucleus_cli.server")
SAY_EVERY_S = 30.0
"""How often `wait_for` says that it still waits."""
GRACE_S = 5.0


def start_server() -> tuple[str, subprocess.Popen[bytes]]:
    """Start a server that ends with this process; returns the address of its API and its process."""
    # The socket is bound here and handed over, so that no other process can take the port.
    with socket.create_server((HOST, 0)) as listening, open_log(log_path()) as log:
        process = subprocess.Popen(
            [*SERVER, "api", str(listening.fileno()), str(os.getpid())],
            env=os.environ | {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own_pages()},
            stdout=log,
            stderr=log,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
        return f"http://{HOST}:{listening.getsockname()[1]}/api", process


def own_pages() -> str:
    """The pages that may call our server. By default Prefect allows the pages of any site."""
    return f"{ui_url('prefect')},{ui_url('prefect').replace(HOST, 'localhost')}"


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server responds, for as long as its process lives.

    The first start makes the database, which takes minutes on a slow disk.

    Raises
    ------
    NucleusError
        If the process ended.
    """
    started = said = time.monotonic()
    while process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/health").raise_for_status()
            return
        time.sleep(0.1)
        if (now := time.monotonic()) - said > SAY_EVERY_S:
            said = now
            click.echo(
                f"waiting for a server to start, since {now - started:.0f} s: {log}", err=True
            )
    raise NucleusError(f"The server at {url} ended. See {log}.")


def serve_api(descriptor: int, parent: int) -> None:
    """Serve on a listening socket until the parent process has ended."""
    end_with(parent, grace_s=GRACE_S)
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    _serve(app, sockets=[socket.socket(fileno=descriptor)])


def serve_pages(port: int, parent: int) -> None:
    """Serve Prefect's pages and API at a port until the parent process has ended."""
    end_with(parent, grace_s=GRACE_S)
    from prefect.server.api.server import create_app

    _serve(create_app(final=True), port=port)


def _serve(app: "ASGIApp", *, port: int = 0, sockets: list[socket.socket] | None = None) -> None:
    import uvicorn

    options = uvicorn.Config(
        guarded(app, own_pages().split(",")),
        host=HOST,
        port=port,
        log_level="info",
        access_log=False,
        lifespan="on",
    )
    uvicorn.Server(options).run(sockets=sockets)


def guarded(app: "ASGIApp", pages: Collection[str]) -> "ASGIApp":
    """Refuse requests from pages of other sites; browsers send the origin or the name of the site."""
    from starlette.responses import PlainTextResponse

    async def check(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] in ("http", "websocket"):
            sent = {name: value.decode("latin-1") for name, value in scope["headers"]}
            named, origin = sent.get(b"host", "").rpartition(":")[0], sent.get(b"origin")
            if named not in (HOST, "localhost") or (origin and origin not in pages):
                refusal = PlainTextResponse("only for the pages of this server", 403)
                return await refusal(scope, receive, send)
        await app(scope, receive, send)

    return check


def log_path() -> Path:
    """Log of the server that `start_server` starts."""
    return home_folder() / "own-prefect-server.log"


if __name__ == "__main__":
    serve = {"api": serve_api, "pages": serve_pages}[sys.argv[1]]
    serve(*map(int, sys.argv[2:]))
