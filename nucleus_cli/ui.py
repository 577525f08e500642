"""The pages of Prefect and MLflow on loopback, with the databases in the home."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from nucleus_cli.server import GRACE_S, own_pages, wait_for
from nucleus_unet.engine import home_folder, ui_url
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked
from nucleus_unet.runs import records, store

NAMES = ("127.0.0.1", "localhost", "mlflow.localhost")
"""Names of this machine that MLflow's server answers to."""
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve_uis(run_id: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, or until one of the servers ends.

    Parameters
    ----------
    run_id : str, optional
        A run in MLflow whose pages are named.
    say : callable
        Takes the addresses once they can be opened.

    Raises
    ------
    NucleusError
        If a port is in use, if the run is unknown, or if a server ended by itself.
    """
    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    prefect = os.environ.get("PREFECT_UI_URL") or api.removesuffix("/api") or ui_url("prefect")
    lines = [f"Prefect  {prefect}", f"MLflow   {store.ui_address()}"]
    if run_id:
        store.make_database()
        store.require_mlflow()
        tags = records.require_run(run_id)
        flow_run = f"/runs/flow-run/{tags.get('prefect.flow_run_id', '')}"
        lines = [f"Prefect  {prefect}{flow_run}", f"MLflow   {store.run_url(run_id)}"]
    commands = {}
    if "PREFECT_API_URL" not in os.environ:
        commands["prefect"] = [
            *("-m", "nucleus_cli.server", "pages"),
            *(_require_port("prefect"), str(os.getpid())),
        ]
    if not os.environ["MLFLOW_TRACKING_URI"].startswith(("http://", "https://")):
        commands["mlflow"] = [
            *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", _require_port("mlflow")),
            *("--workers", "1", "--allowed-hosts", ",".join(f"{name}:*" for name in NAMES)),
        ]
    for end in ENDS:
        signal.signal(end, signal.default_int_handler)
    # Without PREFECT_UI_API_URL the pages ask the usual port, whatever their own port is.
    environment = os.environ | {
        # not an argument, because other users can read arguments
        "MLFLOW_BACKEND_STORE_URI": os.environ["MLFLOW_TRACKING_URI"],
        # MLflow's evaluation jobs take 245 MB each, and nothing here uses them.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_UI_API_URL": f"{ui_url('prefect')}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own_pages(),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        # Two processes that make the same database at once both fail.
        with locked(home_folder() / "locks" / "databases"):
            store.make_database()
            if "mlflow" in commands and not run_id:
                lines[1] = f"MLflow   {store.runs_url()}"
            for name, command in commands.items():
                log = _log(name).open("wb")
                # In a session of its own, so that Ctrl-C reaches only this process, which ends them.
                processes[name] = subprocess.Popen(
                    [sys.executable, *command],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            for name, process in processes.items():
                api = "/api" if name == "prefect" else ""
                wait_for(f"{ui_url(name)}{api}", process, _log(name))
        last = "Press Ctrl-C to stop." if processes else "Both are served elsewhere."
        say("\n".join([*lines, last]))
        while processes:
            time.sleep(1)
            for name, process in processes.items():
                _check(name, process)
    except KeyboardInterrupt:
        say("")
    finally:
        for end in ENDS:  # a second Ctrl-C would leave servers behind
            signal.signal(end, signal.SIG_IGN)
        for process in processes.values():
            # A server that ended may have left workers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:  # an open page may keep it alive
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _require_port(tool: str) -> str:
    """The port of a tool's pages, which must be free."""
    port = urlsplit(ui_url(tool)).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise NucleusError(
                f"Port {port} is in use, so the pages of {tool} cannot be served. Stop the program "
                f"that uses the port, or set NUCLEUS_{tool.upper()}_PORT to another port."
            ) from error
    return str(port)


def _check(tool: str, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise NucleusError(f"The {tool} server ended. See {_log(tool)}.")


def _log(tool: str) -> Path:
    return home_folder() / f"{tool}-server.log"
