"""Count the failed runs that Prefect's server on SQLite does not report while other runs report to it.

    python benchmarks/prefect_load.py
    python benchmarks/prefect_load.py --runs 1 4 16 --seconds 60

A server is started on a new SQLite database, with the automations of `nucleus deploy` and a webhook. So
many runs send a heartbeat, a line of log and a task run that ends, each second; a real run sends as much
in half a minute. Every five seconds another run fails, which the webhook should be told.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

FAILS_EVERY_S = 5
LAST_WORD_S = 60
"""Time that the server has, at the end, to report what has failed."""
BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
Webhook(name="load", url=%r, json_data={"subject": "{{subject}}"}).save("load")
"""


@contextmanager
def webhook() -> Iterator[tuple[str, list[str]]]:
    """The address of a webhook, and the subjects that it was sent."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["subject"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", told
        server.shutdown()


@contextmanager
def prefect_server(folder: Path) -> Iterator[tuple[str, dict[str, str], Path]]:
    """The address of a server's API, the environment of its clients, and its log."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    url, log = f"http://127.0.0.1:{port}/api", folder / "log"
    environment = os.environ | {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": url,
        "NUCLEUS_HOME": str(folder / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", port]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            while True:
                try:
                    httpx.get(f"{url}/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield url, environment, log
        finally:
            process.terminate()
            process.wait()


class Runs:
    """Runs of a deployment, as its server sees them."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=120)
        self.deployment = self._get("deployments/name/predict/predict")

    def _get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def _post(self, path: str, value: Any) -> Any:
        return self.client.post(path, json=value).raise_for_status().json()

    def start(self) -> str:
        """Start a run; returns its id."""
        path = f"deployments/{self.deployment['id']}/create_flow_run"
        run_id = str(self._post(path, {"state": {"type": "SCHEDULED"}})["id"])
        for kind in ("PENDING", "RUNNING"):
            self.set_state(run_id, kind)
        return run_id

    def set_state(self, run_id: str, kind: str) -> None:
        self._post(f"flow_runs/{run_id}/set_state", {"state": {"type": kind, "name": kind.title()}})

    def report(self, run_id: str) -> None:
        """A heartbeat, a line of log and a task run that ends."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        event = {
            "event": "prefect.flow-run.heartbeat",
            "occurred": now,
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
            "related": [
                {"prefect.resource.id": "prefect.tag.nucleus-unet", "prefect.resource.role": "tag"},
                {
                    "prefect.resource.id": f"prefect.deployment.{self.deployment['id']}",
                    "prefect.resource.role": "deployment",
                },
            ],
            "id": os.urandom(16).hex(),
        }
        self.client.post("events", json=[event]).raise_for_status()
        line = {"name": "load", "level": 20, "message": "a line", "timestamp": now}
        self.client.post("logs/", json=[line | {"flow_run_id": run_id}]).raise_for_status()
        task = {"flow_run_id": run_id, "task_key": "load", "dynamic_key": os.urandom(8).hex()}
        made = self._post("task_runs/", task | {"state": {"type": "RUNNING", "name": "Running"}})
        ended = {"state": {"type": "COMPLETED", "name": "Completed"}, "force": True}
        self._post(f"task_runs/{made['id']}/set_state", ended)


def measure(runs_at_once: int, seconds: float) -> tuple[int, int, int, int]:
    """Load a new server. Returns reports, failed runs, how many were told, and locked writes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        webhook() as (hook, told),
        prefect_server(Path(folder)) as (url, environment, log),
    ):
        subprocess.run([sys.executable, "-c", BLOCK % hook], env=environment, check=True)
        deploy = [sys.executable, "-m", "nucleus_cli.main", "deploy", "--notify"]
        deploy += ["custom-webhook/load"]
        subprocess.run(deploy, env=environment, check=True, stdout=subprocess.DEVNULL)
        until = time.monotonic() + seconds

        def work(_: int) -> int:
            runs, reports = Runs(url), 0
            run_id = runs.start()
            while time.monotonic() < until:
                begun = time.monotonic()
                runs.report(run_id)
                reports += 1
                time.sleep(max(0.0, 1 - (time.monotonic() - begun)))
            runs.set_state(run_id, "COMPLETED")
            return reports

        with ThreadPoolExecutor(runs_at_once) as pool:
            working = [pool.submit(work, number) for number in range(runs_at_once)]
            failing, failed = Runs(url), 0
            while time.monotonic() < until:
                failing.set_state(failing.start(), "FAILED")
                failed += 1
                time.sleep(FAILS_EVERY_S)
            reports = sum(one.result() for one in working)
        last = time.monotonic() + LAST_WORD_S
        while len(told) < failed and time.monotonic() < last:
            time.sleep(1)
        locked = len(
            re.findall(r"^sqlite3\.OperationalError: database is locked", log.read_text(), re.M)
        )
        return reports, failed, len(told), locked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 4, 16], help="runs at once")
    parser.add_argument("--seconds", type=float, default=60, help="of each load; default 60")
    arguments = parser.parse_args()
    print("runs at once  reports a second  failed  reported  locked writes")
    for count in arguments.runs:
        reports, failed, told, locked = measure(count, arguments.seconds)
        rate = reports / arguments.seconds
        print(f"{count:12}  {rate:16.1f}  {failed:6}  {told:8}  {locked:13}", flush=True)


if __name__ == "__main__":
    main()
