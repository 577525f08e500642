import re
import signal
import socket
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from nucleus_unet.errors import NucleusError


@pytest.mark.fault(
    "Servers and workers",
    "a server of nucleus ui ends by itself",
    "one line that names the log of the server",
)
def test_a_server_that_ends_by_itself_is_an_error(bare: Path) -> None:
    from nucleus_cli import ui

    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(
            NucleusError, match=rf"The mlflow server ended\. See {bare}/mlflow-serv"
        ):
            ui._check("mlflow", process)


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        return a.getsockname()[1], b.getsockname()[1]


@pytest.mark.slow
def test_both_uis_serve_the_run_until_ctrl_c(retrained: Any) -> None:
    place, run_id = retrained.place, retrained.run_id
    prefect, mlflow = free_ports()
    ports = {"NUCLEUS_PREFECT_PORT": str(prefect), "NUCLEUS_MLFLOW_PORT": str(mlflow)}
    process = subprocess.Popen(
        [sys.executable, "-m", "nucleus_cli.main", "ui", run_id],
        env=place.environment | ports,
        cwd=place.home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = Timer(120, process.terminate)
    limit.start()
    assert process.stdout is not None
    try:
        lines = takewhile(lambda line: line != "Press Ctrl-C to stop.\n", process.stdout)
        said = "".join(lines)
        [run_page] = re.findall(rf"http://mlflow\.localhost:{mlflow}/\S+/runs/{run_id}\S*\n", said)
        [flow_run] = re.findall(r"/runs/flow-run/(\S+)\n", said)
        children = psutil.Process(process.pid).children(recursive=True)
        for page in (f"http://127.0.0.1:{prefect}/runs/flow-run/{flow_run}", run_page):
            # Every browser knows names below localhost; not every machine does.
            headers = {"accept": "text/html", "host": urlsplit(page).netloc}
            answer = httpx.get(
                page.strip().replace("mlflow.localhost", "127.0.0.1"), headers=headers
            )
            assert answer.is_success
            assert "text/html" in answer.headers["content-type"]
        # Where the pages themselves ask.
        found = httpx.get(f"http://127.0.0.1:{prefect}/ui-settings").json()
        assert found["api_url"] == f"http://127.0.0.1:{prefect}/api"
        found = httpx.get(f"http://127.0.0.1:{prefect}/api/flow_runs/{flow_run}").json()
        assert found["state_type"] == "COMPLETED"
        found = httpx.get(
            f"http://127.0.0.1:{mlflow}/api/2.0/mlflow/runs/get", params={"run_id": run_id}
        ).json()
        assert found["run"]["info"]["status"] == "FINISHED"
        assert f"http://127.0.0.1:{prefect}/runs/flow-run/{flow_run}" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stdout.read()
        assert len(children) >= 2
        # Where the first process of a container does not reap, an ended process stays as a zombie.
        assert [p for p in children if p.is_running() and p.status() != "zombie"] == []
    finally:
        limit.cancel()
        process.terminate()  # which ends the servers too, as Ctrl-C does
        process.wait(60)
