from typing import Any

import pytest

from nucleus_unet.reproduction import ImageDifference
from nucleus_unet.tracking import Run

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
