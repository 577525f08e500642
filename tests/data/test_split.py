import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_unet.data.split import random_split, slide_split, split_ids
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Data

IDS = [f"{number:02}" for number in range(20)]


def test_it_is_the_notebooks_split_over_sorted_ids() -> None:
    training, validation = random_split(IDS, 0.1, 7)
    assert validation == ["01", "17"]
    assert training == [id_ for id_ in IDS if id_ not in validation]


def test_the_order_of_the_ids_does_not_matter() -> None:
    shuffled = np.random.default_rng(1).permutation(IDS).tolist()
    assert shuffled != IDS
    assert random_split(shuffled, 0.1, 7) == random_split(IDS, 0.1, 7)


def test_another_seed_is_another_split() -> None:
    assert random_split(IDS, 0.1, 7) != random_split(IDS, 0.1, 8)


@given(st.sets(st.text(max_size=3), min_size=2), st.floats(0.001, 0.999), st.integers(0, 9))
def test_each_id_is_on_one_side_and_no_side_is_empty(
    ids: set[str], fraction: float, seed: int
) -> None:
    training, validation = random_split(sorted(ids), fraction, seed)
    assert sorted(training + validation) == sorted(ids)
    assert training
    assert validation
    assert (training, validation) == (sorted(training), sorted(validation))


@pytest.mark.parametrize("ids", [[], ["a"]])
def test_too_few_ids(ids: list[str]) -> None:
    with pytest.raises(NucleusError, match=rf"{len(ids)} image\(s\) with masks: at least 2"):
        random_split(ids, 0.1, 7)


def test_a_slide_stays_together() -> None:
    slides = {f"{slide}{tile}": slide for slide in "abcdefghij" for tile in range(4)}
    training, validation = slide_split(slides, 0.3, 0)
    assert sorted(training + validation) == sorted(slides)
    assert not {slides[id_] for id_ in training} & {slides[id_] for id_ in validation}
    assert slide_split(slides, 0.3, 1) != (training, validation)


@given(st.sets(st.text(max_size=3), min_size=1), st.integers(0, 9))
def test_images_of_new_slides_move_no_old_one(new: set[str], seed: int) -> None:
    old = {f"old {number}": f"slide {number // 2}" for number in range(30)}
    training, validation = slide_split(old, 0.4, seed)
    more = slide_split(old | {f"new {name}": f"new {name}" for name in new}, 0.4, seed)
    assert [set(side) & old.keys() for side in more] == [set(training), set(validation)]


def test_the_share_is_met_on_average() -> None:
    slides = {str(number): str(number) for number in range(5000)}
    assert len(slide_split(slides, 0.2, 3)[1]) == pytest.approx(1000, abs=100)


@pytest.mark.parametrize(
    ("seed", "least", "largest"), [(0, "6", "3"), (1, "1", "2"), (2, "2", "1")]
)
def test_where_all_would_be_on_one_side_the_nearest_is_on_the_other(
    seed: int, least: str, largest: str
) -> None:
    slides = {digit: digit for digit in "0123456789"}  # SHA-256 of "0 6" begins with 19, the least
    assert slide_split(slides, 1e-9, seed)[1] == [least]
    assert slide_split(slides, 1 - 1e-9, seed)[0] == [largest]


@pytest.mark.parametrize("slides", [{}, {"a": "s", "b": "s"}])
def test_too_few_slides(slides: dict[str, str]) -> None:
    with pytest.raises(NucleusError, match=rf"{len(slides)} image\(s\) .* at least 2 are needed"):
        slide_split(slides, 0.5, 0)


def test_the_recipe_says_which_split() -> None:
    slides = {id_: f"slide {k // 3}" for k, id_ in enumerate(IDS)}
    by_slide = Data(split="slide", validation_fraction=0.3, split_seed=4)
    assert split_ids(slides, by_slide) == slide_split(slides, 0.3, 4)
    at_random = Data(split="random", validation_fraction=0.3, split_seed=4)
    assert split_ids(slides, at_random) == random_split(IDS, 0.3, 4)
