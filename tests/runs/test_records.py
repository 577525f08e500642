import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from nucleus_unet.data.identity import dataset_files
from nucleus_unet.data.prepared import Images
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes, sha256_file
from nucleus_unet.network.backend import usable_cores
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import records, tracking
from nucleus_unet.runs.logged import LoggedDataset, Record
from nucleus_unet.runs.models import MODEL_FILES
from nucleus_unet.runs.source import Source

COMMIT = 40 * "c"
OpenRun = Callable[..., AbstractContextManager[tracking.Run]]
LogModel = Callable[..., str]


@pytest.fixture(scope="module")
def logged(opened: OpenRun, folder: Path, make_images: Callable[..., Images]) -> str:
    """Id of a run with all that a record holds."""
    (folder / "submission.csv").write_text("ImageId,EncodedPixels\n")
    with opened(extra="1") as run:
        tracking.log_dataset(run, "training", [Path("/raw")], make_images(a="file a"), None)
        tracking.log_metrics(run, {"loss": 1.0}, step=1)
        tracking.log_metrics(run, {"loss": 0.5}, step=2)
        tracking.log_json(run, "history.json", [{"loss": 0.5}])
        tracking.log_files(run, "", [folder / "submission.csv"])
        tracking.log_bytes(run, "notes/note.txt", b"note")
        submission = sha256_file(folder / "submission.csv")
        tracking.log_tags(run, {"stage.train": "d", "submission.sha256": submission})
    return run.id


@pytest.fixture(scope="module")
def log_files(opened: OpenRun, tmp_path_factory: pytest.TempPathFactory) -> LogModel:
    """Logs the files of a model, as the logging of a model does; returns the id of the run."""

    def log_files(recipe: Recipe, weights: bytes = b"weights", tag: str | None = None) -> str:
        folder = tmp_path_factory.mktemp("model")
        contents = {"recipe.json": recipe.model_dump_json().encode(), "model.keras": weights}
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        digests = json.dumps({name: sha256_bytes(content) for name, content in contents.items()})
        with opened(recipe=recipe) as run:
            tracking.log_files(run, "model/artifacts", folder.iterdir())
            tracking.log_tags(run, {MODEL_FILES: tag or digests})
        return run.id

    return log_files


# Runs


def test_the_tags_and_metrics_of_a_run(logged: str) -> None:
    assert records.require_run(logged)["extra"] == "1"
    assert records.metric(logged, "loss") == 0.5


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run"])
def test_an_unknown_run_is_refused(folder: Path, run_id: str) -> None:
    with pytest.raises(NucleusError) as caught:
        records.require_run(run_id)
    assert str(caught.value) == (
        f"There is no run {run_id} at sqlite:///{folder}/mlflow.db. Copy a run id from MLflow's pages "
        "(nucleus ui), or set MLFLOW_TRACKING_URI to the server that has it."
    )


def test_the_record_of_a_run_has_everything_that_decided_it(
    logged: str, tiny: Recipe, make_images: Callable[..., Images]
) -> None:
    record = records.fetch_record(logged)
    assert record.run_id == logged
    assert Recipe.model_validate(record.recipe) == tiny
    assert record.packages["mlflow"] == "3.17.2"
    assert record.machine["cores"] == str(usable_cores())
    assert (record.commit, record.diff) == (COMMIT, "+changed\n")
    files = dataset_files(make_images(a="file a"), None)
    assert record.data == {"training": LoggedDataset(["/raw"], files)}
    assert record.tags["extra"] == "1"
    assert record.metrics["loss"] == 0.5
    assert record.history == [{"loss": 0.5}]


def test_the_record_of_a_run_that_did_not_train(
    opened: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "checkout_source", lambda: Source(COMMIT, ""))
    with opened() as run:
        pass
    record = records.fetch_record(run.id)
    assert (record.diff, record.data, record.history) == ("", {}, ())


# Artifacts


def test_a_missing_artifact_is_named(logged: str) -> None:
    assert records.fetch_artifact(logged, "notes/note.txt").read_text() == "note"
    with pytest.raises(NucleusError) as caught:
        records.fetch_artifact(logged, "absent.txt")
    assert str(caught.value) == (
        f"Run {logged} has no artifact absent.txt. The run did not log it, or it was deleted."
    )


def test_the_next_fetch_removes_what_a_killed_one_left(logged: str, folder: Path) -> None:
    fetched = folder / "fetched" / logged
    (fetched / ".killed" / "model").mkdir(parents=True)
    assert records.fetch_artifact(logged, "notes") == fetched / "notes"
    assert not (fetched / ".killed").exists()
    assert (fetched / "notes" / "note.txt").read_text() == "note"


def test_a_server_that_fails_is_not_reported_as_a_missing_artifact(
    logged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("it is on fire")

    store = "mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.download_artifacts"
    monkeypatch.setattr(store, fail)
    with pytest.raises(MlflowException, match="Failed to download"):
        records.fetch_artifact(logged, "notes/note.txt")


def test_a_server_that_fails_is_not_reported_as_a_missing_run(
    logged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("it is on fire")

    monkeypatch.setattr("mlflow.MlflowClient.get_run", fail)
    with pytest.raises(MlflowException, match="it is on fire"):
        records.require_run(logged)


def test_a_submission_is_used_only_if_it_is_the_logged_one(logged: str) -> None:
    record = records.fetch_record(logged)
    assert records.fetch_submission(record).read_text() == "ImageId,EncodedPixels\n"
    tags = {"submission.sha256": sha256_bytes(b"another one")}
    other = Record(logged, {}, {}, {}, commit="", diff="", data={}, tags=tags)
    with pytest.raises(NucleusError) as caught:
        records.fetch_submission(other)
    assert str(caught.value) == (
        f"The artifact submission.csv of run {logged} is damaged. Restore it from a backup."
    )


# Models and recipes


def test_a_model_is_fetched_with_its_recipe(log_files: LogModel, tiny: Recipe) -> None:
    recipe, network = records.fetch_model(log_files(tiny))
    assert recipe == tiny
    assert (network.name, network.read_bytes()) == ("model.keras", b"weights")


def test_a_run_without_a_model_is_refused(logged: str) -> None:
    with pytest.raises(NucleusError) as caught:
        records.fetch_model(logged)
    assert str(caught.value) == (
        f"Run {logged} has no model: it failed, or it is not a training. Choose a training that "
        "finished."
    )


@pytest.mark.parametrize("tag", ["[1", "[]", '{"recipe.json": "00"}'])
def test_a_model_whose_files_cannot_be_checked_is_refused(
    log_files: LogModel, tiny: Recipe, tag: str
) -> None:
    run_id = log_files(tiny, tag=tag)
    with pytest.raises(NucleusError) as caught:
        records.fetch_model(run_id)
    assert str(caught.value) == (
        f"The tag model.files of run {run_id} is damaged, so that its model cannot be checked. Train "
        f"again: nucleus reproduce {run_id} --retrain"
    )


@pytest.mark.parametrize("name", ["recipe.json", "model.keras"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_model_is_refused(
    log_files: LogModel,
    tiny: Recipe,
    client: Any,
    name: str,
    gone: bool,
) -> None:
    run_id = log_files(tiny)
    uri = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    file = Path(uri, "model", "artifacts", name)
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(NucleusError) as caught:
        records.fetch_model(run_id)
    assert str(caught.value) == (
        f"The artifact model/artifacts/{name} of run {run_id} is damaged. Restore it from a backup, or "
        f"train again: nucleus reproduce {run_id} --retrain"
    )


def test_a_logged_recipe(tiny: Recipe) -> None:
    values = tiny.model_dump(mode="json")
    assert records.recipe_of("abc", values) == tiny
    values["training"]["ema"] = None  # a choice of another version, which was off
    assert records.recipe_of("abc", values) == tiny


def test_the_recipe_of_another_version_of_the_code(tiny: Recipe) -> None:
    values = tiny.model_dump(mode="json")
    values["training"]["ema"] = 0.99
    with pytest.raises(NucleusError) as caught:
        records.recipe_of("abc", values)
    assert re.fullmatch(
        r"Run abc was made by another version of the code: its recipe: unknown key training\.ema\..*\. "
        r"Choose a run of this version, or reproduce it with its own version: nucleus reproduce abc "
        r"--in-env \| sh",
        str(caught.value),
    )


def test_a_training_that_starts_from_random_weights(tiny: Recipe) -> None:
    assert records.fetch_start_weights(tiny) is None


def test_the_weights_of_the_same_network_are_used(log_files: LogModel, tiny: Recipe) -> None:
    other = tiny.with_overrides(["data.image_size=64", "network.dropout=[0, 0]"])
    start = log_files(other, weights=b"their weights")
    weights = records.fetch_start_weights(tiny.with_overrides([f"training.start_from={start}"]))
    assert weights
    assert (weights.name, weights.read_bytes()) == ("model.keras", b"their weights")


@pytest.mark.parametrize(
    ("key", "theirs", "ours", "also"),
    [
        ("base_filters", "4", "2", []),
        ("depth", "2", "1", ["network.dropout=[0, 0, 0]"]),
        ("outputs", "borders", "mask", []),
        ("activation", "tanh", "relu", []),
    ],
)
def test_the_weights_of_another_network_are_refused(
    log_files: LogModel, tiny: Recipe, key: str, theirs: str, ours: str, also: list[str]
) -> None:
    start = log_files(tiny.with_overrides([f"network.{key}={theirs}", *also]))
    with pytest.raises(NucleusError) as caught:
        records.fetch_start_weights(tiny.with_overrides([f"training.start_from={start}"]))
    assert str(caught.value) == (
        f"training.start_from={start}: network.{key} is {theirs} in that model and {ours} in the "
        f"recipe. Start from a model with the same network, or set network.{key}={theirs}."
    )


def test_no_training_starts_from_several_networks(log_files: LogModel, tiny: Recipe) -> None:
    start = log_files(tiny.with_overrides(["training.folds=3"]))
    with pytest.raises(NucleusError) as caught:
        records.fetch_start_weights(tiny.with_overrides([f"training.start_from={start}"]))
    assert str(caught.value) == (
        f"training.start_from={start}: that model is the mean of 3 networks. Start from a model of one "
        "network, such as builtin."
    )


# Scripts


def test_a_reproduction_script_has_the_servers_and_no_password(
    logged: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://ann:secret@host/api")
    script = records.reproduction_script(logged, ["reproduce", logged])
    lines = script.splitlines()
    servers = ("export NUCLEUS_", "export MLFLOW_", "export PREFECT_")
    assert [line for line in lines if line.startswith(servers)] == [
        f"export NUCLEUS_HOME={folder}",
        f"export MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db",
    ]
    assert "secret" not in script
    assert "PREFECT_API_URL" not in script
    assert f"git checkout --quiet {COMMIT}" in lines
    diff = folder / "fetched" / logged / "source.diff"
    assert f"git apply {diff}" in lines
    assert diff.read_text() == "+changed\n"
    assert lines[-1] == f".venv/bin/nucleus reproduce {logged}"


def test_a_reproduction_script_names_a_prefect_server(
    logged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://host/api?a b")
    script = records.reproduction_script(logged, ["reproduce", logged])
    assert "export PREFECT_API_URL='https://host/api?a b'\n" in script


def test_a_run_whose_source_is_unknown_has_no_script(
    opened: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "checkout_source", lambda: Source("unknown", ""))
    with opened() as run:
        pass
    with pytest.raises(NucleusError) as caught:
        records.reproduction_script(run.id, ["reproduce", run.id])
    assert str(caught.value) == (
        f"Run {run.id} did not run from a git checkout, so its source is not known. Reproduce it "
        "without --in-env."
    )
