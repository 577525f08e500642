import contextlib
import itertools
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from nucleus_unet.engine import home_in_use
from nucleus_unet.errors import NucleusError
from nucleus_unet.runs import store
from nucleus_unet.runs.store import (
    experiment_id,
    make_database,
    patiently,
    refused_by_mlflow,
    require_mlflow,
    run_url,
    runs_url,
    ui_address,
)


@pytest.mark.fault(
    "Disks and databases",
    "a kill while MLflow's database was made",
    "nothing: the next command makes it again",
)
def test_a_half_made_database_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home" / "mlflow.db"
    (path.parent / "mlflow.partial").mkdir(parents=True)
    with sqlite3.connect(path.parent / "mlflow.partial" / "mlflow.db") as half:
        half.execute("create table budget_policies (id integer)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    make_database()
    assert [found.name for found in path.parent.iterdir()] == ["mlflow.db"]
    client = MlflowClient(f"sqlite:///{path}")
    made = client.create_experiment("one")
    make_database()  # an existing database stays as it is
    assert client.get_experiment(made).name == "one"


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of version 0.2.0"])
def test_the_database_of_a_moved_home_finds_its_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    homes = [tmp_path / name for name in ("a", "a b", "a b/c")]
    elsewhere = (tmp_path / "other").as_uri()

    def use(home: Path) -> MlflowClient:
        monkeypatch.setenv("NUCLEUS_HOME", str(home))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        make_database()
        return MlflowClient(f"sqlite:///{home}/mlflow.db")

    client = use(homes[0])
    own = experiment_id(client)
    if not noted:
        client.delete_experiment_tag(own, store.HOME)
    other = client.create_experiment("other", elsewhere)
    runs = [client.create_run(experiment).info.run_id for experiment in (own, other)]
    client.log_text(runs[0], "kept", "a.txt")
    client.create_registered_model("m")
    client.create_model_version("m", f"{homes[0].as_uri()}/mlartifacts/m", runs[0])
    for before, home in itertools.pairwise(homes):
        if home.is_relative_to(before):  # into a folder of its own
            before = before.rename(tmp_path / "meanwhile")
            home.parent.mkdir()
        before.rename(home)
        for _ in "ab":  # the second time there is nothing to do
            client = use(home)
            assert client.get_experiment(own).artifact_location == f"{home.as_uri()}/mlartifacts"
            assert client.get_experiment(other).artifact_location == elsewhere
            uri = client.get_run(runs[0]).info.artifact_uri
            assert uri == f"{home.as_uri()}/mlartifacts/{runs[0]}/artifacts"
            assert client.get_run(runs[1]).info.artifact_uri.startswith(elsewhere)
            assert Path(client.download_artifacts(runs[0], "a.txt")).read_text() == "kept"
            source = client.get_model_version("m", "1").source
            assert source == f"{home.as_uri()}/mlartifacts/m"


def test_the_addresses_stay_while_a_process_uses_the_home(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{bare}/mlflow.db")
    make_database()
    client = MlflowClient(f"sqlite:///{bare}/mlflow.db")
    made = experiment_id(client)
    client.log_text(client.create_run(made).info.run_id, "kept", "a.txt")
    moved = bare.rename(bare.with_name("moved"))
    monkeypatch.setenv("NUCLEUS_HOME", str(moved))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    for used, place in ((True, bare), (False, moved)):
        with home_in_use() if used else contextlib.nullcontext():
            make_database()
        location = client.get_experiment(made).artifact_location
        assert location == f"{place.as_uri()}/mlartifacts"


def test_a_database_with_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?timeout=60")
    make_database()
    assert [found.name for found in tmp_path.iterdir() if found.suffix] == ["mlflow.db"]


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "postgresql://db/mlflow"])
def test_the_database_of_a_server_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    make_database()
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(NucleusError) as caught:
        make_database()
    assert str(caught.value) == (
        f"{tmp_path}/file cannot be created (File exists). Set MLFLOW_TRACKING_URI to a database in a "
        "folder that you can write."
    )


@pytest.mark.fault(
    "Disks and databases",
    "a database of another version of MLflow",
    "one line with the command that upgrades it",
)
def test_a_database_of_another_version_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    shutil.copy(database, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    require_mlflow()
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as changed:
        changed.execute("update alembic_version set version_num = '451aebb31d03'")
        changed.commit()
    # MLflow looks at the version when it opens a database for the first time.
    other = tmp_path / "other.db"
    (tmp_path / "mlflow.db").rename(other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    with pytest.raises(NucleusError) as caught:
        require_mlflow()
    assert str(caught.value) == (
        f"The MLflow database sqlite:///{other} was made by another version of MLflow. Back it up, "
        f"then run: mlflow db upgrade sqlite:///{other}"
    )


@pytest.mark.fault(
    "Disks and databases",
    "MLflow's database is damaged",
    "one line that names it: restore it from a backup",
)
def test_a_damaged_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged.db").write_text("garbage " * 100)
    uri = f"sqlite:///{tmp_path}/damaged.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(NucleusError) as caught:
        require_mlflow()
    assert str(caught.value) == (
        f"The MLflow database {uri}: file is not a database. Restore it from a backup."
    )


def locked(tries: int) -> Callable[[], int]:
    """A call that finds the database locked at its first tries, and returns the number of the try."""
    done = itertools.count(1)

    def call() -> int:
        number = next(done)
        if number <= tries:
            raise MlflowException(f"try {number}: database is locked", TEMPORARILY_UNAVAILABLE)
        return number

    return call


def test_a_call_waits_for_a_locked_database_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(store._logger, "warning", said.append)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert patiently(locked(2)) == 3
    call = locked(2)
    assert patiently(lambda: patiently(call)) == 3
    assert said == 2 * ["MLflow's database is locked by another program; waiting for it"]


def test_waiting_for_a_locked_database_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.0)
    with pytest.raises(MlflowException, match="try 1: "):
        patiently(locked(1))
    with pytest.raises(MlflowException, match="another error"):
        patiently(lambda: fail(MlflowException("another error", TEMPORARILY_UNAVAILABLE)))


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def server() -> Iterator[type[BaseHTTPRequestHandler]]:
    """A server that answers every request with its `status`."""

    class Answer(BaseHTTPRequestHandler):
        status = 200
        url = ""

        def do_GET(self) -> None:
            self.send_response(self.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        Answer.url = f"http://127.0.0.1:{server.server_port}"
        yield Answer
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            401,
            "rejected the login. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        (
            404,
            "is the address of another server or page (HTTP 404). Use an address like "
            "http://HOST:5000 or sqlite:////FOLDER/mlflow.db",
        ),
    ],
)
def test_a_server_that_refuses(
    server: Any, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    server.status = status
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with pytest.raises(NucleusError) as caught:
        require_mlflow()
    assert str(caught.value) == f"MLFLOW_TRACKING_URI={server.url} {said}"


def test_another_error_of_a_server_stays_as_it_is(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.status = 400
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with pytest.raises(MlflowException, match="400"):
        require_mlflow()


def test_a_refusal_is_an_answer_that_a_retry_would_not_change() -> None:
    refusal = MlflowException("no such tag", INVALID_PARAMETER_VALUE)
    assert refused_by_mlflow(refusal)
    assert not refused_by_mlflow(MlflowException("wait", TEMPORARILY_UNAVAILABLE))
    assert not refused_by_mlflow(ConnectionError("refused"))


# Experiments


def test_the_experiment_is_made_once(client: MlflowClient, folder: Path) -> None:
    made = experiment_id(client)
    assert experiment_id(client) == made
    found = client.get_experiment(made)
    assert found.name == "nucleus-unet"
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_experiment_of_the_standard_variable(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert client.get_experiment(experiment_id(client)).name == "other"


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+pysqlite"])
def test_artifacts_of_a_database_lie_in_the_home(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{driver}:///{folder}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", driver)
    found = client.get_experiment(experiment_id(client))
    assert found.artifact_location == (folder / "mlartifacts").as_uri()


def test_an_experiment_that_another_process_makes_at_the_same_time(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, answers = client.create_experiment("both"), [None]
    look = client.get_experiment_by_name
    monkeypatch.setattr(
        client, "get_experiment_by_name", lambda name: answers.pop() if answers else look(name)
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "both")
    assert experiment_id(client) == made
    assert answers == []


def test_a_deleted_experiment(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.delete_experiment(deleted := client.create_experiment("old"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    with pytest.raises(NucleusError) as caught:
        experiment_id(client)
    assert str(caught.value) == (
        "The MLflow experiment old was deleted. Restore it with mlflow experiments restore "
        f"--experiment-id {deleted}, or set MLFLOW_EXPERIMENT_NAME to another name."
    )


# Pages


def test_pages_of_local_runs_are_where_the_ui_serves_them(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_MLFLOW_PORT", "5055")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pages")
    made = client.create_experiment("pages")
    run_id = client.create_run(made).info.run_id
    assert ui_address() == "http://mlflow.localhost:5055"
    runs = f"http://mlflow.localhost:5055/#/experiments/{made}/runs"
    assert run_url(run_id) == f"{runs}/{run_id}?workflowType=machine_learning"
    assert runs_url() == f"{runs}?workflowType=machine_learning"


def test_the_pages_of_a_server_are_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow/team/")
    assert mlflow.get_tracking_uri() == "https://mlflow/team/"
    assert ui_address() == "https://mlflow/team"
