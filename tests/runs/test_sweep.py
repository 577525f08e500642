from typing import Any

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.sweep import Trial, best_half, best_of, candidates, combinations

OVER: dict[str, list[Any]] = {
    "training.optimizer": ["sgd", "adam"],
    "data.normalize": [True, False],
    "a": [1],
}


def test_every_combination_in_order() -> None:
    assert combinations(OVER, None, 0) == [
        ("training.optimizer=sgd", "data.normalize=true", "a=1"),
        ("training.optimizer=sgd", "data.normalize=false", "a=1"),
        ("training.optimizer=adam", "data.normalize=true", "a=1"),
        ("training.optimizer=adam", "data.normalize=false", "a=1"),
    ]


def test_some_are_drawn_by_the_seed() -> None:
    every = combinations(OVER, None, 0)
    drawn = {seed: combinations(OVER, 2, seed) for seed in range(10)}
    assert all(len(set(some)) == 2 and set(some) <= set(every) for some in drawn.values())
    assert len({tuple(some) for some in drawn.values()}) > 1
    assert combinations(OVER, 2, 3) == drawn[3]
    assert set(combinations(OVER, 9, 0)) == set(every)
    enormous = {f"key{k}": range(10) for k in range(15)}  # which nobody can list
    assert len(set(combinations(enormous, 3, 0))) == 3


@pytest.mark.parametrize(
    "key", ["training.epochs", "data.split_seed", "data.fold", "training.folds"]
)
def test_keys_that_are_the_same_for_all_trials(key: str) -> None:
    with pytest.raises(NucleusError) as caught:
        combinations(OVER | {key: [1, 2]}, None, 0)
    assert str(caught.value) == (
        f"A sweep cannot vary {key}: its rounds set the epochs, and all trials are scored on the same "
        "images. Leave it out."
    )


def test_a_value_twice() -> None:
    with pytest.raises(NucleusError, match=r"^a has a value twice\. Give each value once\.$"):
        combinations(OVER | {"a": [1, "1"]}, None, 0)


@pytest.mark.parametrize("over", [{}, {"a": []}, {"a": [1], "b": []}])
def test_nothing_to_vary(over: dict[str, list[int]]) -> None:
    with pytest.raises(NucleusError) as caught:
        combinations(over, None, 0)
    said = "A sweep needs keys with values, such as --over training.optimizer=sgd,adam."
    assert str(caught.value) == said


def test_each_candidate_is_the_recipe_with_its_values(tiny: Recipe) -> None:
    found = candidates(tiny, {"data.normalize": [True, False]}, None, 0)
    assert [*found] == [("data.normalize=true",), ("data.normalize=false",)]
    assert [recipe.data.normalize for recipe in found.values()] == [True, False]
    with pytest.raises(NucleusError, match="no_such"):
        candidates(tiny, {"training.optimizer": ["sgd", "no_such"]}, None, 0)


def test_the_values_of_a_trial() -> None:
    values = {"data.balance": "0.5", "training.start_from": "a=b"}
    assert Trial(("data.balance=0.5", "training.start_from=a=b"), 1, 0.5, "run").values == values


def test_the_better_half_continues() -> None:
    scores = {"a": 0.25, "b": 0.5, "c": float("-inf"), "d": 0.5, "e": 0.125}
    trials = [
        Trial((key,), 1, score, None if score == float("-inf") else "run")
        for key, score in scores.items()
    ]
    assert [trial.failed for trial in trials] == [False, False, True, False, False]
    assert best_half(trials) == [("a",), ("b",), ("d",)]
    assert best_half(trials[:2]) == [("b",)]
    assert best_half([trials[1], trials[3]]) == [("b",)]  # the first of equal ones
    assert best_half(trials[:1]) == [("a",)]
    assert best_half(trials[1:3]) == [("b",)]  # never a failed one
    assert best_half(trials[2:3]) == []


def test_the_best_has_the_most_epochs() -> None:
    trials = [
        Trial(("a",), 1, 0.75, "run"),
        Trial(("b",), 2, 0.25, "run"),
        Trial(("c",), 2, 0.5, "run"),
        Trial(("d",), 4, float("-inf"), None),
    ]
    assert best_of(trials) == trials[2]
    assert best_of(trials[:1]) == trials[0]


def failed(key: str, epochs: int) -> Trial:
    return Trial((key,), epochs, float("-inf"), None)


def test_a_recipe_that_failed_in_a_later_round_is_not_the_best() -> None:
    first = [
        Trial((key,), 1, score, "run") for key, score in (("a", 0.75), ("b", 0.5), ("c", 0.25))
    ]
    assert best_of([*first, failed("a", 2), Trial(("b",), 2, 0.125, "run")]).changes == ("b",)
    # All that continued failed: of the others the best is chosen.
    assert best_of([*first, failed("a", 2), failed("b", 2)]) == first[2]
    assert best_of([*first, failed("a", 2)]) == first[1]


def test_a_sweep_whose_recipes_all_failed_has_no_best() -> None:
    trials = [Trial(("a",), 1, 0.75, "run"), failed("b", 1), failed("a", 2)]
    with pytest.raises(NucleusError) as caught:
        best_of(trials)
    said = "Every recipe of the sweep failed. The log says how each one failed."
    assert str(caught.value) == said


def test_too_many_combinations_are_refused() -> None:
    over = {f"network.key{key}": range(10) for key in range(12)}
    assert len(combinations(over, 3, 0)) == 3
    larger = {f"network.key{key}": range(10) for key in range(20)}
    for keys, draws in ((over, None), (over, 20_000), (larger, 3)):
        with pytest.raises(NucleusError, match=r"combinations\. A sweep tries at most 10,000"):
            combinations(keys, draws, 0)
