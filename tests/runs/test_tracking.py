import contextlib
import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from nucleus_unet.data.identity import dataset_digest
from nucleus_unet.data.prepared import Images, Labels, LabelsEntry
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.errors import NucleusError
from nucleus_unet.network.backend import usable_cores
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import tracking

OpenRun = Callable[..., AbstractContextManager[tracking.Run]]
ReadArtifact = Callable[[str, str], str]


@pytest.fixture(scope="module")
def logged(opened: OpenRun, folder: Path, make_images: Callable[..., Images]) -> tracking.Run:
    """A run in which a bit of everything is logged."""
    (folder / "note.txt").write_text("note")
    labels = Labels(
        entries=tuple(
            LabelsEntry(
                id=id_,
                digest=f"prepared {id_}",
                sha256="",
                source_sha256=f"masks {id_}",
                height=4,
                width=6,
                nuclei=3,
                problems=(),
            )
            for id_ in "ab"
        )
    )
    raws = [Path("/raw/set.zip"), Path("/raw/more")]
    images = make_images(a="file a", b="file b")
    with opened(note="[in Prefect](http://p)", extra="1") as run:
        tracking.log_dataset(run, "training", raws, images, labels)
        tracking.log_dataset(run, "test", raws[:1], images, None)
        for step in (1, 2):
            tracking.log_metrics(run, {"loss": 1 / step, "dice": step}, step=step)
        tracking.log_tags(run, {"stage.train": "the stage"})
        tracking.log_files(run, "", [folder / "note.txt"])
        tracking.log_files(run, "notes", [folder / "note.txt"])
        tracking.log_bytes(run, "curve.png", b"png")
        tracking.log_bytes(run, "pictures/best.png", b"best")
        tracking.log_json(run, "split.json", {"training": ["a"]})
    return run


@pytest.fixture(scope="module")
def failed(opened: OpenRun) -> str:
    """Id of a run that ended with an error."""
    with contextlib.suppress(RuntimeError), opened() as run:
        tracking.log_tags(run, {"stage.train": "the stage of a run that failed"})
        raise RuntimeError("no disk")
    return run.id


def test_a_run_has_the_recipe_as_parameters_and_file(
    client: MlflowClient, logged: tracking.Run, tiny: Recipe, read_artifact: ReadArtifact
) -> None:
    run = client.get_run(logged.id)
    assert run.data.params == {key: str(value) for key, value in tiny.flat().items()}
    assert run.data.params["network.dropout"] == "[0.2, 0.2]"
    assert Recipe.model_validate_json(read_artifact(logged.id, "recipe.json")) == tiny


def test_a_run_has_tags_and_ends_finished(
    client: MlflowClient, logged: tracking.Run, tiny: Recipe
) -> None:
    run = client.get_run(logged.id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("retrain tiny cells 20")
    expected = {
        "kind": "retrain",
        "recipe": "tiny",
        "recipe.digest": tiny.digest(),
        "source.commit": 40 * "c",
        "source.dirty": "true",
        "extra": "1",
        "attempt": "1",
    }
    assert run.data.tags.items() >= expected.items()


def test_a_changed_checkout_is_logged_as_a_patch(
    logged: tracking.Run, read_artifact: ReadArtifact
) -> None:
    assert read_artifact(logged.id, "source.diff") == "+changed\n"


def test_packages_are_logged_with_their_versions(
    logged: tracking.Run, read_artifact: ReadArtifact
) -> None:
    lines = read_artifact(logged.id, "packages.txt").splitlines()
    assert "mlflow==3.17.2" in lines
    assert all(line.count("==") == 1 for line in lines)


def test_the_machine_is_logged(logged: tracking.Run, read_artifact: ReadArtifact) -> None:
    machine = json.loads(read_artifact(logged.id, "machine.json"))
    assert machine["cores"] == str(usable_cores())


def test_a_data_set_is_an_input_and_its_complete_digest_a_tag(
    client: MlflowClient,
    logged: tracking.Run,
    make_images: Callable[..., Images],
) -> None:
    run: Any = client.get_run(logged.id)
    found = {entry.tags[0].value: entry for entry in run.inputs.dataset_inputs}
    assert {tag.key for entry in found.values() for tag in entry.tags} == {"mlflow.data.context"}
    assert found.keys() == {"training", "test"}
    training, test = found["training"].dataset, found["test"].dataset
    assert (training.name, test.name) == ("set.zip and 1 more", "set.zip")
    assert json.loads(training.source) == {"uri": "/raw/set.zip, /raw/more"}
    assert json.loads(training.profile) == {"images": 2, "nuclei": 6}
    assert json.loads(test.profile) == {"images": 2}
    digest = dataset_digest(make_images(a="file a", b="file b"), None)
    assert (test.digest, run.data.tags["dataset.test"]) == (digest[:36], digest)
    assert run.data.tags["dataset.training"].startswith(training.digest)
    assert training.digest != test.digest


def test_the_files_of_a_data_set_are_an_artifact(
    logged: tracking.Run, read_artifact: ReadArtifact
) -> None:
    a = {"id": "a", "height": 4, "width": 6, "image_sha256": "file a", "masks_sha256": "masks a"}
    b = {"id": "b", "height": 4, "width": 6, "image_sha256": "file b", "masks_sha256": "masks b"}
    assert json.loads(read_artifact(logged.id, "datasets/training.json")) == {
        "paths": ["/raw/set.zip", "/raw/more"],
        "files": [a, b],
    }
    test = json.loads(read_artifact(logged.id, "datasets/test.json"))
    assert [file.keys() for file in test["files"]] == [
        {"id": "", "height": 0, "width": 0, "image_sha256": ""}.keys()
    ] * 2


def test_metrics_keep_their_steps(client: MlflowClient, logged: tracking.Run) -> None:
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
    logged: tracking.Run, read_artifact: ReadArtifact, name: str, content: str
) -> None:
    assert read_artifact(logged.id, name) == content


def test_json_is_an_artifact(logged: tracking.Run, read_artifact: ReadArtifact) -> None:
    assert json.loads(read_artifact(logged.id, "split.json")) == {"training": ["a"]}


def test_artifacts_lie_below_the_home(
    client: MlflowClient, logged: tracking.Run, folder: Path
) -> None:
    uri = client.get_run(logged.id).info.artifact_uri
    assert uri.startswith((folder / "mlartifacts").as_uri())


def test_a_run_that_fails_says_why(client: MlflowClient, failed: str) -> None:
    run = client.get_run(failed)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "RuntimeError: no disk"
    assert run.data.tags["mlflow.note.content"] == "**Failed**: RuntimeError: no disk"


def test_a_description_grows_by_paragraphs(client: MlflowClient, opened: OpenRun) -> None:
    with opened(note="[in Prefect](http://p)") as run:
        for paragraph in ("**Good**", "**Good**", "Better"):  # the same one is added once
            tracking.describe(run.id, paragraph)
    note = client.get_run(run.id).data.tags["mlflow.note.content"]
    assert note == "[in Prefect](http://p)\n\n**Good**\n\nBetter"


def test_the_first_finished_run_with_a_tag(
    logged: tracking.Run, failed: str, opened: OpenRun
) -> None:
    with opened() as run:
        tracking.log_tags(run, {"stage.train": "the stage"})
    assert tracking.first_finished_run("stage.train", "the stage") == logged.id
    assert tracking.first_finished_run("stage.train", "the stage of a run that failed") is None


# Runs that are continued


@pytest.mark.fault(
    "Kills and stops",
    "a run whose process was killed stays running in MLflow",
    "the next run marks it as killed, and says so",
)
def test_runs_that_nobody_works_on_are_ended(client: MlflowClient, opened: OpenRun) -> None:
    with opened(work="alive") as alive, opened(work="dead") as dead:
        assert tracking.end_abandoned(lambda work: work == "dead") == [dead.id]
        ended = client.get_run(dead.id)
        assert ended.info.status == "KILLED"
        assert ended.data.tags["failure"] == "its process ended unexpectedly"
        assert client.get_run(alive.id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (RuntimeError("no disk"), "FAILED", "Failed"),
        (StoppedError("after 7 steps"), "KILLED", "Stopped"),
        (KeyboardInterrupt(), "KILLED", "Stopped"),
    ],
)
def test_the_next_attempt_continues_the_same_run(
    client: MlflowClient, opened: OpenRun, error: BaseException, status: str, word: str
) -> None:
    work = uuid.uuid4().hex
    with (
        contextlib.suppress(type(error)),
        opened(note="first", work=work, flow="a") as run,
    ):
        tracking.log_metrics(run, {"loss": 0.5}, step=1)
        raise error
    assert client.get_run(run.id).info.status == status
    with opened(note="second", work=work, flow="b") as again:
        assert (again.id, again.attempt) == (run.id, 2)
        during = client.get_run(run.id)
        assert during.info.status == "RUNNING"
        assert "failure" not in during.data.tags
        tracking.log_metrics(again, {"loss": 0.25}, step=1)
        tracking.log_metrics(again, {"loss": 0.125}, step=2)
        tracking.log_metrics(again, {"loss": 0.0625}, step=2)  # trained again after damage
    after = client.get_run(run.id)
    assert after.info.status == "FINISHED"
    assert after.data.tags.items() >= {"attempt": "2", "work": work, "flow": "b"}.items()
    note = after.data.tags["mlflow.note.content"]
    assert note.startswith(f"first\n\n**{word}**: ")
    assert note.endswith("\n\nAttempt 2: second")
    # No point is changed or logged twice.
    points = client.get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.125)]


@pytest.mark.parametrize("error", [NucleusError("training diverged"), KeyboardInterrupt()])
def test_the_error_that_ended_a_run_is_raised_even_if_mlflow_fails_too(
    opened: OpenRun,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    def fail(*_: Any) -> None:
        raise MlflowException("the disk is full")

    monkeypatch.setattr("mlflow.MlflowClient.set_tag", fail)
    with pytest.raises(type(error)), opened() as run:
        raise error
    said = f"Run {run.id} ended, but MLflow did not accept how: the disk is full"
    assert said in caplog.messages


def test_a_long_failure_leaves_room_for_the_model_card(
    client: MlflowClient, opened: OpenRun
) -> None:
    with pytest.raises(RuntimeError), opened() as run:
        raise RuntimeError(4000 * "e" + "nd")
    tags = client.get_run(run.id).data.tags
    assert tags["failure"].endswith("end")
    assert len(tags["mlflow.note.content"]) < 600


@pytest.fixture
def finished(opened: OpenRun) -> tuple[str, tracking.Run]:
    """Some work, and its run, which has ended."""
    work = uuid.uuid4().hex
    with opened(note="first", work=work) as run:
        return work, run


def test_a_run_whose_process_was_killed_is_continued(
    client: MlflowClient, opened: OpenRun, finished: tuple[str, tracking.Run]
) -> None:
    work, run = finished
    client.update_run(run.id, status="RUNNING")  # a killed process did not end it
    with opened(note="second", work=work) as again:
        assert (again.id, again.attempt) == (run.id, 2)


def test_an_unfinished_run_is_found_even_if_a_finished_one_seems_newer(
    opened: OpenRun, finished: tuple[str, tracking.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, run = finished
    with monkeypatch.context() as patch:  # a machine whose clock is late
        patch.setattr("mlflow.tracking._tracking_service.client.get_current_time_millis", lambda: 1)
        with pytest.raises(RuntimeError), opened(note="second", work=work) as before:
            raise RuntimeError
    assert before.id != run.id
    with opened(note="third", work=work) as again:
        assert (again.id, again.attempt) == (before.id, 2)


def test_finished_work_and_other_work_get_a_new_run(
    opened: OpenRun, finished: tuple[str, tracking.Run]
) -> None:
    work, run = finished
    with pytest.raises(RuntimeError), opened(note="other") as other:
        raise RuntimeError
    with opened(note="second", work=work) as again:
        assert again.id not in (run.id, other.id)
        assert again.attempt == 1
