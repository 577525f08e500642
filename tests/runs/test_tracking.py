import contextlib
import json
import sqlite3
import uuid
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes
from nucleus_unet.network.backend import usable_cores
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.reproduction import LoggedDataset
from nucleus_unet.runs.source import Source

DIGEST = "0123456789abcdef" * 4
SET = LoggedDataset(["/raw/set.zip"], [{"id": "a", "image_sha256": DIGEST}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with an MLflow database of its own, from a checkout that was changed."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUCLEUS_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        from nucleus_unet.runs import tracking

        patch.setattr(tracking, "checkout_source", lambda: Source("c0ffee", "+changed\n"))
        yield home


@pytest.fixture(scope="module")
def tracking(folder: Path) -> Any:
    from nucleus_unet.runs import tracking

    return tracking


@pytest.fixture(scope="module")
def records(tracking: Any) -> Any:
    from nucleus_unet.runs import records

    return records


@pytest.fixture(scope="module")
def client(tracking: Any) -> Any:
    return tracking.MlflowClient()


def test_a_database_of_which_half_was_made_is_made_anew(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "home" / "mlflow.db"
    (path.parent / "mlflow.partial").mkdir(parents=True)
    with sqlite3.connect(path.parent / "mlflow.partial" / "mlflow.db") as half:
        half.execute("create table budget_policies (id integer)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    tracking.make_database()
    assert [found.name for found in path.parent.iterdir()] == ["mlflow.db"]
    client = tracking.MlflowClient(f"sqlite:///{path}")
    made = client.create_experiment("one")
    tracking.make_database()  # leaves one that is there as it is
    assert client.get_experiment(made).name == "one"


def test_a_database_with_settings(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?timeout=60")
    tracking.make_database()
    assert [found.name for found in tmp_path.iterdir() if found.suffix] == ["mlflow.db"]


def test_a_database_where_no_folder_can_be(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(
        NucleusError, match=r"file: cannot be created .*; set MLFLOW_TRACKING_URI to"
    ):
        tracking.make_database()


def test_a_database_of_another_version_of_mlflow(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.make_database()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    with pytest.raises(
        NucleusError, match=f"{uri} was made by another .* mlflow db upgrade {uri}$"
    ):
        tracking.require_mlflow()


def opened(tracking: Any, recipe: Recipe, note: str = "", work: str = "", **tags: str) -> Any:
    """A run; of work of its own, where none is named."""
    return tracking.open_run("retrain", recipe, "cells", tags, note, work or uuid.uuid4().hex)


@pytest.fixture(scope="module")
def logged(tracking: Any, tiny: Recipe, folder: Path) -> Any:
    """A run in which a bit of everything is logged."""
    (folder / "note.txt").write_text("note")
    with opened(tracking, tiny, "[in Prefect](http://p)", extra="1") as run:
        tracking.log_dataset(run, "set", SET, DIGEST, "training", {"images": 3})
        for step in (1, 2):
            tracking.log_metrics(run, {"loss": 1 / step, "dice": step}, step=step)
        tracking.log_tags(run, {"stage.train": DIGEST})
        tracking.log_files(run, "", [folder / "note.txt"])
        tracking.log_files(run, "notes", [folder / "note.txt"])
        tracking.log_bytes(run, "curve.png", b"png")
        tracking.log_bytes(run, "pictures/best.png", b"best")
        tracking.log_json(run, "split.json", {"training": ["a"]})
        tracking.log_json(run, "history.json", [{"loss": 0.5}])
    return run


@pytest.fixture(scope="module")
def failed(tracking: Any, tiny: Recipe) -> str:
    """Id of a run that ended with an error."""
    with contextlib.suppress(RuntimeError), opened(tracking, tiny) as run:
        tracking.log_tags(run, {"stage.train": "of a run that failed"})
        raise RuntimeError("no disk")
    return str(run.id)


def artifact(client: Any, run_id: str, name: str) -> str:
    uri = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    return Path(uri, name).read_text()


def test_a_run_has_the_recipe_as_parameters_and_file(
    client: Any, logged: Any, tiny: Recipe
) -> None:
    run = client.get_run(logged.id)
    assert run.data.params == {key: str(value) for key, value in tiny.flat().items()}
    assert run.data.params["network.dropout"] == "[0.2, 0.2]"
    assert Recipe.model_validate_json(artifact(client, logged.id, "recipe.json")) == tiny


def test_a_run_has_tags_and_ends_finished(client: Any, logged: Any, tiny: Recipe) -> None:
    run = client.get_run(logged.id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("retrain tiny cells 20")
    expected = {
        "kind": "retrain",
        "recipe": "tiny",
        "recipe.digest": tiny.digest(),
        "source.commit": "c0ffee",
        "source.dirty": "true",
        "extra": "1",
    }
    assert run.data.tags.items() >= expected.items()


def test_a_changed_checkout_is_logged_as_a_patch(client: Any, logged: Any) -> None:
    assert artifact(client, logged.id, "source.diff") == "+changed\n"


def test_packages_are_logged_with_their_versions(client: Any, logged: Any) -> None:
    lines = artifact(client, logged.id, "packages.txt").splitlines()
    assert "mlflow==3.17.2" in lines
    assert all(line.count("==") == 1 for line in lines)


def test_a_data_set_is_an_input_and_its_whole_digest_a_tag(client: Any, logged: Any) -> None:
    run = client.get_run(logged.id)
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("set", DIGEST[:36])
    assert json.loads(entry.dataset.source) == {"uri": "/raw/set.zip"}
    assert json.loads(entry.dataset.profile) == {"images": 3}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    assert run.data.tags["dataset.training"] == DIGEST


def test_metrics_keep_their_steps(client: Any, logged: Any) -> None:
    for name, expected in {"loss": [(1, 1.0), (2, 0.5)], "dice": [(1, 1.0), (2, 2.0)]}.items():
        history = client.get_metric_history(logged.id, name)
        assert [(m.step, m.value) for m in history] == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("note.txt", "note"),
        ("notes/note.txt", "note"),
        ("curve.png", "png"),
        ("pictures/best.png", "best"),
    ],
)
def test_files_and_bytes_are_artifacts_at_their_paths(
    client: Any, logged: Any, name: str, content: str
) -> None:
    assert artifact(client, logged.id, name) == content


def test_json_is_an_artifact(client: Any, logged: Any) -> None:
    assert json.loads(artifact(client, logged.id, "split.json")) == {"training": ["a"]}


def test_artifacts_lie_below_the_home(client: Any, logged: Any, folder: Path) -> None:
    uri = client.get_run(logged.id).info.artifact_uri
    assert uri.startswith((folder / "mlartifacts").as_uri())


def test_a_run_that_fails_says_why(client: Any, failed: str) -> None:
    run = client.get_run(failed)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "RuntimeError: no disk"
    assert run.data.tags["mlflow.note.content"] == "**Failed**: RuntimeError: no disk"


def test_a_description_grows_by_paragraphs(tracking: Any, client: Any, logged: Any) -> None:
    tracking.describe(logged.id, "**Good**")
    note = client.get_run(logged.id).data.tags["mlflow.note.content"]
    assert note == "[in Prefect](http://p)\n\n**Good**"


def test_the_page_of_a_local_run_is_where_the_ui_serves(
    tracking: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_MLFLOW_PORT", "5055")
    page = tracking.run_url(logged.id)
    assert page.startswith("http://127.0.0.1:5055/#/experiments/")
    assert page.endswith(f"/runs/{logged.id}")


def test_the_first_finished_run_with_a_tag(tracking: Any, logged: Any, failed: str) -> None:
    assert tracking.first_finished_run("stage.train", DIGEST) == logged.id
    assert tracking.first_finished_run("stage.train", "of a run that failed") is None


def test_the_tags_of_a_run_that_is_there(records: Any, logged: Any) -> None:
    assert records.require_run(logged.id)["extra"] == "1"


def test_the_record_of_a_run_has_all_that_decided_it(
    records: Any, logged: Any, tiny: Recipe
) -> None:
    record = records.fetch_record(logged.id)
    assert Recipe.model_validate(record.recipe) == tiny
    assert record.packages["mlflow"] == "3.17.2"
    assert record.machine.items() >= {"cores": str(usable_cores())}.items()
    assert (record.commit, record.diff) == ("c0ffee", "+changed\n")
    assert record.data == {"training": SET}
    assert record.tags["extra"] == "1"
    assert record.metrics["loss"] == 0.5
    assert record.history == [{"loss": 0.5}]


def test_an_artifact_that_is_not_there_is_named(records: Any, logged: Any) -> None:
    assert records.fetch_artifact(logged.id, "notes/note.txt").read_text() == "note"
    with pytest.raises(NucleusError, match=f"^run {logged.id} has no artifact absent.txt: it did"):
        records.fetch_artifact(logged.id, "absent.txt")


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run"])
def test_an_unknown_run_is_refused(records: Any, run_id: str) -> None:
    with pytest.raises(NucleusError, match=f"^no run {run_id} at sqlite:.*nucleus ui") as error:
        records.require_run(run_id)
    assert "\n" not in str(error.value)


def test_a_run_without_a_model_is_refused(records: Any, failed: str) -> None:
    with pytest.raises(NucleusError, match=f"^run {failed} has no model: .*choose one"):
        records.fetch_model(failed)


@pytest.mark.parametrize("tag", ["[1", "[]", '{"recipe.json": "00"}'])
def test_a_model_whose_files_cannot_be_checked_is_refused(
    tracking: Any, records: Any, logged: Any, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    monkeypatch.setattr(records, "require_run", lambda run_id: {tracking.MODEL_FILES: tag})
    with pytest.raises(NucleusError, match=f"^run {logged.id}: its tag model.files is damaged"):
        records.fetch_model(logged.id)


def test_a_server_that_fails_is_not_told_as_a_missing_run_or_artifact(
    records: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("database is locked")

    store = "mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.download_artifacts"
    monkeypatch.setattr(store, fail)
    with pytest.raises(MlflowException, match="Failed to download"):
        records.fetch_artifact(logged.id, "notes/note.txt")
    monkeypatch.setattr("mlflow.MlflowClient.get_run", fail)
    with pytest.raises(MlflowException, match="database is locked"):
        records.require_run(logged.id)


def test_a_damaged_database_is_told_in_a_line(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged.db").write_text("garbage " * 100)
    uri = f"sqlite:///{tmp_path}/damaged.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = tracking.MlflowClient
    monkeypatch.setattr(tracking, "MlflowClient", lambda: client(uri))
    with pytest.raises(NucleusError, match=r"damaged.db cannot be used \(file is not a database\)"):
        tracking.require_mlflow()


def test_another_experiment_by_the_standard_variable(
    tracking: Any, client: Any, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    with opened(tracking, tiny) as run:
        pass
    experiment = client.get_run(run.id).info.experiment_id
    assert client.get_experiment(experiment).name == "other"


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+pysqlite"])
def test_artifacts_of_a_database_lie_in_the_home(
    tracking: Any, folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    uri = f"{driver}:///{folder}/mlflow.db"
    monkeypatch.setattr(tracking.mlflow, "get_tracking_uri", lambda: uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", driver)
    found = client.get_experiment(tracking._experiment(client))
    assert found.artifact_location == (folder / "mlartifacts").as_uri()


def test_an_experiment_that_another_process_makes_at_the_same_time(
    tracking: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, answers = client.create_experiment("both"), [None]
    look = client.get_experiment_by_name
    monkeypatch.setattr(
        client, "get_experiment_by_name", lambda name: answers.pop() if answers else look(name)
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "both")
    assert tracking._experiment(client) == made
    assert answers == []


def test_a_deleted_experiment_is_told_with_the_ways_out(
    tracking: Any, client: Any, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.delete_experiment(deleted := client.create_experiment("old"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    way_out = f"MLFLOW_EXPERIMENT_NAME to another, or .* restore --experiment-id {deleted}"
    with pytest.raises(NucleusError, match=way_out), opened(tracking, tiny):
        pytest.fail("it is not there")


def test_a_run_goes_on_after_its_model_is_logged(
    tracking: Any, client: Any, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tmp_path / "model.keras"
    network.write_bytes(b"weights")
    logged = SimpleNamespace(model_id="m-1")
    pyfunc = import_module("mlflow.pyfunc")  # `mlflow.pyfunc` itself may be a loader of it
    monkeypatch.setattr(pyfunc, "log_model", lambda **_: logged)
    with opened(tracking, tiny) as run:
        assert tracking.log_model(run, tiny, network) == "m-1"
        assert client.get_run(run.id).info.status == "RUNNING"
        files = json.loads(client.get_run(run.id).data.tags["model.files"])
        assert files["model.keras"] == sha256_bytes(b"weights")
        assert files["recipe.json"] == sha256_bytes(tiny.model_dump_json(indent=1).encode())
    assert client.get_run(run.id).info.status == "FINISHED"


# Work that is taken up again


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (RuntimeError("no disk"), "FAILED", "Failed"),
        (StoppedError("after 7 steps"), "KILLED", "Stopped"),
        (KeyboardInterrupt(), "KILLED", "Stopped"),
    ],
)
def test_the_next_attempt_goes_on_in_the_same_run(
    tracking: Any, client: Any, tiny: Recipe, error: BaseException, status: str, word: str
) -> None:
    work = uuid.uuid4().hex
    with contextlib.suppress(type(error)), opened(tracking, tiny, "first", work, flow="a") as run:
        tracking.log_metrics(run, {"loss": 0.5}, step=1)
        raise error
    assert client.get_run(run.id).info.status == status
    with opened(tracking, tiny, "second", work, flow="b") as again:
        assert (again.id, again.attempt) == (run.id, 2)
        during = client.get_run(run.id)
        assert during.info.status == "RUNNING"
        assert "failure" not in during.data.tags
        tracking.log_metrics(again, {"loss": 0.25}, step=1)
        tracking.log_metrics(again, {"loss": 0.125}, step=2)
    after = client.get_run(run.id)
    assert after.info.status == "FINISHED"
    assert after.data.tags.items() >= {"attempt": "2", "work": work, "flow": "b"}.items()
    note = after.data.tags["mlflow.note.content"]
    assert note.startswith(f"first\n\n**{word}**: ")
    assert note.endswith("\n\nAttempt 2: second")
    # A point that was there stays as it was, and once.
    points = client.get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.125)]


@pytest.mark.parametrize("error", [NucleusError("training diverged"), KeyboardInterrupt()])
def test_what_ended_a_run_is_told_where_mlflow_fails_too(
    tracking: Any, tiny: Recipe, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise MlflowException("the disk is full")

    monkeypatch.setattr("mlflow.MlflowClient.set_tag", fail)
    with pytest.raises(type(error)), opened(tracking, tiny):
        raise error


def test_a_long_failure_leaves_room_for_the_model_card(
    tracking: Any, client: Any, tiny: Recipe
) -> None:
    with pytest.raises(RuntimeError), opened(tracking, tiny) as run:
        raise RuntimeError(4000 * "e" + "nd")
    tags = client.get_run(run.id).data.tags
    assert tags["failure"].endswith("end")
    assert len(tags["mlflow.note.content"]) < 600


@pytest.fixture
def finished(tracking: Any, tiny: Recipe) -> tuple[str, Any]:
    """Some work, and its run, which has ended."""
    work = uuid.uuid4().hex
    with opened(tracking, tiny, "first", work) as run:
        return work, run


def test_a_run_whose_process_was_killed_is_taken_up(
    tracking: Any, client: Any, tiny: Recipe, finished: tuple[str, Any]
) -> None:
    work, run = finished
    client.update_run(run.id, status="RUNNING")  # nobody was left to end it
    with opened(tracking, tiny, "second", work) as again:
        assert (again.id, again.attempt) == (run.id, 2)


def test_a_clock_that_was_ahead_hides_no_unfinished_run(
    tracking: Any, tiny: Recipe, finished: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, run = finished
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking._tracking_service.client.get_current_time_millis", lambda: 1)
        with pytest.raises(RuntimeError), opened(tracking, tiny, "second", work) as before:
            raise RuntimeError
    assert before.id != run.id
    with opened(tracking, tiny, "third", work) as again:
        assert (again.id, again.attempt) == (before.id, 2)


def test_finished_work_and_other_work_get_a_new_run(
    tracking: Any, client: Any, tiny: Recipe, finished: tuple[str, Any]
) -> None:
    work, run = finished
    with pytest.raises(RuntimeError), opened(tracking, tiny, "other", uuid.uuid4().hex) as other:
        raise RuntimeError
    with opened(tracking, tiny, "second", work) as again:
        assert again.id not in (run.id, other.id)
        assert again.attempt == 1
