import numpy as np
import pytest

from nucleus_unet.reports import champion
from nucleus_unet.reports.champion import (
    Candidate,
    Comparison,
    Verdict,
    compare_scores,
    decide,
)


def test_the_same_scores_are_not_better() -> None:
    scores = {"a": 0.25, "b": 0.5}
    found = compare_scores(scores, scores, {"a": "x", "b": "y"})
    assert (found.first, found.second) == (0.375, 0.375)
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
    assert (found.first, found.second) == (0.5, pytest.approx(0.7))
    assert found.difference == pytest.approx((9 * 0.25 - 0.25) / 10)
    # With two slides each draw of one of them twice has a chance of a quarter.
    assert (found.low, found.high) == (-0.25, 0.25)
    assert not found.better
    assert compare_scores(first, second, {id_: id_ for id_ in first}).better


@pytest.mark.parametrize(("slides", "better"), [(1, False), (9, False), (10, True)])
def test_a_comparison_needs_ten_slides(slides: int, better: bool) -> None:
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
    assert better <= 45  # 25 are expected; with plain percentiles there are 59


# Decisions

NEW = Candidate("7", weights_sha256="new", recipe_digest="r")
CHAMPION = Candidate("3", weights_sha256="old", recipe_digest="r")
BETTER = Comparison(0.5, 0.75, low=0.125, high=0.375, images=40, slides=10)
TABLE = (
    "| model | score |\n| --- | --- |\n"
    "| version 3, the champion | 0.5000 |\n| version 7, the new model | 0.7500 |"
)
MEASURED = (
    "The difference in score is +0.2500; allowing for chance it lies between +0.1250 and +0.3750. It "
    "was measured on 40 images of 10 slides, by networks that do not know them."
)


def test_the_first_model_is_compared_with_the_built_in_model() -> None:
    assert decide(NEW, None) is None
    table = TABLE.replace("version 3, the champion", "the built-in model")
    assert decide(NEW, None, comparison=BETTER) == Verdict("champion", MEASURED, table)
    found = decide(NEW, None, comparison="Not comparable.")
    assert found == Verdict("challenger", "Not comparable.")


def test_a_model_of_the_built_in_sample_never_becomes_the_champion() -> None:
    said = Verdict("challenger", "It was trained on the built-in sample, not on real images.")
    for before in (None, CHAMPION):
        assert decide(NEW, before, of_sample=True, comparison=BETTER) == said
    promoted = Candidate("3", note="2026-01-01 ann: by hand")
    found = decide(promoted, CHAMPION, of_sample=True)
    assert found
    assert found.place == "champion"


def test_a_deleted_champion_is_not_succeeded() -> None:
    said = "The champion was deleted. Promote a version, or restore the previous champion."
    assert decide(NEW, None, had_champion=True) == Verdict("challenger", said)


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("2026-01-01 ann: by hand", "It already is the champion (2026-01-01 ann: by hand)."),
        (None, "It already is the champion."),
    ],
)
def test_the_champion_stays_the_champion(note: str | None, said: str) -> None:
    new = Candidate("3", note=note)
    for comparison in (None, "Not comparable.", BETTER):
        found = decide(new, CHAMPION, had_champion=True, comparison=comparison)
        assert found == Verdict("champion", said)


def test_a_former_champion_stays_what_an_operator_made_of_it() -> None:
    new = Candidate("7", "new", "r", note="2026-01-01 ann: by hand")
    said = Verdict("challenger", "It was the champion before (2026-01-01 ann: by hand).")
    assert decide(new, CHAMPION, comparison=BETTER) == said
    assert decide(new, None) == said  # also if the champion was deleted since
    assert decide(new, None, had_champion=True) == said


@pytest.mark.parametrize("comparison", [None, "Not comparable.", BETTER])
def test_a_copy_of_the_champion_needs_no_comparison(comparison: Comparison | str | None) -> None:
    copy = Candidate("7", "old", "r")
    said = "It has the same weights and settings as the champion."
    assert decide(copy, CHAMPION, comparison=comparison) == Verdict("copy", said)


@pytest.mark.parametrize(("weights", "recipe"), [("new", "r"), ("old", "other"), ("new", "other")])
def test_models_with_other_weights_or_settings_must_be_compared(weights: str, recipe: str) -> None:
    assert decide(Candidate("7", weights, recipe), CHAMPION) is None


def test_the_better_model_becomes_the_champion() -> None:
    assert decide(NEW, CHAMPION, comparison=BETTER) == Verdict("champion", MEASURED, TABLE)


@pytest.mark.parametrize(
    ("second", "low", "high"),
    [
        (0.75, -0.125, 0.375),  # better, but perhaps by chance
        (0.75, 0.0, 0.375),  # the limit
        (0.5, 0.0, 0.0),  # equal on every image
        (0.25, -0.375, -0.125),  # worse
    ],
)
def test_a_model_that_is_not_clearly_better_becomes_the_challenger(
    second: float, low: float, high: float
) -> None:
    found = decide(NEW, CHAMPION, comparison=Comparison(0.5, second, low, high, 40, 10))
    assert found
    assert found.place == "challenger"
    assert f"| version 7, the new model | {second:.4f} |" in found.details
    assert found.reason.startswith(f"The difference in score is {second - 0.5:+.4f}; ")
    assert f"it lies between {low:+.4f} and {high:+.4f}." in found.reason
    assert "at least" not in found.reason


def test_a_comparison_on_too_few_slides_decides_nothing() -> None:
    few = Comparison(0.5, 0.75, low=0.125, high=0.375, images=40, slides=9)
    said = MEASURED.replace("10 slides", "9 slides") + " A decision needs at least 10 slides."
    assert decide(NEW, CHAMPION, comparison=few) == Verdict("challenger", said, TABLE)


def test_a_model_that_cannot_be_compared_becomes_the_challenger() -> None:
    said = "Version 3, the champion, cannot be compared: its model is damaged."
    assert decide(NEW, CHAMPION, comparison=said) == Verdict("challenger", said)
