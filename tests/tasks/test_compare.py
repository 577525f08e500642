from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.data.truth import read_truth
from nucleus_unet.nuclei import submission
from nucleus_unet.runs.reproduction import ImageDifference
from nucleus_unet.runs.tracking import Run

LOGGED, MADE = "a" * 64, "b" * 64


@pytest.fixture
def compare() -> Any:
    from tasks import compare

    return compare


def test_the_report_of_the_same(compare: Any) -> None:
    answer = compare.Answer(
        Run("again", "http://m"), "first", True, (LOGGED, LOGGED), (), True, None, ()
    )
    assert compare.report(answer).split("\n\n") == [
        "# Reproduction of first: identical",
        f"submission.csv: logged {LOGGED}, made {LOGGED}.",
        "Weights: identical.",
    ]


def test_the_report_of_another_names_causes_then_the_worst_images(compare: Any) -> None:
    images = [ImageDifference(f"i{n}", gained=1, lost=2, pixels=100 - n) for n in range(30)]
    causes = ["package numpy 1 → 2", "machine cores 2 → 4"]
    answer = compare.Answer(
        Run("again", "http://m"), "first", False, (LOGGED, MADE), images, None, (0.5, 0.25), causes
    )
    parts = compare.report(answer).split("\n\n")
    assert parts[0] == "# Reproduction of first: different"
    assert parts[2:6] == [
        "Score 0.5000 → 0.2500.",
        "Likely causes, in order:",
        "1. package numpy 1 → 2\n1. machine cores 2 → 4",
        "30 images differ:",
    ]
    rows = parts[6].splitlines()
    assert rows[2] == "| i0 | 1 | 2 | 100 |"
    assert len(rows) == 2 + 20


def test_scores_where_the_test_images_are_annotated(
    home: Path, tmp_path: Path, compare: Any
) -> None:
    train, test = write_synthetic(tmp_path / "data", train=2, test=1)
    truth = dict(read_truth(train, home, lambda *_: None))
    whole, nothing = tmp_path / "whole.csv", tmp_path / "nothing.csv"
    rows = [row for id_, labels in truth.items() for row in submission.submission_rows(id_, labels)]
    submission.write_submission(whole, rows)
    submission.write_submission(nothing, [(id_, "") for id_ in truth])
    assert compare._scores([train], whole, nothing) == (1, 0)
    assert compare._scores([test], whole, nothing) is None
    assert compare._scores([train, test], whole, nothing) is None
