from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import THRESHOLDS, match_nuclei
from nucleus_unet.reports.score_tables import format_scores, match_submission, scores_table

TRUTH = {"a": np.array([[1, 1, 1, 0], [0, 0, 0, 2]]), "b": np.array([[0]])}
# Of a's nuclei two of three pixels are found, and none.
SUBMISSION = "ImageId,EncodedPixels\na,1 1 3 1\nb,\nc,1 1\n"


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    path = tmp_path / "submission.csv"
    path.write_text(SUBMISSION)
    return path


def test_a_submission_is_matched_by_image(submission: Path) -> None:
    matches = match_submission(submission, TRUTH.items())
    assert list(matches) == ["a", "b"]  # c is not in the truth
    assert matches["a"].tp.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]  # IoU 2/3
    assert (matches["a"].true, matches["a"].predicted, matches["b"].score) == (2, 1, 1.0)


def test_the_table_of_scores_by_hand(submission: Path) -> None:
    table = scores_table(match_submission(submission, TRUTH.items()))
    assert table.pop("score") == pytest.approx((4 / 10 / 2 + 1) / 2)
    first, *_, last = table.pop("by_threshold")
    assert first == {
        "iou_above": 0.5,
        "average_precision": (1 / 2 + 1) / 2,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert (last["iou_above"], last["recall"]) == (0.95, 0.0)
    counts = {"true": 2, "predicted": 1, "split": 0, "merged": 0}
    assert table.pop("by_image") == [
        {"id": "a", "score": pytest.approx(0.2), **counts},
        {"id": "b", "score": 1.0, **dict.fromkeys(counts, 0)},
    ]
    difference = (2 / np.pi) ** 0.5 - (3 / np.pi) ** 0.5
    losses = dict.fromkeys(("missed", "invented", "split", "merged", "outline"), 0.0)
    assert table.pop("losses") == pytest.approx(losses | {"missed": 0.25, "outline": 0.15})
    assert table.pop("radius_bias_px") == pytest.approx(difference)
    [small] = table.pop("by_size")
    assert small == {
        "diameter_px": [0, 8],
        "nuclei": 2,
        "average_precision": 0.5,
        "radius_bias_px": pytest.approx(difference),
    }
    assert table == {"images": 2, **counts}


def test_scores_by_size_by_hand() -> None:
    y_true, y_pred = np.zeros((2, 80, 160), int)
    y_true[:70, :70], y_true[0, 100:102], y_true[70:80, 90:100] = 1, 2, 3
    y_pred[:70, :70], y_pred[40:45, 100:105], y_pred[70:80, 90:98] = 1, 2, 3
    rows = scores_table({"a": match_nuclei(y_true, y_pred)})["by_size"]
    found = {tuple(row["diameter_px"]): (row["nuclei"], row["average_precision"]) for row in rows}
    assert found == {(0, 8): (1, 0), (8, 16): (1, 1), (64, None): (1, 1)}
    assert [row["radius_bias_px"] for row in rows] == [
        None,
        pytest.approx((80 / np.pi) ** 0.5 - (100 / np.pi) ** 0.5),
        0,
    ]


def column(table: dict[str, Any], name: str) -> list[float]:
    return [row[name] for row in table["by_threshold"]]


def test_scores_of_many_images_by_hand() -> None:
    y_true = np.array([[1, 1, 1, 1, 0, 2, 0, 0]])
    y_pred = np.array([[1, 1, 1, 1, 1, 0, 0, 2]])
    nothing = np.zeros((1, 1), int)
    matches = {"a": match_nuclei(y_true, y_pred), "b": match_nuclei(nothing, nothing)}
    table = scores_table(matches)
    assert table["score"] == pytest.approx((0.2 + 1) / 2)  # each image has the same weight
    assert column(table, "iou_above") == list(THRESHOLDS)
    np.testing.assert_allclose(column(table, "average_precision"), [2 / 3] * 6 + [1 / 2] * 4)
    for name in ("precision", "recall", "f1"):
        np.testing.assert_allclose(column(table, name), [1 / 2] * 6 + [0] * 4)
    assert [table[name] for name in ("true", "predicted", "split", "merged")] == [2, 2, 0, 0]


def test_scores_of_images_without_nuclei() -> None:
    nothing = np.zeros((2, 2), int)
    table = scores_table({"a": match_nuclei(nothing, nothing)})
    assert table["score"] == 1.0
    assert column(table, "f1") == [1.0] * 10


def test_the_page_of_scores_names_the_worst_first(submission: Path) -> None:
    page = format_scores(scores_table(match_submission(submission, TRUTH.items())), worst=1)
    lines = page.splitlines()
    assert lines[0].startswith("score     0.6000  mean average precision")
    assert "0.50       0.7500  1.0000     0.5000  0.6667" in lines
    assert (
        "lost      0.2500 missed, 0.0000 invented, 0.0000 split, 0.0000 merged, 0.1500 outline"
        in lines
    )
    assert "0-8 px     2       0.5000      -0.18" in lines
    assert lines[-1] == "0.2000  a  2 annotated, 1 predicted, 0 split, 0 merged"


def test_an_image_without_a_row_is_refused(submission: Path) -> None:
    with pytest.raises(NucleusError, match=r"submission\.csv: no row for image d: .* every image"):
        match_submission(submission, [("d", np.array([[0]]))])


def test_an_rle_outside_the_image_is_refused(submission: Path) -> None:
    with pytest.raises(
        NucleusError, match=r"submission\.csv: image a: RLE 1 of 1, '1 1 3 1', ends"
    ):
        match_submission(submission, [("a", np.array([[0, 0]]))])


def test_a_truth_without_images_is_refused(submission: Path) -> None:
    with pytest.raises(NucleusError, match="the truth has no image"):
        match_submission(submission, [])
