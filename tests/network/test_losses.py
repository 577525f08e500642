import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from nucleus_unet.network.losses import (
    bce_dice_loss,
    dice_coefficient,
    maps_loss,
    mask_dice,
    without_ignored,
)


def batch(values: ArrayLike) -> np.ndarray:
    """(N, H) values as (N, H, 1, 1)."""
    return np.array(values, np.float32)[..., None, None]


def test_dice_by_hand() -> None:
    y_true, y_pred = batch([[1, 0]]), batch([[0.8, 0.4]])
    assert float(dice_coefficient(y_true, y_pred)) == pytest.approx((2 * 0.8 + 1) / (1 + 1.2 + 1))


def test_dice_is_computed_over_the_batch_and_not_averaged_over_images() -> None:
    y_true, y_pred = batch([[1, 1], [0, 0]]), batch([[1, 1], [1, 0]])
    assert float(dice_coefficient(y_true, y_pred)) == pytest.approx((2 * 2 + 1) / (2 + 3 + 1))


def test_dice_of_batches_without_nuclei() -> None:
    empty = batch([[0, 0], [0, 0]])
    assert float(dice_coefficient(empty, empty)) == 1
    assert float(dice_coefficient(empty, batch([[1, 1], [1, 0]]))) == pytest.approx(1 / 4)


def test_loss_by_hand() -> None:
    cross_entropy = -(math.log(0.8) + math.log(0.6)) / 2
    dice = (2 * 0.8 + 1) / (1 + 1.2 + 1)
    loss = bce_dice_loss(batch([[1, 0]]), batch([[0.8, 0.4]]))
    assert float(loss) == pytest.approx(0.5 * cross_entropy - dice, abs=1e-6)


def test_loss_of_a_perfect_and_of_a_wrong_prediction_is_finite() -> None:
    y_true = batch([[1, 0]])
    assert float(bce_dice_loss(y_true, y_true)) == pytest.approx(-1, abs=1e-5)
    # Keras clips probabilities at 1e-7.
    assert float(bce_dice_loss(y_true, 1 - y_true)) == pytest.approx(
        -0.5 * math.log(1e-7) - 1 / 3, abs=0.1
    )


def maps(mask: ArrayLike, border: ArrayLike) -> np.ndarray:
    """Two (N, H) as (N, H, 1, 2)."""
    return np.concatenate([batch(mask), batch(border)], axis=-1)


def test_the_loss_of_all_maps_by_hand() -> None:
    y_true, y_pred = maps([[1, 0]], [[0, 1]]), maps([[0.8, 0.4]], [[0.1, 0.7]])
    mask = -(math.log(0.8) + math.log(0.6)) / 4 - (2 * 0.8 + 1) / (1 + 1.2 + 1)
    border = -(math.log(0.9) + math.log(0.7)) / 4 - (2 * 0.7 + 1) / (1 + 0.8 + 1)
    assert float(maps_loss(y_true, y_pred)) == pytest.approx(mask + border, abs=1e-5)
    assert float(maps_loss(y_true[..., :1], y_pred[..., :1])) == pytest.approx(mask, abs=1e-5)


def test_the_dice_of_several_maps_is_that_of_the_mask() -> None:
    y_true, y_pred = maps([[1, 0]], [[0, 1]]), maps([[0.8, 0.4]], [[0, 0]])
    assert float(mask_dice(y_true, y_pred)) == pytest.approx((2 * 0.8 + 1) / (1 + 1.2 + 1))


def test_truth_can_be_integer() -> None:
    y_pred = batch([[0.8, 0.4]])
    for function in (dice_coefficient, bce_dice_loss):
        of_integers = function(batch([[1, 0]]).astype(np.uint8), y_pred)
        assert float(of_integers) == float(function(batch([[1, 0]]), y_pred))


def test_pixels_that_nobody_annotated_do_not_count() -> None:
    truth, found = np.zeros((1, 2, 2, 2), np.float32), np.full((1, 2, 2, 2), 0.25, np.float32)
    truth[0, 0, 0], truth[0, 1] = 1, -1
    expected = without_ignored(truth, found)
    np.testing.assert_array_equal(expected[0], np.maximum(truth, 0))
    np.testing.assert_array_equal(expected[1], np.where(truth < 0, 0, found))
    surer = np.where(truth < 0, np.float32(0.9), found)
    assert float(maps_loss(truth, surer)) == float(maps_loss(truth, found))
    assert float(mask_dice(truth, surer)) == float(mask_dice(truth, found))
    # One nucleus pixel, found with 0.25, and another with 0.25: (2 * 0.25 + 1) / (1 + 0.5 + 1)
    assert float(mask_dice(truth, found)) == pytest.approx(0.6)
