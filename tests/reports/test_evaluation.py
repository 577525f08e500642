from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nucleus_unet.data.sample import Sample
from nucleus_unet.recipe import Inference, Recipe
from nucleus_unet.reports import evaluation as module
from nucleus_unet.reports.evaluation import (
    Evaluation,
    disagreement,
    evaluate_model,
    pictures,
    score_maps,
)

Case = tuple[Sample, Path]


def scored(cases: list[Case], cutoff: float = 0.5) -> dict[str, Any]:
    samples, probabilities = zip(*cases, strict=True)
    return score_maps(samples, probabilities, Inference(cutoff=cutoff), lambda *_: None)


def test_scores_by_hand(case: Callable[..., Case]) -> None:
    # One pixel of three is found, and a false one; then two nuclei are found exactly.
    half = case("half", [[1, 1, 1, 0, 0]], [[0.99, 0.1, 0.1, 0.1, 0.99]])
    right = case("right", [[1, 0, 2]], [[0.99, 0.01, 0.99]])
    scores = scored([right, half])
    assert [row["id"] for row in scores["by_image"]] == ["half", "right"]  # worst first
    worst, best = scores["by_image"]
    assert worst == {
        "id": "half",
        "kind": "kind half",
        "score": 0.0,
        "iou": pytest.approx(1 / 4),
        "true": 1,
        "predicted": 2,
        "split": 0,
        "merged": 0,
    }
    assert (best["score"], best["iou"]) == (1, 1)
    assert scores["score"] == 0.5
    none = {"split": 0, "merged": 0}
    assert scores["by_kind"] == {
        "kind half": none
        | {"score": 0, "images": 1, "ap_50": 0, "f1_70": 0, "radius_bias_px": None},
        "kind right": none | {"score": 1, "images": 1, "ap_50": 1, "f1_70": 1, "radius_bias_px": 0},
    }
    # All pixels together: tp 3, fp 1, fn 2, tn 2, and not the mean of the two.
    assert scores["images"] == 2
    assert scores["iou"] == pytest.approx(3 / 6)
    assert scores["mean_iou"] == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert (scores["true"], scores["predicted"]) == (3, 4)


def test_maps_are_scored_at_the_original_size(case: Callable[..., Case]) -> None:
    labels = np.zeros((8, 12), int)
    labels[:, 6:] = 1
    (row,) = scored([case("a", labels, [[0, 1], [0, 1]])])["by_image"]
    assert (row["iou"], row["predicted"], row["score"]) == (1, 1, 1)


def test_the_cutoff_moves_the_nuclei_and_not_the_pixel_scores(case: Callable[..., Case]) -> None:
    cases = [case("a", [[1, 0, 1]], [[0.7, 0.6, 0.7]])]
    low, high = scored(cases, 0.5), scored(cases, 0.65)
    assert (low["predicted"], high["predicted"]) == (1, 2)
    assert (low["iou"], low["mean_iou"]) == (high["iou"], high["mean_iou"])


def test_images_without_nuclei(case: Callable[..., Case]) -> None:
    scores = scored([case("a", [[0, 0]], [[0.1, 0.2]])])
    assert (scores["iou"], scores["mean_iou"]) == (1, 1)
    assert (scores["true"], scores["predicted"], scores["score"]) == (0, 0, 1)


def test_ties_go_by_id(case: Callable[..., Case]) -> None:
    cases = [case(id_, [[1, 0]], [[0.99, 0]]) for id_ in "bca"]
    assert [row["id"] for row in scored(cases)["by_image"]] == ["a", "b", "c"]


def test_progress_is_reported(case: Callable[..., Case]) -> None:
    samples, probabilities = zip(*(case(id_, [[1, 0]], [[1, 0]]) for id_ in "abc"), strict=True)
    seen: list[tuple[int, int]] = []
    score_maps(samples, probabilities, Inference(), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The titles in each contact sheet that is drawn."""
    titles: list[list[str]] = []
    draw = module.contact_sheet

    def contact_sheet(tiles: Any, legend: Any) -> bytes:
        titles.append([title for title, _ in tiles])
        return draw(tiles, legend)

    monkeypatch.setattr(module, "contact_sheet", contact_sheet)
    return titles


def evaluated(cases: list[Case]) -> tuple[list[Sample], Evaluation]:
    samples, maps = zip(*cases, strict=True)
    return [*samples], Evaluation(maps, Inference(), scored(cases))


def size(png: bytes) -> tuple[int, ...]:
    decoded: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return tuple(decoded.shape)


def partly_found(case: Callable[..., Case], share: int, id_: str) -> Case:
    """An image with one nucleus, ten columns wide. As many columns as `share` says are found."""
    y_true = np.repeat([[1] * 10 + [0] * 2], 12, 0)
    found = np.repeat([[1.0] * share + [0.0] * (12 - share)], 12, 0)
    return case(id_, y_true, found)


def test_pictures_of_the_best_and_of_the_worst_images(
    case: Callable[..., Case], sheets: list[list[str]]
) -> None:
    samples, found = evaluated([partly_found(case, 10 - k, f"{k}") for k in range(10)])
    # Shares of 10, 9, 8 .. 1 of 10 columns.
    assert [found.by_id[f"{k}"] for k in range(7)] == [1, 0.8, 0.6, 0.4, 0.2, 0, 0]
    drawn = pictures(samples, found)
    assert list(drawn) == ["best", "worst"]
    assert sheets == [
        [
            "0  score 1.00, 1 nuclei, 1 found",
            "1  score 0.80, 1 nuclei, 1 found",
            "2  score 0.60, 1 nuclei, 1 found",
            "3  score 0.40, 1 nuclei, 1 found",
            "4  score 0.20, 1 nuclei, 1 found",
        ],
        [f"{k}  score 0.00, 1 nuclei, 1 found" for k in (5, 6, 7, 8, 9)],
    ]
    assert [size(png) for png in drawn.values()] == [size(drawn["best"])] * 2


def test_at_most_eight_images_are_best_or_worst(
    case: Callable[..., Case], sheets: list[list[str]]
) -> None:
    pictures(*evaluated([partly_found(case, 10, f"{k:02}") for k in range(17)]))
    best, worst = sheets
    assert [title[:2] for title in best] == [f"{k:02}" for k in range(16, 8, -1)]
    assert [title[:2] for title in worst] == [f"{k:02}" for k in range(8)]


def test_a_single_image_is_best_and_worst(
    case: Callable[..., Case], sheets: list[list[str]]
) -> None:
    pictures(*evaluated([partly_found(case, 10, "a")]))
    assert sheets == [["a  score 1.00, 1 nuclei, 1 found"]] * 2


def test_two_models_are_drawn_where_they_differ_most(
    case: Callable[..., Case], sheets: list[list[str]], tmp_path: Path
) -> None:
    first = [partly_found(case, share, id_) for id_, share in zip("abc", (10, 6, 9), strict=True)]
    samples, champion = evaluated(first)
    second = []
    for share, (sample, path) in zip((9, 10, 9), first, strict=True):
        other = path.with_name(f"{sample.id} of the new model.npy")
        np.save(other, np.repeat([[1.0] * share + [0.0] * (12 - share)], 12, 0)[..., None])
        second.append((sample, other))
    new = evaluated(second)[1]
    png = disagreement(samples, {"champion": champion, "new": new})
    assert sheets == [
        [
            "b  champion: score 0.20",
            "b  new: score 1.00",
            "a  champion: score 1.00",
            "a  new: score 0.80",
            "c  champion: score 0.80",
            "c  new: score 0.80",
        ]
    ]
    assert size(png)[2] == 3


def test_at_most_six_images_of_two_models_are_drawn(
    case: Callable[..., Case], sheets: list[list[str]]
) -> None:
    samples, one = evaluated([partly_found(case, 10, f"{k}") for k in range(7)])
    disagreement(samples, {"champion": one, "new": one})
    assert [title[:1] for title in sheets[0]] == [*"001122334455"]


@pytest.mark.parametrize(("tune", "cutoff", "score"), [(False, 0.5, 0.0), (True, 0.3, 1.0)])
def test_a_model_is_evaluated_with_tuned_settings_if_the_recipe_says_so(
    case: Callable[..., Case],
    tmp_path: Path,
    tiny: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    tune: bool,
    cutoff: float,
    score: float,
) -> None:
    # The network is not sure enough for the cutoff of the recipe.
    sample, maps = case("a", [[1, 1, 0, 0]], [[0.42, 0.42, 0.0, 0.0]])
    asked: list[Any] = []

    def write_maps(*arguments: Any) -> list[Path]:
        asked.append(arguments[:-1])
        return [maps]

    monkeypatch.setattr(module, "write_maps", write_maps)
    named: list[tuple[str, str]] = []

    def progress(what: str, unit: str) -> Callable[[int, int], None]:
        named.append((what, unit))
        return lambda done, total: None

    recipe = tiny.with_overrides([f"inference.tune={str(tune).lower()}"])
    network, folder = tmp_path / "model.keras", tmp_path / "maps"
    found = evaluate_model(recipe, [(network, [sample])], folder, progress)
    assert folder.is_dir()
    assert asked == [(recipe, network, {"a": sample.image}, folder)]
    assert (found.maps, found.by_id) == ([maps], {"a": score})
    assert found.inference == recipe.inference.model_copy(update={"cutoff": cutoff})
    tuning = [("tuning", "settings")] * tune
    assert named == [("predicting", "images"), *tuning, ("scoring", "images")]
