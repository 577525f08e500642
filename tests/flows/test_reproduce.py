"""A logged run's submission made again."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import pytest

from nucleus_unet.files import sha256_bytes
from nucleus_unet.network.backend import usable_cores


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or away, within the block."""
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_the_logged_model_makes_the_same_submission(retrained: Any, client: Any) -> None:
    place = retrained.place
    done = place.nucleus("reproduce", retrained.run_id)
    assert done.returncode == 0, done.stderr
    assert f"# Reproduction of run {retrained.run_id}: identical\n" in done.stdout
    assert done.stdout.count(retrained.said["SHA-256"]) == 2
    assert "in state Cached" not in done.stderr
    [run_id] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("run ")]
    run = client.get_run(run_id)
    expected = {"kind": "reproduce", "reproduces": retrained.run_id, "outcome": "identical"}
    assert run.data.tags.items() >= expected.items()
    assert run.data.tags["submission.sha256"] == retrained.said["SHA-256"]
    assert run.info.status == "FINISHED"
    page = Path(
        unquote(run.info.artifact_uri.removeprefix("file://")), "reproduction.md"
    ).read_text()
    assert page in done.stdout
    assert list((place.home / "fresh").iterdir()) == []


@pytest.mark.slow
def test_a_prediction_is_reproduced_with_its_own_settings(retrained: Any, tmp_path: Path) -> None:
    place = retrained.place
    (tmp_path / "cut.png").write_bytes(b"not an image")
    options = ("--model", retrained.run_id, "--set", "inference.min_area_px=60")
    images = place.test, tmp_path / "cut.png"
    done = place.nucleus("predict", *images, "--out", tmp_path / "out", *options)
    assert done.returncode == 1, done.stderr  # one image cannot be read
    said = dict(
        re.split("  +", line, maxsplit=1) for line in done.stdout.splitlines() if "  " in line
    )
    assert said["SHA-256"] != retrained.said["SHA-256"]
    done = place.nucleus("reproduce", said["run"])
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(said["SHA-256"]) == 2


@pytest.mark.slow
def test_trained_again_it_has_the_same_weights(retrained: Any, client: Any) -> None:
    done = retrained.place.nucleus("reproduce", retrained.run_id, "--retrain")
    assert done.returncode == 0, done.stderr
    assert "\n\nWeights: identical.\n" in done.stdout
    assert "epoch 2 of 2" in done.stderr
    assert "trained quick for 2 epochs in " in done.stderr


@pytest.mark.slow
def test_another_submission_is_told_image_by_image(
    retrained: Any, client: Any, artifacts: Path
) -> None:
    """As if the run had logged another, by another NumPy on more cores."""
    path = artifacts / "submission.csv"
    lines = path.read_text().splitlines()
    row = next(index for index, line in enumerate(lines[1:], 1) if not line.endswith(","))
    image_id, _, encoded = lines[row].partition(",")
    lines[row] = f"{image_id},{' '.join(encoded.split()[:2])}"
    content = ("\n".join(lines) + "\n").encode()
    packages, machine = artifacts / "packages.txt", artifacts / "machine.json"
    other_numpy = re.sub(r"(?m)^numpy==.*", "numpy==1.0.0", packages.read_text())
    more_cores = json.dumps(json.loads(machine.read_text()) | {"cores": "512"})
    with (
        changed(path, content),
        changed(packages, other_numpy.encode()),
        changed(machine, more_cores.encode()),
    ):
        client.set_tag(retrained.run_id, "submission.sha256", sha256_bytes(content))
        done = retrained.place.nucleus("reproduce", retrained.run_id)
        client.set_tag(retrained.run_id, "submission.sha256", retrained.said["SHA-256"])
    assert done.returncode == 1, done.stderr
    assert ": different\n" in done.stdout
    assert f"\n| {image_id} | " in done.stdout
    causes = re.findall(r"^1\. (.*)", done.stdout, re.MULTILINE)
    numpy, cores = metadata.version("numpy"), usable_cores()
    assert causes == [f"package numpy 1.0.0 → {numpy}", f"machine cores 512 → {cores}"]


@pytest.mark.slow
def test_another_thread_count_is_named(retrained: Any) -> None:
    place = retrained.place
    threads = 1 if usable_cores() > 1 else 2
    done = place.retrain("--test", place.test, "--set", f"training.threads={threads}")
    other = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("run "))
    shown = place.nucleus("diff", retrained.run_id, other)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0].startswith("recipe training.threads ")
    assert shown.stdout.splitlines()[0].endswith(f" → {threads}")
    # Of one machine and one source all else is the same.
    assert shown.stdout.splitlines()[1] == ""


def damage_training_image(place: Any, artifacts: Path) -> Any:
    return change_pixel(next(place.train.glob("*/images/*.png")))


def damage_test_image(place: Any, artifacts: Path) -> Any:
    return change_pixel(next(place.test.glob("*/images/*.png")))


def change_pixel(image: Path) -> Any:
    pixels = cv2.imread(str(image))
    assert pixels is not None
    pixels[0, 0] ^= 1
    return changed(image, cv2.imencode(".png", pixels)[1].tobytes())


def truncate_model(place: Any, artifacts: Path) -> Any:
    models = artifacts.parents[1].glob("**/model.keras")
    path = min(models, key=lambda file: file.stat().st_mtime)  # the first run's
    return changed(path, path.read_bytes()[:-100])


def lose_machine(place: Any, artifacts: Path) -> Any:
    return changed(artifacts / "machine.json", None)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            damage_training_image,
            r"The training data differ from the data of run {run}: image \w+ changed\. ",
        ),
        (
            damage_test_image,
            r"The test data differ from the data of run {run}: image \w+ changed\. ",
        ),
        (truncate_model, r"The artifact model/artifacts/model.keras of run {run} is damaged"),
        (lose_machine, r"Run {run} has no artifact machine.json"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_tried_is_named(
    retrained: Any, artifacts: Path, harm: Callable[[Any, Path], Any], said: str
) -> None:
    with harm(retrained.place, artifacts):
        retrain = ["--retrain"] * (harm is damage_training_image)
        done = retrained.place.nucleus("reproduce", retrained.run_id, *retrain)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert re.match("Error: " + said.format(run=retrained.run_id), last), done.stderr


@pytest.mark.slow
def test_missing_data_are_named_and_may_be_elsewhere(retrained: Any, tmp_path: Path) -> None:
    place, away = retrained.place, tmp_path / "away"
    moved = shutil.copytree(place.test, tmp_path / "moved")
    place.test.rename(away)
    try:
        done = place.nucleus("reproduce", retrained.run_id)
        assert done.returncode == 2
        assert f"are no longer at {place.test}. Say where" in done.stderr
        assert place.nucleus("reproduce", retrained.run_id, "--test", moved).returncode == 0
        shutil.rmtree(next(moved.iterdir()))
        done = place.nucleus("reproduce", retrained.run_id, "--test", moved)
        assert done.returncode == 2
        assert " is missing. Give the original data with --test." in done.stderr
    finally:
        away.rename(place.test)


def test_an_unknown_run_is_refused(retrained: Any) -> None:
    done = retrained.place.nucleus("reproduce", "123")
    assert done.returncode == 2
    _, error = done.stderr.splitlines()
    assert error.startswith("Error: There is no run 123 at sqlite:")
