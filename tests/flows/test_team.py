"""Both servers on PostgreSQL with their log-ins, as deploy/ starts them, and two workers."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
USER, PASSWORD = "ann", "not a secret, and long enough"


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """Address of an empty PostgreSQL server on a socket and on loopback."""
    if not shutil.which("initdb") or not shutil.which("pg_ctl"):
        pytest.skip("PostgreSQL: put its initdb and pg_ctl on the PATH")
    # It does not run as root, and a socket's path is short.
    owner = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True, **owner).strip())  # type: ignore[call-overload]
    port = str(20000 + os.getpid() % 10000)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **owner)  # type: ignore[call-overload]

    run("initdb", "--pgdata", "data", "--username", "nucleus", "--auth", "trust")
    options = f"-p {port} -k {folder} -h 127.0.0.1"
    run("pg_ctl", "--pgdata", "data", "--wait", "--log", "log", "--options", options, "start")
    try:
        for name in ("prefect", "mlflow", "mlflow_auth"):
            run("createdb", "--host", "127.0.0.1", "--port", port, "--username", "nucleus", name)
        yield f"nucleus@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "--pgdata", "data", "--mode", "immediate", "stop")
        run("rm", "-r", str(folder))


def server(name: str) -> Any:
    """The command that starts a server at a port."""
    return lambda port: ["env", f"{name.upper()}_PORT={port}", str(DEPLOY / f"{name}-server.sh")]


@pytest.fixture
def team(place: Any, postgres: str, start_server: Any, make_team: Any, tmp_path: Path) -> Any:
    users = (DEPLOY / "mlflow-auth.ini.example").read_text()
    for before, after in (
        ("postgresql://nucleus:PASSWORD@127.0.0.1:5432", f"postgresql://{postgres}"),
        ("admin_username = USER", f"admin_username = {USER}"),
        ("admin_password = PASSWORD", f"admin_password = {PASSWORD}"),
    ):
        assert before in users
        users = users.replace(before, after)
    (tmp_path / "auth.ini").write_text(users)
    settings = place.environment | {
        "HOST": "127.0.0.1",
        "ALLOWED_HOSTS": "127.0.0.1:*",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}/prefect",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://{postgres}/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{PASSWORD}",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "PREFECT_UI_URL": "https://nuclei.example",
        "PREFECT_UI_API_URL": "https://nuclei.example/api",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://mlflow.example",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }

    return make_team(
        PREFECT_API_URL=start_server(server("prefect"), "/api", settings).url,
        MLFLOW_TRACKING_URI=start_server(server("mlflow"), "", settings).url,
        PREFECT_API_AUTH_STRING=f"{USER}:{PASSWORD}",
        MLFLOW_TRACKING_USERNAME=USER,
        MLFLOW_TRACKING_PASSWORD=PASSWORD,
    )


@pytest.mark.slow
@pytest.mark.fault(
    "Security",
    "log-ins of both servers",
    "they are in no log, tag, artifact, file of the home or command line",
)
def test_two_workers_on_postgres_and_one_retraining_at_a_time(team: Any, tmp_path: Path) -> None:
    for url in (
        f"{team.urls['PREFECT_API_URL']}/flow_runs/filter",
        team.urls["MLFLOW_TRACKING_URI"],
    ):
        assert httpx.post(url, json={}).status_code == 401
    done = team.place.nucleus("deploy", **team.urls)
    assert done.returncode == 0, done.stderr
    pages = team.client.get(team.urls["PREFECT_API_URL"].replace("/api", "/ui-settings"))
    assert pages.json()["api_url"] == "https://nuclei.example/api"
    seen = subprocess.check_output(["ps", "-eo", "args"], text=True)
    assert "mlflow server" in seen
    assert "postgresql://" not in seen
    team.work()
    team.work()
    for seed in (1, 2):
        values = {"epochs": 2, "steps_per_epoch": 5, "seed": seed}
        overrides = [f"training.{key}={value}" for key, value in values.items()]
        team.schedule_training(*overrides, test_data=str(team.place.test))
    team.wait(lambda: "Running" in [run["state_name"] for run in team.runs()])
    commands = subprocess.check_output(["ps", "-eo", "args"], text=True)
    team.wait(lambda: [run["state_name"] for run in team.runs()] == ["Completed"] * 2)
    first, second = sorted(team.runs(), key=lambda run: run["start_time"])
    assert first["end_time"] <= second["start_time"]
    versions = f"{team.urls['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/model-versions/search"
    found = httpx.get(versions, auth=(USER, PASSWORD)).raise_for_status().json()
    search = f"{team.urls['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search"
    runs = f"{team.urls['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs"
    for page, status in (("https://mlflow.example", 200), ("https://elsewhere.example", 403)):
        answer = httpx.post(
            search, auth=(USER, PASSWORD), json={"max_results": 1}, headers={"origin": page}
        )
        assert answer.status_code == status
    assert [version["version"] for version in found["model_versions"]] == ["2", "1"]
    logged = httpx.post(f"{runs}/search", auth=(USER, PASSWORD), json={"experiment_ids": ["1"]})
    logged.raise_for_status()
    assert len(logged.json()["runs"]) == 2
    said = [done.stdout, done.stderr, commands, logged.text, str(team.post("logs/filter", {}))]
    assert [text for text in said if PASSWORD in text] == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if PASSWORD.encode() in path.read_bytes()] == ["auth.ini"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "api", "asks", "refused"),
    [  # browsers ask Prefect beforehand; MLflow looks at the call itself
        ("prefect", "/api", ("OPTIONS", "/flow_runs/count"), 400),
        ("mlflow", "", ("POST", "/api/2.0/mlflow/experiments/search"), 403),
    ],
)
def test_a_server_starts_by_loopback_env(
    name: str,
    api: str,
    asks: tuple[str, str],
    refused: int,
    place: Any,
    start_server: Any,
    tmp_path: Path,
) -> None:
    lines = (DEPLOY / "loopback.env").read_text().replace(".nucleus/", f"{tmp_path}/").splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    url = start_server(server(name), api, place.environment | settings).url
    assert url.startswith("http://127.0.0.1:")
    method, path = asks
    for page, status in (("http://127.0.0.1:4200", 200), ("https://elsewhere.example", refused)):
        headers = {"Origin": page, "Access-Control-Request-Method": "POST"}
        done = httpx.request(method, url + path, headers=headers, json={"max_results": 1})
        assert done.status_code == status
    assert {path.name for path in tmp_path.iterdir()} & {"prefect-server", "mlflow-server.db"}


def test_mlflow_does_not_start_without_its_stores() -> None:
    settings = {"HOST": "127.0.0.1", "WITHOUT_LOGIN": "1"}
    command = [str(DEPLOY / "mlflow-server.sh")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode != 0
    assert "MLFLOW_BACKEND_STORE_URI: not set. Set the address of the database." in done.stderr


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("prefect", "PREFECT_SERVER_API_AUTH_STRING"),
        ("mlflow", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
    ],
)
@pytest.mark.fault(
    "Security",
    "the example secrets of servers.env",
    "the server does not start",
)
def test_a_server_does_not_start_with_the_example_secrets(name: str, secret: str) -> None:
    lines = (DEPLOY / "servers.env.example").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    command = [str(DEPLOY / f"{name}-server.sh")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"servers.env still has the example {secret}. Set your own.\n"


def test_mlflow_does_not_start_with_the_example_passwords() -> None:
    users = str(DEPLOY / "mlflow-auth.ini.example")
    settings = {
        "HOST": "127.0.0.1",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_AUTH_CONFIG_PATH": users,
    }
    command = [str(DEPLOY / "mlflow-server.sh")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"{users} still has the example PASSWORD. Set your own.\n"


@pytest.mark.parametrize(
    "settings", [{"HOST": "127.0.0.1"}, {"HOST": "0.0.0.0", "WITHOUT_LOGIN": "1"}]
)
@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("prefect", "PREFECT_SERVER_API_AUTH_STRING"),
        ("mlflow", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
    ],
)
@pytest.mark.fault(
    "Security",
    "a server without log-ins at an address that others reach",
    "it does not start",
)
def test_a_server_without_logins_starts_only_on_loopback(
    name: str, secret: str, settings: dict[str, str]
) -> None:
    command = [str(DEPLOY / f"{name}-server.sh")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode != 0
    expected = f"{secret}: not set. Set it, or use HOST=127.0.0.1 and WITHOUT_LOGIN=1."
    assert expected in done.stderr
