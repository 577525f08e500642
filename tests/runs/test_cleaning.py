import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from nucleus_unet.data import images_code, labels_code, prepare_images, prepare_labels
from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.engine import Stage, run_stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked
from nucleus_unet.runs import cleaning, tracking
from nucleus_unet.runs.cleaning import (
    Logged,
    Stored,
    read_logged,
    remove_stored,
    take_inventory,
)

OpenRun = Callable[..., AbstractContextManager[tracking.Run]]


def stage(home: Path, name: str, number: int = 0) -> Stage:
    """A complete output of 5 bytes."""

    def build(folder: Path) -> None:
        (folder / "result").write_text("bytes")

    return run_stage(home, name, {"number": number}, build, code=[])


def listed(home: Path, logged: Logged | None = None, days: float = 30) -> dict[str, str | None]:
    """Path in the home, and why it is kept."""
    found = take_inventory(home, logged or Logged(), days)
    return {str(one.paths[0].relative_to(home)): one.keep for one in found}


def age(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))


def test_results_are_made_again_by_the_next_run(tmp_path: Path) -> None:
    made = stage(tmp_path, "split")
    [found] = take_inventory(tmp_path, Logged(), 30)
    record = (made.folder / "stage.json").stat().st_size
    again, lock = "the next run that needs them", tmp_path / "locks" / f"split-{made.digest[:20]}"
    assert found == Stored("results of split", (made.folder,), again, None, lock, 5 + record)


def test_what_is_not_made_again_is_not_listed(tmp_path: Path) -> None:
    for name in (
        "mlflow.db",
        "mlartifacts/a",
        "prefect/a",
        "runs/a/b",
        "id",
        "sample/a/b",
        "locks/a",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert listed(tmp_path) == {}


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    for name in ("predict", "upsample"):
        (tmp_path / "stages" / name / "0").mkdir(parents=True)
    (tmp_path / "stages/predict/0/a.npy").write_bytes(bytes(100))
    os.link(tmp_path / "stages/predict/0/a.npy", tmp_path / "stages/upsample/0/a.npy")
    sizes = [one.size_bytes for one in take_inventory(tmp_path, Logged(), 30)]
    assert sorted(sizes) == [0, 100]


def test_a_training_goes_only_if_a_finished_run_has_its_model(tmp_path: Path) -> None:
    made = stage(tmp_path, "train")
    name = str(made.folder.relative_to(tmp_path))
    assert listed(tmp_path) == {name: "no finished run in MLflow has their models"}
    other = Logged(trainings=frozenset([stage(tmp_path, "split").digest]))
    assert listed(tmp_path, other)[name]
    assert listed(tmp_path, Logged(trainings=frozenset([made.digest])))[name] is None


@pytest.mark.parametrize("unfinished", ["partial", "damaged"])
def test_an_unfinished_training_goes_only_after_the_days(tmp_path: Path, unfinished: str) -> None:
    made = stage(tmp_path, "train")
    logged = Logged(trainings=frozenset([made.digest]))
    folder = made.folder
    (folder / "result").unlink()
    (folder / "checkpoint").touch()
    if unfinished == "partial":
        folder = folder.rename(folder.with_name(f"{folder.name}.partial"))
    name = str(folder.relative_to(tmp_path))
    assert listed(tmp_path, logged) == {name: "they can be continued"}
    age(folder, 29.9)
    assert listed(tmp_path, logged)[name]
    assert listed(tmp_path, logged, days=29)[name] is None
    age(folder, 30.1)
    assert listed(tmp_path, logged)[name] is None
    (folder / "checkpoint").touch()  # the newest file counts
    assert listed(tmp_path, logged)[name]


def test_the_partial_result_of_another_stage_is_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "stages" / "predict" / "0.partial").mkdir(parents=True)
    assert listed(tmp_path) == {"stages/predict/0.partial": None}


@pytest.mark.parametrize("ending", ["", ".partial"])
def test_what_a_process_builds_or_checks_is_in_use(tmp_path: Path, ending: str) -> None:
    made = stage(tmp_path, "predict")
    folder = made.folder.rename(made.folder.with_name(f"{made.folder.name}{ending}"))
    [free] = take_inventory(tmp_path, Logged(), 30)
    with locked(tmp_path / "locks" / f"predict-{made.digest[:20]}"):
        assert listed(tmp_path) == {str(folder.relative_to(tmp_path)): "in use"}
        assert remove_stored([free]) == []  # the lock was taken after the list was made
        assert folder.is_dir()
    assert remove_stored([free]) == [free]
    assert not folder.exists()


def test_files_from_mlflow_go_only_if_mlflow_has_their_run(tmp_path: Path) -> None:
    for run_id in ("known", "unknown"):
        (tmp_path / "fetched" / run_id).mkdir(parents=True)
    assert listed(tmp_path, Logged(runs=frozenset(["known"]))) == {
        "fetched/known": None,
        "fetched/unknown": "MLflow does not have their runs",
    }


def test_an_unfinished_reproduction_goes_after_the_days(tmp_path: Path) -> None:
    (tmp_path / "fresh" / "run" / "stages").mkdir(parents=True)
    (tmp_path / "fresh" / "run" / "stages" / "checkpoint").touch()
    assert listed(tmp_path) == {"fresh/run": "they can be continued"}
    age(tmp_path / "fresh" / "run", 31)
    assert listed(tmp_path) == {"fresh/run": None}


# A clean that is killed


def test_a_killed_clean_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage(tmp_path, "train")
    logged = Logged(trainings=frozenset([made.digest]))

    def killed(folder: Path) -> None:
        (folder / "result").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_stored(take_inventory(tmp_path, logged, 30))
    assert not made.folder.exists()
    again = stage(tmp_path, "train")
    assert not again.cached
    found = take_inventory(tmp_path, Logged(), 30)
    [left] = [one for one in found if not one.keep]
    assert left.paths[0].name.startswith(made.folder.name)
    remove_stored([left])
    assert [*made.folder.parent.iterdir()] == [made.folder]


def test_a_prepared_array_without_a_record_is_left_over(tmp_path: Path) -> None:
    for name in ("images/a.npy", "labels/.b.npy.0123"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert listed(tmp_path) == {"images/a.npy": None, "labels/.b.npy.0123": None}
    remove_stored(take_inventory(tmp_path, Logged(), 30))
    assert listed(tmp_path) == {}


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(tmp_path, "split")

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path / "result"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(NucleusError) as caught:
        remove_stored(take_inventory(tmp_path, Logged(), 30))
    assert str(caught.value).startswith(f"{made.folder}.")
    assert str(caught.value).endswith(
        ".removed/result cannot be removed (Operation not permitted). Run nucleus clean as the user who "
        "owns it."
    )


# What MLflow and the raw data say


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Raw data: two annotated images."""
    return write_synthetic(tmp_path / "raw", train=2, test=1)[0]


@pytest.fixture
def home(folder: Path, train: Path) -> Path:
    """A home with the raw data prepared."""
    for name in ("images", "labels"):
        shutil.rmtree(folder / name, ignore_errors=True)
    images = prepare_images([train], folder, images_code())
    prepare_labels([train], images, folder, labels_code())
    return folder


@pytest.fixture
def log(
    opened: OpenRun, home: Path, train: Path, client: MlflowClient
) -> Iterator[Callable[..., str]]:
    """Logs a run that was made from raw data. The run is deleted after the test."""
    made = []

    def log(raw: Path = train, **tags: str) -> str:
        images = prepare_images([raw], home, images_code())
        labels = prepare_labels([raw], images, home, labels_code())
        with opened() as run:
            tracking.log_dataset(run, "training", [raw], images, labels)
            tracking.log_tags(run, tags)
        made.append(run.id)
        return run.id

    yield log
    for run_id in made:
        client.delete_run(run_id)


def test_prepared_data_go_if_the_raw_data_are_there(
    home: Path, log: Callable[..., str], train: Path
) -> None:
    run_id = log(**{"stage.train": "digest", "stage.folds": "one two"})
    logged = read_logged(home)
    assert {"one", "two"} <= logged.trainings
    assert (run_id in logged.runs, "digest" in logged.trainings, logged.lost) == (True, True, {})
    found = listed(home, logged)
    assert len(found) == 4  # two images, two labels
    assert set(found.values()) == {None}
    remove_stored(take_inventory(home, logged, 30))
    assert [*home.glob("images/*"), *home.glob("labels/*")] == []


def test_a_failed_run_holds_no_model(home: Path, opened: OpenRun) -> None:
    with contextlib.suppress(RuntimeError), opened() as run:
        tracking.log_tags(run, {"stage.train": "failed"})
        raise RuntimeError
    logged = read_logged(home)
    assert run.id in logged.runs
    assert "failed" not in logged.trainings


def test_prepared_data_stay_if_the_raw_data_of_a_run_are_gone(
    home: Path, log: Callable[..., str], train: Path, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = log()
    moved = train.rename(tmp_path / "moved")
    logged = read_logged(home)
    gone = f"a run was made from them, and they are no longer in {train}"
    assert [*listed(home, logged).values()] == 4 * [gone]
    again = log(moved)  # the same content is found elsewhere
    assert read_logged(home).lost == {}
    client.delete_run(again)
    assert len(read_logged(home).lost) == 4
    client.delete_run(run_id)
    assert read_logged(home).lost == {}  # nobody needs them


def test_only_the_changed_file_of_a_data_set_stays(
    home: Path, log: Callable[..., str], train: Path
) -> None:
    log()
    image = next(train.glob("*/images/*.png"))
    image.write_bytes(image.read_bytes() + b"changed")
    kept = [path for path, why in listed(home, read_logged(home)).items() if why]
    assert len(kept) == 1
    assert kept[0].startswith("images/")


def test_a_reproduction_stays_while_it_holds_the_only_copy(
    home: Path, log: Callable[..., str], train: Path
) -> None:
    log()
    (home / "fresh").mkdir(exist_ok=True)
    shutil.copytree(home / "images", home / "fresh" / "run" / "images")
    age(home / "fresh", 31)
    assert listed(home, read_logged(home))["fresh/run"] is None
    shutil.rmtree(train)
    assert "no longer in" in (listed(home, read_logged(home))["fresh/run"] or "")
    shutil.rmtree(home / "fresh")


def test_the_database_of_the_home_counts_beside_a_server(
    home: Path,
    log: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: Any,
) -> None:
    run_id = log()
    shutil.copy(database, tmp_path / "other.db")
    monkeypatch.setattr(cleaning, "get_tracking_uri", lambda: f"sqlite:///{tmp_path}/other.db")
    assert run_id in read_logged(home).runs


def test_no_data_are_read_if_none_are_prepared(
    home: Path, log: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log()
    shutil.rmtree(home / "images")
    shutil.rmtree(home / "labels")
    monkeypatch.setattr(cleaning, "source_digests", lambda *_: pytest.fail("data were read"))
    assert read_logged(home).lost == {}
