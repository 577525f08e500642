import doctest

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.network.targets import training_targets
from nucleus_unet.nuclei import instances
from nucleus_unet.nuclei.instances import (
    connected_components,
    mean_spread,
    rated_nuclei,
    resize_maps,
    separate_nuclei,
    solidity,
)
from nucleus_unet.recipe import Inference

probabilities = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(0, 1, width=32),
)


def components(above: list[list[int]]) -> NDArray[np.int32]:
    return connected_components(np.array(above, np.float32), 0.5)


def test_resizing_is_bilinear_between_pixel_centres() -> None:
    maps = np.array([[[0, 1], [1, 0]]], np.float32)
    result = resize_maps(maps, 2, 4)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[..., 0], [[0, 0.25, 0.75, 1]] * 2)
    np.testing.assert_allclose(result[..., 1], [[1, 0.75, 0.25, 0]] * 2)


def test_resizing_to_the_same_size_changes_nothing() -> None:
    maps = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)[..., None]
    np.testing.assert_array_equal(resize_maps(maps, 2, 3), maps)


def test_maps_can_be_made_smaller() -> None:
    maps = np.array([[0, 0, 1, 1]], np.float32)[..., None]
    np.testing.assert_allclose(resize_maps(maps, 1, 2)[..., 0], [[0, 1]])


def test_a_probability_equal_to_the_cutoff_is_background() -> None:
    labels = connected_components(np.array([[0.5, 0.5000001, 0.4]], np.float32), 0.5)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [[0, 1, 0]])


def test_without_a_pixel_above_the_cutoff_all_is_background() -> None:
    np.testing.assert_array_equal(components([[0, 0], [0, 0]]), np.zeros((2, 2)))


def test_one_pixel_is_a_nucleus_and_corners_connect() -> None:
    np.testing.assert_array_equal(
        components([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]),
        [[1, 0, 0, 2], [0, 1, 0, 0], [1, 0, 0, 0]],
    )


def test_opposite_edges_of_the_image_do_not_touch() -> None:
    np.testing.assert_array_equal(components([[1, 0, 1]]), [[1, 0, 2]])


def test_nuclei_are_numbered_by_their_first_pixel_row_by_row() -> None:
    np.testing.assert_array_equal(
        components([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]),
        [[0, 0, 0, 1], [0, 0, 0, 0], [0, 2, 0, 0]],
    )
    # OpenCV scans blocks of 2 x 2 and would number these the other way round.
    np.testing.assert_array_equal(components([[0, 0, 1], [1, 0, 0]]), [[0, 0, 1], [2, 0, 0]])


@given(probabilities, st.integers(1, 30), st.integers(1, 30))
def test_resized_maps_stay_in_0_to_1(
    probability: NDArray[np.float32], height: int, width: int
) -> None:
    result = resize_maps(probability[..., None], height, width)
    assert result.shape == (height, width, 1)
    assert 0 <= result.min() <= result.max() <= 1


@given(probabilities, st.floats(0, 1))
def test_the_components_are_those_of_opencv(
    probability: NDArray[np.float32], cutoff: float
) -> None:
    labels = connected_components(probability, cutoff)
    count, other = cv2.connectedComponents((probability > cutoff).astype(np.uint8), connectivity=8)
    pairs = set(zip(labels.ravel().tolist(), other.ravel().tolist(), strict=True))
    assert labels.max() == count - 1
    assert len(pairs) == len(np.unique(labels))
    first = [int(np.flatnonzero(labels == number)[0]) for number in range(1, count)]
    assert first == sorted(first)


def discs(*centres: tuple[int, int], radius: int = 6) -> NDArray[np.int32]:
    """Labels of discs; later discs cover earlier ones."""
    y, x = np.mgrid[:40, :60]
    labels = np.zeros((40, 60), np.int32)
    for number, (cy, cx) in enumerate(centres, 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return labels


def test_touching_nuclei_are_recovered_from_their_target_maps() -> None:
    labels = discs((20, 12), (20, 23), (30, 40), (8, 50))
    found = separate_nuclei(training_targets(labels, "borders"), Inference())
    assert found.dtype == np.int32
    assert found.max() == 4
    agreed = (found > 0) == (labels > 0)
    assert agreed.all()
    for number in range(1, 5):
        values, counts = np.unique(found[labels == number], return_counts=True)
        assert counts.max() / counts.sum() > 0.95
        assert values[counts.argmax()] > 0


@pytest.mark.parametrize(
    ("border", "seed_cutoff", "count"), [(0, 0.5, 1), (0.3, 0.5, 1), (0.6, 0.5, 2), (0.3, 0.7, 2)]
)
def test_a_border_separates_nuclei_that_touch_in_the_mask(
    border: float, seed_cutoff: float, count: int
) -> None:
    maps = np.full((4, 9, 2), (0.9, 0), np.float32)
    maps[:, 4, 1] = border  # 0.9 * (1 - border) is above or below the cutoff
    found = separate_nuclei(maps, Inference(seed_cutoff=seed_cutoff))
    assert np.unique(found).tolist() == [*range(1, count + 1)]
    assert len(np.unique(found[:, :4])) == len(np.unique(found[:, 5:])) == 1


def test_holes_are_filled_if_there_are_borders_and_the_nucleus_encloses_them() -> None:
    shape = np.array(
        [
            [1, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1],
            [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
            [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1],
        ]
    )
    maps = np.stack([0.9 * shape, 0 * shape], axis=-1).astype(np.float32)
    maps[1, 1, 0] = 0.2
    filled = shape.copy()
    filled[1, [1, 5]] = 1
    np.testing.assert_array_equal(separate_nuclei(maps, Inference()) > 0, filled)
    np.testing.assert_array_equal(separate_nuclei(maps[..., :1], Inference()) > 0, shape)


def test_a_mask_without_a_seed_is_one_nucleus() -> None:
    maps = training_targets(discs((20, 12), (8, 50)), "borders")
    maps[..., 1] = 0.7
    assert separate_nuclei(maps, Inference()).max() == 2


def test_parts_of_the_mask_that_touch_at_a_corner_are_separate() -> None:
    mask = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    maps = np.stack([mask, 0 * mask], axis=-1)
    np.testing.assert_array_equal(
        separate_nuclei(maps, Inference()), [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_empty_maps_have_no_nuclei(channels: int) -> None:
    assert not separate_nuclei(np.zeros((5, 4, channels), np.float32), Inference()).any()


@pytest.mark.parametrize(("least", "kept"), [(0, [1, 2]), (2, [1, 2]), (3, [1]), (9, [])])
def test_small_nuclei_are_left_out(least: int, kept: list[int]) -> None:
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], np.float32)[..., None]
    found = separate_nuclei(mask, Inference(min_area_px=least))
    expected = np.array([[1, 1, 0, 2], [1, 0, 0, 2]])
    np.testing.assert_array_equal(found, np.where(np.isin(expected, kept), expected, 0))


@pytest.mark.parametrize(("least", "kept"), [(0, [1, 2]), (0.74, [1, 2]), (0.75, [1]), (0.9, [])])
def test_nuclei_of_low_confidence_are_left_out(least: float, kept: list[int]) -> None:
    # The means are 0.875 and 0.75; 0.75 is not greater than 0.75. Background does not count.
    mask = np.array([[1, 0.75, 0, 1], [0.2, 0, 0, 0.5]], np.float32)[..., None]
    found = separate_nuclei(mask, Inference(cutoff=0.25, min_confidence=least))
    expected = np.array([[1, 1, 0, 2], [0, 0, 0, 2]])
    np.testing.assert_array_equal(found, np.where(np.isin(expected, kept), expected, 0))


def test_a_later_scale_adds_nuclei_in_free_places() -> None:
    first = [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]
    second = [[0.6, 0.6, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
    maps = np.array([first, second], np.float32).transpose(1, 2, 0)
    both = Inference(scales=(1, 0.5))
    # Half of its first nucleus is covered by a nucleus of the first scale with a higher mean.
    assert separate_nuclei(maps, both).tolist() == [
        [0, 1, 0, 2, 2, 0, 0, 3],
        [0, 0, 0, 2, 2, 0, 0, 0],
    ]
    # A pixel of the second scale is four pixels of the image.
    small = both.model_copy(update={"min_area_px": 1})
    assert separate_nuclei(maps, small).tolist() == [
        [0, 1, 0, 2, 2, 0, 0, 0],
        [0, 0, 0, 2, 2, 0, 0, 0],
    ]


@pytest.mark.parametrize(("size", "covered", "found"), [(12, 4, 2), (12, 5, 1), (9, 3, 2)])
def test_a_nucleus_is_kept_if_at_most_a_third_of_it_is_covered(
    size: int, covered: int, found: int
) -> None:
    maps = np.zeros((1, size, 2), np.float32)
    maps[0, :covered, 0] = 1
    maps[..., 1] = 0.6
    labels = separate_nuclei(maps, Inference(scales=(1, 0.5)))
    assert labels.max() == found
    assert (labels[0, :covered] == 1).all()
    assert (labels[0, covered:] == (2 if found == 2 else 0)).all()


@pytest.mark.parametrize(
    ("first", "kept"), [(3, slice(6, 12)), (5, slice(0, 5)), (4, slice(7, 12)), (9, slice(0, 9))]
)
def test_a_nucleus_that_another_divides_keeps_its_largest_piece(first: int, kept: slice) -> None:
    maps = np.zeros((1, 12, 2), np.float32)
    maps[0, first : first + 3, 0] = 1
    maps[..., 1] = 0.6
    labels = separate_nuclei(maps, Inference(scales=(1, 0.5)))
    assert (labels[0] == 1).nonzero()[0].tolist() == [first, first + 1, first + 2]
    assert (labels[0] == 2).nonzero()[0].tolist() == [*range(12)][kept]


@pytest.mark.parametrize(("second", "preferred"), [(0.79, 1), (0.81, 2)])
def test_the_nucleus_of_higher_confidence_is_preferred(second: float, preferred: int) -> None:
    """The second scale finds the nucleus of the first scale with one more row."""
    maps = np.zeros((9, 8, 2), np.float32)
    maps[2:, :, 0], maps[1:, :, 1] = 0.8, second
    labels = separate_nuclei(maps, Inference(scales=(1, 0.5)))
    assert labels.max() == 1
    assert labels[1].all() == (preferred == 2)


def test_two_discs_are_preferred_to_one_nucleus_of_both() -> None:
    maps = np.zeros((41, 61, 2), np.float32)
    both = (disc_map(10, at=(20, 20), size=61) + disc_map(10, at=(20, 39), size=61))[:41, :, 0]
    maps[..., 0] = 0.95 * np.minimum(both, 1)
    maps[..., 1] = 0.9 * np.minimum(both, 1)
    maps[:, 29:31, 1] = 0
    labels, confidence = rated_nuclei(maps, Inference(scales=(1, 0.5)))
    assert labels.max() == 2
    assert (confidence > 0.85).all()


@pytest.mark.parametrize("radius", [1, 2, 3, 6, 20])
def test_discs_and_rectangles_are_convex(radius: int) -> None:
    assert solidity(np.ones((radius, 2 * radius), bool)) == pytest.approx(1)
    assert 0.83 < solidity(disc_map(radius)[..., 0] > 0) <= 1


def test_two_discs_that_touch_are_not_convex() -> None:
    both = disc_map(8, at=(20, 10)) + disc_map(8, at=(20, 27))
    assert solidity(both[..., 0] > 0) < 0.88


@pytest.mark.parametrize("scales", [(1, 0.5), (0.5, 1)])
def test_of_equal_nuclei_the_earlier_scale_is_preferred(scales: tuple[float, float]) -> None:
    maps = np.full((1, 801, 2), 0.8, np.float32)
    maps[0, 800, 0] = maps[0, 0, 1] = 0  # 800 px each
    assert separate_nuclei(maps, Inference(scales=scales)).tolist() == [[1] * 800 + [0]]


def test_doctests() -> None:
    assert doctest.testmod(instances).failed == 0


def test_the_confidence_is_the_mean_at_the_scale_of_a_nucleus() -> None:
    first = [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]
    second = [[0.6, 0.6, 0, 1, 0.7, 0, 0, 0.8], [0, 0, 0, 1, 0.7, 0, 0, 0]]
    maps = np.array([first, second], np.float32).transpose(1, 2, 0)
    labels, confidence = rated_nuclei(maps, Inference(scales=(1, 0.5)))
    assert labels[0].tolist() == [0, 1, 0, 2, 2, 0, 0, 3]
    np.testing.assert_allclose(confidence, [1, 0.85, 0.8])
    assert confidence.dtype == np.float32


@pytest.mark.parametrize(("scale", "kept"), [(1, False), (2, True)])
def test_areas_count_at_the_scale_of_the_prediction(scale: float, kept: bool) -> None:
    """16 px are 64 px of an image that is twice as large."""
    small = np.full((4, 4, 1), 0.9, np.float32)
    assert separate_nuclei(small, Inference(min_area_px=40, scale=scale)).any() == kept


def test_two_maps_at_each_scale() -> None:
    labels = np.zeros((20, 40), int)
    labels[2:18, 2:18], labels[4:9, 24:29] = 1, 2
    small, large = (training_targets(labels * (labels == k), "borders") for k in (2, 1))
    maps = np.concatenate([small, large], axis=-1)
    found = separate_nuclei(maps, Inference(scales=(1, 0.5), seed_cutoff=0.2))
    np.testing.assert_array_equal(found, np.array([0, 2, 1])[labels])


def test_the_disagreement_of_an_image_and_of_its_nuclei() -> None:
    labels = np.array([[1, 1, 0, 0], [0, 0, 2, 0]], np.int32)
    spread = np.array([[0.1, 0.3, 0, 0], [0, 0, 0.4, 0.2]], np.float32)
    mask = np.array([[1, 1, 0, 0], [0, 0, 0.5, 0.5]], np.float32)
    maps = np.stack([mask, np.ones_like(mask)], axis=-1)  # the second map is of borders
    found = mean_spread(labels, maps, spread, Inference())
    assert found == pytest.approx([1.0 / (3 + 400), 0.2, 0.4], abs=1e-5)
    both = np.concatenate([maps, 3 * maps], axis=-1)
    scaled = mean_spread(labels, both, spread, Inference(scales=(1, 0.5)))
    assert scaled[0] == pytest.approx(1.0 / (6 + 400), abs=1e-5)


def test_an_empty_image_is_not_uncertain() -> None:
    faint = np.full((100, 100), 1e-3, np.float32)
    labels = np.zeros((100, 100), np.int32)
    assert mean_spread(labels, faint[..., None], faint, Inference()) == [0]
    # A nucleus that half of the networks see is.
    faint[40:60, 40:60] = 0.5
    assert mean_spread(labels, faint[..., None], faint, Inference())[0] > 0.3


def disc_map(
    radius: float, *, at: tuple[int, int] = (20, 20), size: int = 41
) -> NDArray[np.float32]:
    y, x = np.mgrid[:size, :size]
    return ((y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2).astype(np.float32)[..., None]


@pytest.mark.parametrize("grow_px", [-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3])
def test_outlines_move_by_so_many_pixels(grow_px: float) -> None:
    found = separate_nuclei(disc_map(10), Inference(grow_px=grow_px))
    whole = grow_px if abs(grow_px) >= 1 else 0  # less than a pixel moves nothing
    assert np.sqrt((found > 0).sum() / np.pi) == pytest.approx(10 + whole, abs=0.35)


def test_nuclei_grow_until_they_touch() -> None:
    two = disc_map(8, at=(20, 10)) + disc_map(8, at=(20, 30))
    before = separate_nuclei(two, Inference())
    after = separate_nuclei(two, Inference(grow_px=6))
    assert after.max() == 2
    for number in (1, 2):
        assert ((after == number) >= (before == number)).all()
    assert (after[20] > 0).all()
    assert after[20, 0] != after[20, 40]


def test_a_nucleus_that_shrinks_stays_one_piece_or_vanishes() -> None:
    dumbbell = np.maximum(disc_map(8, at=(20, 9)), disc_map(6, at=(20, 31)))
    dumbbell[19:22] = np.maximum(dumbbell[19:22], 0)
    dumbbell[20, 9:31] = 1
    found = separate_nuclei(dumbbell, Inference(grow_px=-1))
    assert found.max() == 1
    assert found[20, 9] == 1
    assert found[20, 31] == 0
    assert separate_nuclei(disc_map(2), Inference(grow_px=-4)).max() == 0


def test_a_nucleus_at_the_edge_of_the_image_stays_there() -> None:
    found = separate_nuclei(disc_map(10, at=(0, 20)), Inference(grow_px=-2))
    assert found[0, 20] == 1
    assert found[7, 20] == 1
    assert found[9, 20] == 0


def test_growth_counts_at_the_size_of_the_prediction() -> None:
    found = separate_nuclei(disc_map(10), Inference(grow_px=1, scale=0.5))
    assert np.sqrt((found > 0).sum() / np.pi) == pytest.approx(12, abs=0.3)
