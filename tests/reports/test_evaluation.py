import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import ArrayLike

from nucleus_unet.data.sample import Sample
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Inference
from nucleus_unet.reports.evaluation import (
    PICTURES,
    format_scores,
    match_submission,
    pictures,
    score_maps,
    scores_table,
    tune_inference,
)

Case = tuple[Sample, Path]


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str, ArrayLike, ArrayLike], Case]:
    """Writes a gray image with labels and a probability, of which the latter may be smaller."""

    def case(id_: str, labels: ArrayLike, probability: ArrayLike) -> Case:
        sample = Sample(id_, tmp_path / f"{id_}.npy", tmp_path / f"{id_}_labels.npy", f"kind {id_}")
        y_true = np.array(labels, np.uint16)
        np.save(sample.image, np.full((*y_true.shape, 3), 128, np.uint8))
        np.save(sample.labels, y_true)
        np.save(tmp_path / f"{id_}_p.npy", np.array(probability, np.float32)[..., None])
        return sample, tmp_path / f"{id_}_p.npy"

    return case


def scored(cases: list[Case], cutoff: float = 0.5) -> dict[str, Any]:
    samples, probabilities = zip(*cases, strict=True)
    return score_maps(samples, probabilities, Inference(cutoff=cutoff), lambda *_: None)


def test_scores_by_hand(case: Callable[..., Case]) -> None:
    # One pixel of three found, a false one beside it; then two nuclei found as they are.
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
    assert scores["by_kind"] == {
        "kind half": {"score": 0.0, "images": 1},
        "kind right": {"score": 1.0, "images": 1},
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


def test_progress_is_told(case: Callable[..., Case]) -> None:
    samples, probabilities = zip(*(case(id_, [[1, 0]], [[1, 0]]) for id_ in "abc"), strict=True)
    told: list[tuple[int, int]] = []
    score_maps(samples, probabilities, Inference(), lambda done, total: told.append((done, total)))
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
    from nucleus_unet.reports import figures

    sheet = figures.contact_sheet

    def contact_sheet(tiles: Any, *args: Any, **options: Any) -> bytes:
        titles.append([title for title, _ in tiles])
        return sheet(tiles, *args, **options)

    monkeypatch.setattr(figures, "contact_sheet", contact_sheet)
    sheets = pictures(samples, probabilities, Inference(), scores["by_image"])
    assert list(sheets) == ["best", "worst"]
    for png in sheets.values():
        decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
    rows = [
        f"{row['id']}  score {row['score']:.2f}, 1 nuclei, {row['predicted']} found"
        for row in scores["by_image"]
    ]
    each = min(PICTURES, (len(rows) + 1) // 2)  # no image is among the best and the worst
    assert titles == [rows[::-1][:each], rows[:each]]
    assert len(rows) > PICTURES


def test_cutoffs_are_tuned_by_the_score(case: Callable[..., Case], tmp_path: Path) -> None:
    # A bridge of 0.58 joins two nuclei of 0.9, and a speck of 9 pixels is none.
    y_true, found = np.zeros((20, 40), int), np.zeros((20, 40))
    y_true[5:15, 5:15], y_true[5:15, 17:27] = 1, 2
    found[y_true > 0] = 0.9
    found[5:15, 15:17] = 0.58
    found[1:4, 34:37] = 0.9
    samples, maps = zip(case("a", y_true, found), strict=True)
    tuned = tune_inference(samples, maps, Inference(tune=True), lambda *_: None)
    assert (tuned.cutoff, tuned.min_area_px) == (0.6, 16)
    assert tuned.seed_cutoff == 0.5  # of maps with borders alone
    assert scored([case("a", y_true, found)])["score"] == 0
    assert score_maps(samples, maps, tuned, lambda *_: None)["score"] == 1
    # A second scale that finds nothing changes nothing.
    once = np.load(maps[0])
    np.save(tmp_path / "twice.npy", np.concatenate([once, 0 * once], axis=-1))
    twice = Inference(tune=True, scales=(1, 0.5))
    again = tune_inference(samples, [tmp_path / "twice.npy"], twice, lambda *_: None)
    assert again == tuned.model_copy(update={"scales": (1, 0.5)})


def test_the_least_confidence_is_tuned_by_the_score(case: Callable[..., Case]) -> None:
    # Both have cores of 0.99 and rims of 0.85: the one that is mostly core is annotated.
    y_true, found = np.zeros((20, 40), int), np.zeros((20, 40))
    y_true[5:15, 5:15] = 1
    found[5:15, 5:15], found[5:15, 25:35] = 0.85, 0.85
    found[6:14, 6:14], found[9:11, 29:31] = 0.99, 0.99  # means of 0.940 and of 0.856
    samples, maps = zip(case("a", y_true, found), strict=True)
    told = []
    tuned = tune_inference(samples, maps, Inference(tune=True), lambda *counts: told.append(counts))
    assert told == [(k, 58) for k in range(1, 59)]
    assert tuned.min_confidence == 0.86
    assert score_maps(samples, maps, tuned, lambda *_: None)["score"] == 1


def test_a_setting_that_no_tried_value_betters_stays(case: Callable[..., Case]) -> None:
    # Two nuclei of 0.53 and a bridge of 0.52: only a cutoff between them tells them apart.
    samples, maps = zip(case("a", [[1, 1, 0, 2, 2]], [[0.53, 0.53, 0.52, 0.53, 0.53]]), strict=True)
    assert (
        tune_inference(samples, maps, Inference(tune=True, cutoff=0.525), lambda *_: None).cutoff
        == 0.525
    )


def test_many_images_are_not_all_open_at_once(case: Callable[..., Case]) -> None:
    cases = [case(f"{k}", [[1, 0]], [[0.99, 0]]) for k in range(150)]
    samples, maps = zip(*cases, strict=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        tuned = tune_inference(samples, maps, Inference(tune=True), lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tuned == Inference(tune=True)  # all values are as good, so what the recipe says stays


def test_where_nuclei_begin_is_tuned_by_the_score(
    case: Callable[..., Case], tmp_path: Path
) -> None:
    # Two nuclei that touch: between them 0.9 * (1 - border) falls to 0.22.
    y_true = np.repeat([[1] * 10 + [2] * 10], 10, 0)
    sample, _ = case("a", y_true, np.ones((10, 20)))
    maps = np.full((10, 20, 2), (0.9, 0), np.float32)
    maps[:, 9:11, 1] = 1 - 0.22 / 0.9
    np.save(tmp_path / "maps.npy", maps)
    tuned = tune_inference(
        [sample], [tmp_path / "maps.npy"], Inference(tune=True, seed_cutoff=0.1), lambda *_: None
    )
    assert tuned.seed_cutoff == 0.25


# Submissions

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
    assert table == {"images": 2, **counts}


def test_the_page_of_scores_names_the_worst_first(submission: Path) -> None:
    page = format_scores(scores_table(match_submission(submission, TRUTH.items())), worst=1)
    lines = page.splitlines()
    assert lines[0].startswith("score     0.6000  mean average precision")
    assert "0.50       0.7500  1.0000     0.5000  0.6667" in lines
    assert lines[-1] == "0.2000  a  2 annotated, 1 predicted, 0 split, 0 merged"


def test_an_image_without_a_row_is_refused(submission: Path) -> None:
    with pytest.raises(NucleusError, match=r"submission\.csv: no row for image d: .* every image"):
        match_submission(submission, [("d", np.array([[0]]))])


def test_an_rle_outside_the_image_is_refused(submission: Path) -> None:
    with pytest.raises(NucleusError, match=r"submission\.csv: image a: RLE 1 of 1.* leaves the"):
        match_submission(submission, [("a", np.array([[0, 0]]))])


def test_a_truth_without_images_is_refused(submission: Path) -> None:
    with pytest.raises(NucleusError, match="the truth has no image"):
        match_submission(submission, [])
