from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import ArrayLike

from nucleus_unet.dataset.sample import Sample
from nucleus_unet.evaluation import PICTURES, pictures, score

Case = tuple[Sample, Path]


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str, ArrayLike, ArrayLike], Case]:
    """Writes a gray image with labels and a probability, of which the latter may be smaller."""

    def case(id_: str, labels: ArrayLike, probability: ArrayLike) -> Case:
        sample = Sample(id_, tmp_path / f"{id_}.npy", tmp_path / f"{id_}_labels.npy")
        y_true = np.array(labels, np.uint16)
        np.save(sample.image, np.full((*y_true.shape, 3), 128, np.uint8))
        np.save(sample.labels, y_true)
        np.save(tmp_path / f"{id_}_p.npy", np.array(probability, np.float32))
        return sample, tmp_path / f"{id_}_p.npy"

    return case


def scored(cases: list[Case], cutoff: float = 0.5) -> dict[str, Any]:
    samples, probabilities = zip(*cases, strict=True)
    return score(samples, probabilities, cutoff, lambda *_: None)


def test_scores_by_hand(case: Callable[..., Case]) -> None:
    # One pixel of three found, a false one beside it; then two nuclei found as they are.
    half = case("half", [[1, 1, 1, 0, 0]], [[0.99, 0.1, 0.1, 0.1, 0.99]])
    right = case("right", [[1, 0, 2]], [[0.99, 0.01, 0.99]])
    scores = scored([right, half])
    assert [row["id"] for row in scores["by_image"]] == ["half", "right"]  # worst first
    worst, best = scores["by_image"]
    assert worst == {
        "id": "half",
        "mean_iou": pytest.approx((1 / 4 + 1 / 4) / 2),
        "iou": pytest.approx(1 / 4),
        "dice": pytest.approx(2 / 5),
        "nuclei_true": 1,
        "nuclei_predicted": 2,
    }
    assert (best["mean_iou"], best["iou"], best["dice"]) == (1, 1, 1)
    # All pixels together: tp 3, fp 1, fn 2, tn 2, and not the mean of the two.
    assert scores["images"] == 2
    assert scores["iou"] == pytest.approx(3 / 6)
    assert scores["mean_iou"] == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert (scores["nuclei_true"], scores["nuclei_predicted"]) == (3, 4)


def test_probabilities_are_scored_at_the_original_size(case: Callable[..., Case]) -> None:
    labels = np.zeros((8, 12), int)
    labels[:, 6:] = 1
    (row,) = scored([case("a", labels, [[0, 1], [0, 1]])])["by_image"]
    assert (row["iou"], row["nuclei_predicted"]) == (1, 1)


def test_the_cutoff_moves_the_nuclei_and_not_the_pixel_scores(case: Callable[..., Case]) -> None:
    cases = [case("a", [[1, 0, 1]], [[0.7, 0.6, 0.7]])]
    low, high = scored(cases, 0.5), scored(cases, 0.65)
    assert (low["nuclei_predicted"], high["nuclei_predicted"]) == (1, 2)
    assert (low["iou"], low["mean_iou"]) == (high["iou"], high["mean_iou"])


def test_images_without_nuclei(case: Callable[..., Case]) -> None:
    scores = scored([case("a", [[0, 0]], [[0.1, 0.2]])])
    assert (scores["iou"], scores["mean_iou"]) == (1, 1)
    assert (scores["nuclei_true"], scores["nuclei_predicted"]) == (0, 0)


def test_ties_go_by_id(case: Callable[..., Case]) -> None:
    cases = [case(id_, [[1, 0]], [[0.99, 0]]) for id_ in "bca"]
    assert [row["id"] for row in scored(cases)["by_image"]] == ["a", "b", "c"]


def test_progress_is_told(case: Callable[..., Case]) -> None:
    samples, probabilities = zip(*(case(id_, [[1, 0]], [[1, 0]]) for id_ in "abc"), strict=True)
    told: list[tuple[int, int]] = []
    score(samples, probabilities, 0.5, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_pictures_of_the_best_and_of_the_worst(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    y_true = np.repeat([[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]], 12, 0)
    found = np.tri(12)[::-1].astype(int)[:10]  # row k: a share of the nucleus that falls with k
    cases = [case(f"{k}", y_true, np.repeat([row], 12, 0)) for k, row in enumerate(found)]
    samples, probabilities = zip(*cases, strict=True)
    scores = scored(cases)
    titles: list[list[str]] = []
    from nucleus_unet import figures

    sheet = figures.contact_sheet

    def contact_sheet(tiles: Any, *args: Any, **options: Any) -> bytes:
        titles.append([title for title, _ in tiles])
        return sheet(tiles, *args, **options)

    monkeypatch.setattr(figures, "contact_sheet", contact_sheet)
    sheets = pictures(samples, probabilities, 0.5, scores)
    assert list(sheets) == ["best", "worst"]
    for png in sheets.values():
        decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
    rows = [
        f"{row['id']}  IoU {row['iou']:.2f}, 1 nuclei, {row['nuclei_predicted']} found"
        for row in scores["by_image"]
    ]
    each = min(PICTURES, (len(rows) + 1) // 2)  # no image is among the best and the worst
    assert titles == [rows[::-1][:each], rows[:each]]
    assert len(rows) > PICTURES
