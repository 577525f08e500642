import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nucleus_unet.data.sample import Sample
from nucleus_unet.recipe import Inference
from nucleus_unet.reports.evaluation import score_maps
from nucleus_unet.reports.tuning import GRID, tune_inference, tuned_keys

Case = tuple[Sample, Path]


def one(case: Case) -> tuple[list[Sample], list[Path]]:
    return [case[0]], [case[1]]


def score(samples: list[Sample], maps: list[Path], inference: Inference) -> float:
    return score_maps(samples, maps, inference, lambda *_: None)["score"]


def test_seeds_are_tuned_only_for_maps_with_borders() -> None:
    assert tuned_keys(1) == ["cutoff", "min_area_px", "min_confidence"]
    assert tuned_keys(2) == list(GRID) == ["cutoff", "seed_cutoff", "min_area_px", "min_confidence"]


def test_cutoffs_are_tuned_by_the_score(case: Callable[..., Case], tmp_path: Path) -> None:
    # A bridge of 0.58 joins two nuclei of 0.9, and a speck of 9 pixels is none.
    y_true, found = np.zeros((20, 40), int), np.zeros((20, 40))
    y_true[5:15, 5:15], y_true[5:15, 17:27] = 1, 2
    found[y_true > 0] = 0.9
    found[5:15, 15:17] = 0.58
    found[1:4, 34:37] = 0.9
    samples, maps = one(case("a", y_true, found))
    tuned = tune_inference(samples, maps, Inference(tune=True), lambda *_: None)
    assert (tuned.cutoff, tuned.min_area_px) == (0.6, 16)
    assert tuned.seed_cutoff == 0.5  # only maps with borders have it
    assert score(samples, maps, Inference()) == 0
    assert score(samples, maps, tuned) == 1
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
    samples, maps = one(case("a", y_true, found))
    seen: list[tuple[int, int]] = []
    tuned = tune_inference(samples, maps, Inference(tune=True), lambda *counts: seen.append(counts))
    assert seen == [(k, 58) for k in range(1, 59)]
    assert tuned.min_confidence == 0.86
    assert score(samples, maps, tuned) == 1


def test_a_setting_stays_if_no_tried_value_is_better(case: Callable[..., Case]) -> None:
    # Two nuclei of 0.53 and a bridge of 0.52: only a cutoff between the two values separates them.
    samples, maps = one(case("a", [[1, 1, 0, 2, 2]], [[0.53, 0.53, 0.52, 0.53, 0.53]]))
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


def test_seeds_of_nuclei_are_tuned_by_the_score(case: Callable[..., Case], tmp_path: Path) -> None:
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
