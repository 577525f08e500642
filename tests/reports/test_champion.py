import numpy as np
import pytest

from nucleus_unet.reports import champion
from nucleus_unet.reports.champion import compare_scores


def test_the_same_scores_are_no_better() -> None:
    scores = {"a": 0.25, "b": 0.5}
    found = compare_scores(scores, scores, {"a": "x", "b": "y"})
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert (found.images, found.slides, found.better) == (2, 2, False)


def test_better_on_every_image_is_better() -> None:
    first = {str(k): k / 20 for k in range(10)}
    second = {id_: score + 0.125 for id_, score in first.items()}
    found = compare_scores(first, second, {id_: id_ for id_ in first})
    assert found.difference == pytest.approx(0.125)
    assert (found.low, found.high) == (pytest.approx(0.125), pytest.approx(0.125))
    assert found.better
    assert not compare_scores(second, first, {id_: id_ for id_ in first}).better


def test_images_of_one_slide_count_as_one_draw() -> None:
    # Nine images of one slide gain, one image of another loses.
    first = {str(k): 0.5 for k in range(10)}
    second = {str(k): 0.75 for k in range(9)} | {"9": 0.25}
    slides = {str(k): "x" for k in range(9)} | {"9": "y"}
    found = compare_scores(first, second, slides)
    assert found.difference == pytest.approx((9 * 0.25 - 0.25) / 10)
    # With two slides each draw of one of them twice has a chance of a quarter.
    assert (found.low, found.high) == (-0.25, 0.25)
    assert not found.better
    assert compare_scores(first, second, {id_: id_ for id_ in first}).better


@pytest.mark.parametrize(("slides", "better"), [(1, False), (9, False), (10, True)])
def test_too_few_slides_do_not_tell(slides: int, better: bool) -> None:
    ids = [str(k) for k in range(slides)]
    found = compare_scores(
        dict.fromkeys(ids, 0.25), dict.fromkeys(ids, 0.5), {id_: id_ for id_ in ids}
    )
    assert (found.low, found.slides, found.better) == (0.25, slides, better)


def test_the_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.02, 0.1, 400)
    first = {f"{k:03}": 0.5 for k in range(400)}
    second = {f"{k:03}": 0.5 + float(d) for k, d in enumerate(differences)}
    found = compare_scores(first, second, {id_: id_ for id_ in first})
    half = 1.96 * differences.std() / 20
    assert found.low == pytest.approx(differences.mean() - half, abs=0.001)
    assert found.high == pytest.approx(differences.mean() + half, abs=0.001)
    assert found == compare_scores(first, second, {id_: id_ for id_ in first})


def test_equal_models_of_few_slides_are_rarely_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    better = 0
    for differences in rng.normal(0, 0.05, (1000, 10)):
        scores = {str(k): 0.5 + float(d) for k, d in enumerate(differences)}
        better += compare_scores(
            dict.fromkeys(scores, 0.5), scores, {id_: id_ for id_ in scores}
        ).better
    assert better <= 45  # 25 are meant; of plain percentiles it is 59
