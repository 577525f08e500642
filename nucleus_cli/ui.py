"""Both UIs on loopback, over the databases of the home."""

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
from nucleus_unet.engine.home import home_folder, ui_url
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked
from nucleus_unet.runs import records, tracking

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve_uis(run_id: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or until one of the servers ends.

    Raises
    ------
    NucleusError
        A port is taken, the run is unknown, or a server ended by itself.
    """
    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    prefect = os.environ.get("PREFECT_UI_URL") or api.removesuffix("/api") or ui_url("prefect")
    lines = [f"Prefect  {prefect}", f"MLflow   {tracking.ui_address()}"]
    if run_id:
        tracking.make_database()
        tracking.require_mlflow()
        tags = records.require_run(run_id)
        flow_run = f"/runs/flow-run/{tags.get('prefect.flow_run_id', '')}"
        lines = [f"Prefect  {prefect}{flow_run}", f"MLflow   {tracking.run_url(run_id)}"]
    commands = {}
    if "PREFECT_API_URL" not in os.environ:
        commands["prefect"] = [
            *("-m", "prefect", "server", "start", "--host", "127.0.0.1"),
            *("--port", _require_port("prefect")),
        ]
    if not os.environ["MLFLOW_TRACKING_URI"].startswith(("http://", "https://")):
        commands["mlflow"] = [
            *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", _require_port("mlflow")),
            *("--workers", "1"),
        ]
    for end in ENDS:
        signal.signal(end, signal.default_int_handler)
    # At another port than its own Prefect's pages would ask the usual one all the same.
    environment = os.environ | {
        # not among the arguments, which others see
        "MLFLOW_BACKEND_STORE_URI": os.environ["MLFLOW_TRACKING_URI"],
        "PREFECT_UI_API_URL": f"{ui_url('prefect')}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own_pages(),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        # Two that make the same database at once both fail.
        with locked(home_folder() / "locks" / "databases"):
            tracking.make_database()
            for name, command in commands.items():
                log = _log(name).open("wb")
                # A session of its own: Ctrl-C comes to this process, which ends them in order.
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
        last = "Ctrl-C ends what is served here." if processes else "Served elsewhere."
        say("\n".join([*lines, last]))
        while processes:
            time.sleep(1)
            for name, process in processes.items():
                _check(name, process)
    except KeyboardInterrupt:
        say("")
    finally:
        for end in ENDS:  # another Ctrl-C would leave servers behind
            signal.signal(end, signal.SIG_IGN)
        for process in processes.values():
            # Of one that ended its workers may be left.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:  # a page that is open may hold it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _require_port(tool: str) -> str:
    """The port of a tool's UI, which must be free."""
    port = urlsplit(ui_url(tool)).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise NucleusError(
                f"port {port}, for the {tool} UI, is in use: stop what listens there, or set "
                f"NUCLEUS_{tool.upper()}_PORT"
            ) from error
    return str(port)


def _check(tool: str, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise NucleusError(f"the {tool} server ended: see {_log(tool)}")


def _log(tool: str) -> Path:
    return home_folder() / f"{tool}-server.log"
