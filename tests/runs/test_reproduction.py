import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.runs.reproduction import (
    ImageDifference,
    LoggedDataset,
    Record,
    compare_submissions,
    data_changes,
    environment_script,
    run_differences,
    side_by_side,
)

FILES = [
    {"id": "a", "image_sha256": "1", "masks_sha256": "2"},
    {"id": "b", "image_sha256": "3", "masks_sha256": "4"},
]
RECORD = Record(
    run_id="first",
    recipe={"name": "best", "training": {"threads": 2, "seed": 10}},
    machine={"cpu": "Xeon", "cpu flags": "avx2 amx_bf16"},
    packages={"tensorflow": "2.21.0", "mlflow": "3.17.2", "numpy": "2.4.0"},
    commit="1" * 40,
    diff="",
    data={"training": LoggedDataset(["/raw"], FILES)},
)


def test_runs_that_agree_in_everything_that_counts() -> None:
    other = replace(
        RECORD,
        run_id="second",
        recipe={"name": "renamed", "training": {"threads": 2, "seed": 10}},
        data={"training": LoggedDataset(["/moved"], FILES)},
        tags={"kind": "reproduce"},
    )
    assert run_differences(RECORD, other) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"recipe": {"name": "best", "training": {"threads": 1, "seed": 10}}},
            "recipe training.threads 2 → 1",
        ),
        (
            {"machine": {"cpu": "Xeon", "cpu flags": "avx2"}},
            "machine cpu flags avx2 amx_bf16 → avx2",
        ),
        (
            {"machine": RECORD.machine | {"XLA_FLAGS": "x"}},
            "machine XLA_FLAGS absent → x",
        ),
        ({"packages": RECORD.packages | {"numpy": "2.5.0"}}, "package numpy 2.4.0 → 2.5.0"),
        ({"commit": "2" * 40}, "source 111111111111 → 222222222222"),
        ({"diff": "+x"}, "source: what the working tree has beside the commit"),
        (
            {"data": {"training": LoggedDataset([], FILES[1:])}},
            "training data: image a is missing",
        ),
    ],
)
def test_a_change_is_named(changed: dict[str, Any], expected: str) -> None:
    assert run_differences(RECORD, replace(RECORD, **changed)) == [expected]


def test_the_likeliest_cause_comes_first() -> None:
    other = replace(
        RECORD,
        recipe={"name": "best", "training": {"threads": 2, "seed": 11}},
        machine={"cpu": "EPYC", "cpu flags": "avx2 amx_bf16"},
        packages={"mlflow": "4.0.0", "tensorflow": "2.22.0", "numpy": "2.4.0"},
        commit="2" * 40,
    )
    assert [line.rpartition(" → ")[0] for line in run_differences(RECORD, other)] == [
        "recipe training.seed 10",
        "package tensorflow 2.21.0",
        "machine cpu Xeon",
        "source 111111111111",
        "package mlflow 3.17.2",
    ]


def test_files_of_a_data_set_that_changed() -> None:
    after = [
        {"id": "b", "image_sha256": "x", "masks_sha256": "y"},
        {"id": "c", "image_sha256": "5", "masks_sha256": "6"},
    ]
    assert data_changes(FILES, FILES[::-1]) == []
    assert data_changes(FILES, after) == [
        "image a is missing",
        "image b changed",
        "masks of b changed",
        "image c is new",
    ]


def test_images_that_differ_between_submissions(tmp_path: Path) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    # Of 4 × 4 px, down the columns: x has another nucleus, y loses one and changes one's edge.
    a.write_text("ImageId,EncodedPixels\nx,1 4\ny,1 4\ny,9 2\nz,1 1\n")
    b.write_text("ImageId,EncodedPixels\nx,1 4\nx,9 2\ny,1 3\nz,1 1\n")
    sizes = {"x": (4, 4), "y": (4, 4), "z": (4, 4)}
    assert compare_submissions(a, b, sizes) == [
        ImageDifference("y", gained=0, lost=1, pixels=3),
        ImageDifference("x", gained=1, lost=0, pixels=2),
    ]
    assert compare_submissions(a, a, sizes) == []


def test_what_two_runs_made_is_side_by_side() -> None:
    epochs = [
        {"loss": 1.0, "val_loss": 2.0, "mean_iou": 0.5, "val_mean_iou": v} for v in (0.7, 0.6)
    ]
    trained = replace(
        RECORD,
        metrics={"loss": 1.0, "validation/score": 0.51239, "validation/score of fluorescence": 0.5},
        history=epochs,
        tags={"kind": "retrain", "submission.sha256": "a" * 64},
    )
    predicted = replace(RECORD, metrics={"submission/nuclei": 7.0}, tags={})
    assert side_by_side(trained, predicted) == [
        ("loss of the last epoch", "1", "absent"),
        ("val_loss of the last epoch", "2", "absent"),
        ("mean_iou of the last epoch", "0.5", "absent"),
        ("val_mean_iou of the last epoch", "0.6", "absent"),
        ("val_mean_iou of the best epoch", "0.7", "absent"),
        ("validation/score", "0.5124", "absent"),
        ("validation/score of fluorescence", "0.5", "absent"),
        ("submission.sha256", "a" * 16, "absent"),
        ("submission/nuclei", "absent", "7"),
    ]


@pytest.mark.parametrize("locked", [True, False])
def test_the_script_of_a_run_s_revision_and_packages(tmp_path: Path, locked: bool) -> None:
    record = replace(
        RECORD,
        machine={"python": "3.11.7", "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": "3"},
        packages={"NumPy": "2.3.5", "jax": "0.11.2", "nucleus-unet": "1", "pip": "26"},
    )
    lock, diff = (tmp_path / "a b.lock", tmp_path / "a.diff") if locked else (None, None)
    (tmp_path / "a b.lock").write_text("numpy==2.3.5 \\\n    --hash=sha256:00\n")
    text = environment_script(record, lock, diff, ["reproduce", "it's"])
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    assert lines[0] == f"# Run {record.run_id}: commit {record.commit}, Python 3.11.7"
    assert lines[1] == "set -e; trap 'exit 2' EXIT"
    assert lines[3].startswith("git clone --quiet ")
    assert lines[5] == f"git checkout --quiet {record.commit}"
    assert (f"git apply {diff}" in lines) == locked
    assert "python3.11 -m venv .venv" in lines
    pip = ".venv/bin/pip install --quiet --disable-pip-version-check --no-deps "
    assert [line.removeprefix(pip) for line in lines if line.startswith(pip)] == [
        *([f"--require-hashes --requirement '{lock}'", "jax==0.11.2"] if locked else []),
        *([] if locked else ["NumPy==2.3.5 jax==0.11.2"]),
        "--no-build-isolation --editable .",
    ]
    assert {"export KERAS_BACKEND=jax", "unset XLA_FLAGS"} <= {*lines}
    assert "CUDA_VISIBLE_DEVICES" not in text
    assert lines[-1] == ".venv/bin/nucleus reproduce 'it'\"'\"'s'"


@pytest.mark.parametrize(
    ("commit", "python"),
    [("c; touch x", "3.11.7"), ("c" * 40, "3.11$(touch x).7"), ("unknown", "")],
)
def test_no_script_is_made_of_what_could_not_be_a_revision(commit: str, python: str) -> None:
    record = replace(RECORD, commit=commit, machine={"python": python})
    with pytest.raises(NucleusError, match="names no commit and no Python"):
        environment_script(record, None, None, ["reproduce", "it"])


@pytest.mark.parametrize(("pip", "nucleus", "answer"), [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 2)])
def test_the_script_ends_as_the_command_does_and_with_2_where_it_cannot_be_tried(
    tmp_path: Path, pip: int, nucleus: int, answer: int
) -> None:
    (tmp_path / "bin").mkdir()
    stubs = {
        "git": 'if [ "$1" = clone ]; then mkdir "$4"; fi',  # which refuses where it is there
        "python3.11": f"""mkdir -p .venv/bin
            printf '#!/bin/sh\nexit {pip}' > .venv/bin/pip
            printf '#!/bin/sh\nexit {nucleus}' > .venv/bin/nucleus
            chmod +x .venv/bin/*""",
    }
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    record = replace(RECORD, machine={"python": "3.11.7"}, packages={"numpy": "2.3.5"})
    script = environment_script(record, None, None, ["reproduce", "it"])
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for _ in "ab":  # the second finds the folder of the first
        done = subprocess.run(
            ["sh"], input=script, text=True, cwd=tmp_path, env=os.environ | {"PATH": path}
        )
        assert done.returncode == answer
