from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.data.truth import read_truth
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei.submission import submission_rows, write_submission
from nucleus_unet.runs.logged import LoggedDataset, Record
from nucleus_unet.runs.reproduction import (
    ImageDifference,
    Reproduction,
    compare_submissions,
    data_differences,
    require_same_data,
    run_differences,
    side_by_side,
    submission_scores,
)

FILES = [
    {"id": "a", "image_sha256": "1", "masks_sha256": "2"},
    {"id": "b", "image_sha256": "3", "masks_sha256": "4"},
]
MACHINE = {"cpu": "Xeon", "cpu flags": "avx2 amx_bf16"}
PACKAGES = {"tensorflow": "2.21.0", "mlflow": "3.17.2", "numpy": "2.4.0"}
RECORD = Record(
    run_id="first",
    recipe={"name": "best", "training": {"threads": 2, "seed": 10}},
    machine=MACHINE,
    packages=PACKAGES,
    commit="1" * 40,
    diff="",
    data={"training": LoggedDataset(["/raw"], FILES)},
)


def test_runs_without_a_difference_that_matters() -> None:
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
            {"machine": MACHINE | {"XLA_FLAGS": "x"}},
            "machine XLA_FLAGS absent → x",
        ),
        ({"packages": PACKAGES | {"numpy": "2.5.0"}}, "package numpy 2.4.0 → 2.5.0"),
        ({"commit": "2" * 40}, "source 111111111111 → 222222222222"),
        ({"diff": "+x"}, "source: uncommitted changes differ"),
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
    assert data_differences(FILES, FILES[::-1]) == []
    assert data_differences(FILES, after) == [
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


def test_the_results_of_two_runs_side_by_side() -> None:
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


def test_the_same_data_in_another_order_are_accepted() -> None:
    require_same_data(RECORD, "training", FILES[::-1])


@pytest.mark.parametrize(
    ("context", "files", "said"),
    [
        (
            "training",
            FILES[1:],
            "The training data differ from the data of run first: image a is missing. Give the "
            "original data with --train.",
        ),
        (
            "test",
            [{"id": f"{n}", "image_sha256": "x"} for n in range(5)],
            "The test data differ from the data of run first: image 0 is new, image 1 is new, image 2 "
            "is new, image 3 is new, image 4 is new. Give the original data with --test.",
        ),
        (
            "test",
            [{"id": f"{n}", "image_sha256": "x"} for n in range(8)],
            "The test data differ from the data of run first: image 0 is new, image 1 is new, image 2 "
            "is new, image 3 is new, image 4 is new and 3 more. Give the original data with --test.",
        ),
    ],
)
def test_other_data_are_refused(context: str, files: list[dict[str, str]], said: str) -> None:
    record = replace(RECORD, data={**RECORD.data, "test": LoggedDataset(["/test"], [])})
    with pytest.raises(NucleusError) as caught:
        require_same_data(record, context, files)
    assert str(caught.value) == said


def test_submissions_are_scored_if_the_test_images_are_annotated(tmp_path: Path) -> None:
    train, test = write_synthetic(tmp_path / "data", train=2, test=1)
    truth = dict(read_truth(train, tmp_path / "home", lambda *_: None))
    complete, empty = tmp_path / "complete.csv", tmp_path / "empty.csv"
    rows = [row for id_, labels in truth.items() for row in submission_rows(id_, labels)]
    write_submission(complete, rows)
    write_submission(empty, [(id_, "") for id_ in truth])

    def scores(*data: Path) -> list[float] | None:
        both = [complete, empty]
        return submission_scores(both, data, tmp_path / "home", lambda done, total: None)

    assert scores(train) == [1, 0]
    assert scores(test) is None
    assert scores(train, test) is None


SAME = Reproduction(
    run_id="again",
    reproduces="first",
    identical=True,
    sha256=("a" * 64, "a" * 64),
    images=(),
    weights_equal=None,
    scores=None,
    causes=(),
)


def test_the_report_of_an_identical_result() -> None:
    assert SAME.outcome == "identical"
    assert SAME.report().split("\n\n") == [
        "# Reproduction of run first: identical",
        f"SHA-256 of submission.csv: {'a' * 64} logged, {'a' * 64} reproduced.",
    ]
    retrained = replace(SAME, weights_equal=True)
    assert retrained.report().split("\n\n")[2:] == ["Weights: identical."]


def test_the_report_of_a_difference_names_causes_then_the_worst_images() -> None:
    different = replace(
        SAME,
        identical=False,
        sha256=("a" * 64, "b" * 64),
        images=[ImageDifference(f"i{n}", gained=1, lost=2, pixels=100 - n) for n in range(30)],
        weights_equal=False,
        scores=(0.5, 0.25),
        causes=["package numpy 1 → 2", "machine cores 2 → 4"],
    )
    assert different.outcome == "different"
    parts = different.report().split("\n\n")
    assert parts[:-1] == [
        "# Reproduction of run first: different",
        f"SHA-256 of submission.csv: {'a' * 64} logged, {'b' * 64} reproduced.",
        "Weights: different.",
        "Score: 0.5000 logged, 0.2500 reproduced.",
        "Likely causes, the likeliest first:",
        "1. package numpy 1 → 2\n1. machine cores 2 → 4",
        "30 images differ:",
    ]
    rows = parts[-1].splitlines()
    assert rows[0] == "| image | nuclei gained | nuclei lost | pixels changed |"
    assert rows[2] == "| i0 | 1 | 2 | 100 |"
    assert rows[-1] == "| i19 | 1 | 2 | 81 |"
    assert len(rows) == 2 + 20


def test_the_report_of_a_difference_without_a_known_cause() -> None:
    parts = replace(SAME, identical=False, weights_equal=False).report().split("\n\n")
    assert parts[2:] == [
        "Weights: different.",
        "Likely causes, the likeliest first:",
        "1. The two runs logged the same recipe, data and environment.",
    ]
