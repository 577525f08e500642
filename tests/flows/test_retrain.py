"""A whole retraining run, with real training, in a home of its own."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nucleus_unet.data import rle
from nucleus_unet.data.raw import open_raw
from nucleus_unet.files import sha256_file
from nucleus_unet.nuclei import submission
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports.overlays import PREDICTION
from nucleus_unet.runs.source import checkout_source

STAGES = [
    ("ingest", 2),
    ("merge_masks", 1),
    ("split", 1),
    ("train", 1),
    ("evaluate", 1),
    ("predict", 1),
    ("upsample", 1),
    ("encode", 1),
]
PUBLISHED = [("publish_model", 1), ("rank", 1), ("publish_submission", 1)]
METRICS = {
    f"by epoch/{name}"
    for name in (
        *("loss", "dice", "mean_iou", "val_loss", "val_dice", "val_mean_iou"),
        *("learning_rate", "seconds", "images_per_s"),
    )
}


@pytest.fixture(scope="module")
def run(retrained: Any, client: Any) -> Any:
    """The run in MLflow."""
    return client.get_run(retrained.run_id)


@pytest.fixture(scope="module")
def best(place: Any, retrained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny run of recipe best, in a home of its own: crops, two maps, two scales, slides."""
    elsewhere = place.elsewhere(tmp_path_factory.mktemp("best") / "home")
    overrides = (
        *("training.steps_per_epoch=40", "training.learning_rate=0.01", "network.activation=elu"),
        "network.base_filters=24",
        *("inference.seed_cutoff=0.4", "inference.min_confidence=0"),  # it is not yet sure
    )
    sets = [word for override in overrides for word in ("--set", override)]
    done = elsewhere.retrain("--recipe", "best", "--test", place.test, *sets)
    return type(retrained)(elsewhere, done.stdout, done.stderr)


@pytest.fixture(params=["retrained", "best"])
def either(request: pytest.FixtureRequest) -> Any:
    """The run of a tiny quick, and that of best."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def sizes(place: Any) -> dict[str, tuple[int, int]]:
    """Height and width of each test image."""
    return {path.stem: pixels(path).shape[:2] for path in place.test.glob("*/images/*.png")}


def pixels(path: Path, flags: int = cv2.IMREAD_COLOR_RGB) -> Any:
    """An image file as an array."""
    image = cv2.imread(str(path), flags)
    assert image is not None
    return image


def labels_of(path: Path, sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """The label image of each image in a submission."""
    rows = submission.read_submission(path)
    return {image_id: rle.decode_rle(rows[image_id], *size) for image_id, size in sizes.items()}


# What it says


def test_it_ends_with_what_was_made(retrained: Any) -> None:
    said = retrained.said
    assert said["SHA-256"] == sha256_file(retrained.submission)
    assert said["to see the run, type"] == f"nucleus ui {retrained.run_id}"
    assert said["nuclei"].endswith(" in 3 images")
    promote = "nucleus promote 1 --why TEXT makes it the champion"
    assert said["model"] == f"version 1, the challenger: {promote}"
    assert said["verdict"].startswith("The difference in score is ")
    assert said["verdict"].endswith(" A decision needs at least 10 slides.")
    assert 0 <= float(said["validation mean_iou"]) <= 1


def test_it_tells_how_long_training_takes_before_the_first_epoch(retrained: Any) -> None:
    log = retrained.stderr
    assert 0 < log.index("training will take about") < log.index("epoch 1 of 2")


def test_its_log_is_plain_lines_without_chatter(retrained: Any) -> None:
    for unwanted in ("Traceback", "All log messages", "cuda", "\r", "\x1b", "Alembic", "WARNING: "):
        assert unwanted not in retrained.stderr


def test_nothing_half_written_is_left(retrained: Any) -> None:
    assert retrained.place.leftovers() == []


def test_nothing_is_written_outside_the_home(retrained: Any) -> None:
    home = retrained.place.home
    beside = {path.name for path in home.parent.iterdir()}
    assert beside == {"data", home.name, "later", "user"}


# The submission


def test_every_test_image_has_a_valid_row(either: Any, sizes: dict[str, Any]) -> None:
    assert len(sizes) == 3
    assert submission.validate_submission(either.submission, sizes) == []
    assert submission.read_submission(either.submission).keys() == sizes.keys()


def test_best_finds_nuclei_in_two_maps_at_two_scales(best: Any, sizes: dict[str, Any]) -> None:
    assert int(best.said["nuclei"].split()[0]) > 0
    stages = best.place.home / "stages"
    maps = [np.load(path, mmap_mode="r") for path in stages.glob("upsample/*/*.npy")]
    assert sorted(each.shape for each in maps) == sorted((*size, 4) for size in sizes.values())


# The run in MLflow


def test_the_run_is_finished(run: Any) -> None:
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("retrain quick stage1_train 20")


def test_its_parameters_are_the_whole_recipe_resolved(run: Any, artifacts: Path) -> None:
    recipe = Recipe.model_validate_json((artifacts / "recipe.json").read_bytes())
    assert run.data.params == {key: str(value) for key, value in recipe.flat().items()}
    assert (recipe.name, recipe.training.epochs, recipe.network.depth) == ("quick", 2, 2)
    assert "auto" not in run.data.params.values()


def test_its_tags_lead_to_source_recipe_and_flow(retrained: Any, run: Any, artifacts: Path) -> None:
    tags, code = run.data.tags, checkout_source()
    recipe = Recipe.model_validate_json((artifacts / "recipe.json").read_bytes())
    assert (tags["kind"], tags["recipe"]) == ("retrain", "quick")
    assert tags["recipe.digest"] == recipe.digest()
    assert tags["source.commit"] == code.commit
    assert tags["source.dirty"] in ("true", "false")
    assert (artifacts / "source.diff").exists() == (tags["source.dirty"] == "true")
    assert tags["submission.sha256"] == sha256_file(retrained.submission)
    flow_run = tags["prefect.flow_run_id"]
    assert tags["prefect.url"] == f"http://127.0.0.1:4200/runs/flow-run/{flow_run}"
    assert "reused_from" not in tags
    assert tags["hardware.backend"].startswith("tensorflow ")


def test_its_data_sets_are_inputs_with_their_digests(run: Any) -> None:
    found = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert found.keys() == {"training", "test"}
    for context, dataset in found.items():
        assert dataset.name == {"training": "stage1_train", "test": "stage1_test"}[context]
        assert len(run.data.tags[f"dataset.{context}"]) == 64
        assert run.data.tags[f"dataset.{context}"].startswith(dataset.digest)


def test_each_epoch_is_there_at_its_step(client: Any, retrained: Any, artifacts: Path) -> None:
    history = json.loads((artifacts / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    for metric in METRICS:
        logged = client.get_metric_history(retrained.run_id, metric)
        assert [(m.step, m.value) for m in logged] == [
            (e["epoch"], e[metric.removeprefix("by epoch/")]) for e in history
        ]


def test_the_cutoffs_of_the_model_are_those_that_were_tuned(either: Any) -> None:
    tuned = json.loads((either.artifacts / "inference.json").read_text())
    metrics = either.client.get_run(either.run_id).data.metrics
    maps = json.loads((either.artifacts / "recipe.json").read_text())["network"]["outputs"]
    keys = {
        "mask": ("cutoff", "min_area_px", "min_confidence"),
        "borders": ("cutoff", "seed_cutoff", "min_area_px", "min_confidence"),
    }[maps]
    logged = {k: v for k, v in metrics.items() if k.startswith("tuned/")}
    assert logged == {f"tuned/{key}": tuned[key] for key in keys}
    recipe = json.loads((either.model_folder / "artifacts" / "recipe.json").read_text())
    assert recipe["inference"] == tuned


def test_tuning_moved_a_cutoff(best: Any) -> None:
    tuned, started = (
        json.loads((best.artifacts / name).read_text())
        for name in ("inference.json", "recipe.json")
    )
    assert tuned != started["inference"]


def test_system_and_summary_metrics_are_there(run: Any, retrained: Any) -> None:
    metrics = run.data.metrics
    assert any(name.startswith("system/cpu") for name in metrics)
    assert metrics["validation/mean_iou"] == pytest.approx(
        float(retrained.said["validation mean_iou"]), rel=1e-3
    )
    by_kind = [metrics[key] for key in metrics if key.startswith("validation/score of ")]
    assert len(by_kind) == metrics["validation/images"] == 2
    assert metrics["validation/score"] == pytest.approx(np.mean(by_kind))
    precisions = [metrics[f"validation/AP at {0.5 + 0.05 * k:.2f}"] for k in range(10)]
    assert metrics["validation/score"] == pytest.approx(np.mean(precisions))
    assert metrics["submission/images"] == 3
    assert metrics["training/peak_memory_gb"] > 0
    assert {f"seconds/{stage}" for stage, _ in STAGES} <= metrics.keys()


def test_its_artifacts_say_what_went_in(place: Any, artifacts: Path) -> None:
    data = {path.stem: json.loads(path.read_text()) for path in artifacts.glob("datasets/*")}
    assert data["training"]["paths"] == [str(place.train)]
    assert data["test"]["paths"] == [str(place.test)]
    assert len(data["test"]["files"]) == 3
    files = data["training"]["files"]
    split = json.loads((artifacts / "split.json").read_text())
    before = {path.name: path for path in place.train.iterdir()} | {p.name: p for p in place.later}
    assert len(files) == 10
    for file in files:
        path = before[file["id"]] / "images" / f"{file['id']}.png"
        assert file["image_sha256"] == sha256_file(path)
        assert len(file["masks_sha256"]) == 64
    ids = [row["id"] for row in split["training"] + split["validation"]]
    assert sorted(ids) == [file["id"] for file in files]
    packages = (artifacts / "packages.txt").read_text().splitlines()
    assert {"mlflow==3.17.2", "prefect==3.8.8"} <= set(packages)
    machine = json.loads((artifacts / "machine.json").read_text())
    assert {"python", "cpu", "cpu flags", "cores", "gpu"} <= machine.keys()


def test_its_card_is_an_artifact_and_the_description(run: Any, artifacts: Path) -> None:
    card = (artifacts / "model_card.md").read_text()
    for heading in ("Data", "Recipe", "Scores", "Cost", "Known weaknesses"):
        assert f"\n## {heading}\n" in card
    assert "stage1_train, split by random with seed 3: 8 images of 8 slides for training" in card
    assert card.strip() in run.data.tags["mlflow.note.content"]


def test_its_artifacts_hold_what_came_out(retrained: Any, artifacts: Path) -> None:
    assert sha256_file(artifacts / "submission.csv") == sha256_file(retrained.submission)
    assert pixels(artifacts / "curves.png").ndim == 3
    drawn = {path.name: sha256_file(path) for path in (artifacts / "pictures").iterdir()}
    sheets = {f"validation_{name}.png" for name in ("best", "suspects", "worst")}
    assert drawn.keys() == sheets | {"split.png", "disagreement.png"}  # with the built-in model
    stages = (retrained.place.home / "stages").glob("*/*/*.png")
    assert drawn.items() <= {(path.name, sha256_file(path)) for path in stages}


# The model


LOAD = """
import sys
import mlflow, numpy as np
images = np.load(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[1])
labels = model.predict(images)
np.save(sys.argv[3], labels)
import nucleus_unet
print(nucleus_unet.__file__)
"""


def test_the_model_loads_and_gives_label_images(
    either: Any, sizes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    place = either.place
    image_id, (height, width) = next(iter(sizes.items()))
    image = pixels(place.test / image_id / "images" / f"{image_id}.png")
    np.save(tmp_path / "images.npy", np.stack([image, np.zeros_like(image)]))
    arguments = [
        f"runs:/{either.run_id}/model",
        tmp_path / "images.npy",
        tmp_path / "labels.npy",
    ]
    uri = f"sqlite:///{place.home}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)],
        env=place.environment | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels = np.load(tmp_path / "labels.npy")
    assert (labels.shape, labels.dtype) == ((2, height, width), np.int32)
    # Another number of threads gives other bits, so that a pixel at the cutoff may differ.
    submitted = labels_of(either.submission, sizes)[image_id]
    assert ((labels[0] > 0) == (submitted > 0)).mean() > 0.99
    assert set(np.unique(labels[0])) == set(range(labels[0].max() + 1))
    assert "/code/nucleus_unet/" in done.stdout  # the code that was logged with it


def test_the_model_is_code_with_a_signature_and_pinned_requirements(retrained: Any) -> None:
    import yaml

    model_folder = retrained.model_folder
    model = yaml.safe_load((model_folder / "MLmodel").read_text())
    [images] = json.loads(model["signature"]["inputs"])
    [labels] = json.loads(model["signature"]["outputs"])
    assert images["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1, 3]}
    assert labels["tensor-spec"] == {"dtype": "int32", "shape": [-1, -1, -1]}
    requirements = (model_folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} >= {"keras", "mlflow", "tensorflow"}
    assert all("==" in line for line in requirements)
    assert [p for p in model_folder.rglob("*") if p.suffix in (".pkl", ".pickle", ".pyc")] == []


# The run in Prefect


def test_its_flow_run_has_each_stage_by_name(place: Any, run: Any) -> None:
    flow_run = run.data.tags["prefect.flow_run_id"]
    states = Counter(place.states(flow_run))
    assert states == {(name, "Completed"): n for name, n in [*STAGES, *PUBLISHED]}


def test_its_graph_hides_no_step_and_shows_only_real_arrows(place: Any, run: Any) -> None:
    rows = place.prefect(
        "select id, name, task_inputs from task_run where flow_run_id = ?",
        run.data.tags["prefect.flow_run_id"],
    )
    names = {str(id_): name for id_, name, _ in rows}
    inputs = {name: json.loads(text) for _, name, text in rows}
    steps = [name for name in names.values() if not name.startswith(("upsample", "encode"))]
    assert [name for name in steps if "__parents__" in inputs[name]] == []
    [predicted] = [name for name in steps if name.startswith("predict")]
    before = {one["id"] for ones in inputs[predicted].values() for one in ones}
    assert {names[id_] for id_ in before} == {"ingest test images"}


def test_its_inputs_are_small_enough_to_read(place: Any, run: Any) -> None:
    [(parameters,)] = place.prefect(
        "select parameters from flow_run where id = ?", run.data.tags["prefect.flow_run_id"]
    )
    assert json.loads(parameters)["training_data"] == [str(place.train)]
    assert len(parameters) < 5000


def test_its_artifacts_in_prefect(place: Any, run: Any, retrained: Any) -> None:
    found = {
        key: (kind, json.loads(str(text)))
        for key, kind, text in place.prefect(
            "select key, type, data from artifact where flow_run_id = ?",
            run.data.tags["prefect.flow_run_id"],
        )
    }
    assert found["training"] == ("progress", 100)
    kind, epochs = found["epochs"]
    assert kind == "table"
    assert [epoch["epoch"] for epoch in json.loads(epochs)] == [1, 2]
    assert {f"by epoch/{key}" for key in json.loads(epochs)[0]} >= METRICS
    [scores] = json.loads(found["scores"][1])
    assert scores["mean_iou"] == pytest.approx(run.data.metrics["validation/mean_iou"], rel=1e-3)
    assert len(json.loads(found["scores-by-image"][1])) == scores["images"] == 2
    assert f"/runs/{retrained.run_id}" in found["mlflow-run"][1]
    assert found["model-card"][1].startswith("# Nuclei with the recipe quick\n")


# Run again


@pytest.fixture(scope="module")
def again(retrained: Any) -> Any:
    """The same command once more, which trains nothing."""
    trainings = retrained.place.home / "stages" / "train"
    before = sorted(trainings.iterdir())
    done = retrained.place.retrain("--test", retrained.place.test)
    assert sorted(trainings.iterdir()) == before
    return type(retrained)(retrained.place, done.stdout, done.stderr)


def test_again_is_a_new_run_with_the_same_submission(
    again: Any, retrained: Any, client: Any
) -> None:
    assert again.run_id != retrained.run_id
    assert again.said["SHA-256"] == retrained.said["SHA-256"]
    assert again.said["verdict"] == retrained.said["verdict"]
    aliases = client.get_registered_model("nucleus-unet").aliases
    assert {name: str(number) for name, number in aliases.items()} == {"challenger": "2"}
    run = client.get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["reused_from"] == retrained.run_id


def test_again_has_every_stage_cached(again: Any, client: Any) -> None:
    flow_run = client.get_run(again.run_id).data.tags["prefect.flow_run_id"]
    states = Counter(again.place.states(flow_run))
    assert states == {(name, "Cached"): n for name, n in STAGES} | {
        (name, "Completed"): n for name, n in PUBLISHED
    }


def test_again_trains_nothing_and_logs_the_same(again: Any, run: Any, client: Any) -> None:
    second = client.get_run(again.run_id)
    assert {name: second.data.metrics[name] for name in METRICS} == {
        name: run.data.metrics[name] for name in METRICS
    }
    assert second.data.params == run.data.params
    names = {a.path for a in client.list_artifacts(again.run_id)}
    assert names == {a.path for a in client.list_artifacts(run.info.run_id)}


# Predict with its model


@pytest.fixture(scope="module")
def predicted(retrained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two loose images in a folder and one file, the test images, with the model of the run."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "loose").mkdir()
    for index, path in enumerate(sorted(retrained.place.test.glob("*/images/*.png"))):
        (folder / ("loose" if index else "") / path.name).write_bytes(path.read_bytes())
    [file] = folder.glob("*.png")
    images, out = (folder / "loose", file), folder / "out"
    options = ("--model", retrained.run_id, "--out", out)
    outlines = ("--outlines", "geojson", "--outlines", "coco")
    done = retrained.place.nucleus("predict", *images, *options, *outlines)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = {line.split()[-1] for line in done.stdout.splitlines() if line}
    assert {str(path) for path in out.iterdir()} <= said
    trained = "quick, trained on stage1_train, score "
    assert re.search(rf"^model +run {retrained.run_id}: {trained}", done.stdout, re.MULTILINE)
    return out


def test_predict_finds_what_was_submitted(predicted: Path, retrained: Any) -> None:
    assert sha256_file(predicted / "submission.csv") == retrained.said["SHA-256"]


def test_predict_writes_16_bit_labels(
    predicted: Path, retrained: Any, sizes: dict[str, tuple[int, int]]
) -> None:
    assert {path.stem for path in (predicted / "labels").iterdir()} == sizes.keys()
    for image_id, expected in labels_of(retrained.submission, sizes).items():
        labels = pixels(predicted / "labels" / f"{image_id}.png", cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, expected)


def test_predict_writes_an_overlay_of_each(
    predicted: Path, retrained: Any, sizes: dict[str, tuple[int, int]]
) -> None:
    assert {path.stem for path in (predicted / "overlays").iterdir()} == sizes.keys()
    for image_id, labels in labels_of(retrained.submission, sizes).items():
        overlay = pixels(predicted / "overlays" / f"{image_id}.png")
        assert (overlay == PREDICTION).all(-1).any() == labels.any()


def test_predict_writes_a_row_and_an_outline_of_each_nucleus(
    predicted: Path, retrained: Any, sizes: dict[str, tuple[int, int]]
) -> None:
    with (predicted / "nuclei.csv").open() as file:
        rows = Counter(row["image"] for row in csv.DictReader(file))
    assert rows.total() == int(retrained.said["nuclei"].split()[0])
    for image_id in sizes:
        shown = json.loads((predicted / "outlines" / f"{image_id}.geojson").read_text())
        assert len(shown["features"]) == rows[image_id]


def test_predict_is_a_run_that_names_its_model(
    predicted: Path, run: Any, artifacts: Path, client: Any
) -> None:
    [found] = client.search_runs([run.info.experiment_id], "tags.kind = 'predict'")
    assert found.info.status == "FINISHED"
    assert found.data.tags["model.run_id"] == run.info.run_id
    assert found.data.tags["submission.sha256"] == sha256_file(predicted / "submission.csv")
    tuned = json.loads((artifacts / "inference.json").read_text())
    changed = {f"inference.{key}": str(value) for key, value in tuned.items()}
    assert found.data.params == run.data.params | changed | {"data.on_bad": "skip"}


# Run with more images, without test images, from the weights of the first


@pytest.fixture(scope="module")
def grown(
    again: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, int]], Any]:
    """When each array was written before two images came, and the run on all twelve."""
    place = again.place
    times = {
        kind: {path.name: path.stat().st_mtime_ns for path in (place.home / kind).iterdir()}
        for kind in ("images", "labels")
    }
    train = tmp_path_factory.mktemp("grown") / "train"
    for sample in (*place.train.iterdir(), *place.later):
        shutil.copytree(sample, train / sample.name)
    place = replace(place, train=train)
    done = place.retrain("--set", f"training.start_from={again.run_id}")
    return times, type(again)(place, done.stdout, done.stderr)


@pytest.mark.slow
def test_only_new_images_are_decoded(grown: Any) -> None:
    before, after = grown
    for kind, times in before.items():
        folder = after.place.home / kind
        assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
        assert len([p for p in folder.iterdir() if p.suffix == ".npy"]) == 2 + len(
            [name for name in times if name.endswith(".npy")]
        )
        with open_raw(after.place.train, annotated=True) as raw:
            assert len(raw.samples) == 12


@pytest.mark.slow
def test_without_test_images_it_ends_with_the_model(grown: Any, client: Any) -> None:
    _, after = grown
    assert "submission" not in after.said
    assert after.said["to see the run, type"] == f"nucleus ui {after.run_id}"
    run = client.get_run(after.run_id)
    assert run.info.status == "FINISHED"
    assert [entry.tags[0].value for entry in run.inputs.dataset_inputs] == ["training"]
    assert "submission.csv" not in {a.path for a in client.list_artifacts(after.run_id)}
    assert "reused_from" not in run.data.tags
    made = {path.suffix for path in (after.place.home / "runs" / after.run_id).iterdir()}
    assert made == {".png"}


@pytest.mark.slow
def test_it_starts_from_the_weights_of_a_run(grown: Any, again: Any, client: Any) -> None:
    _, after = grown
    stages = after.place.home / "stages" / "train"
    first, second = (
        stages / client.get_run(run.run_id).data.tags["stage.train"][:20] for run in (again, after)
    )
    inputs = json.loads((second / "stage.json").read_text())["inputs"]
    assert inputs["start_weights"] == sha256_file(first / "model.keras")
