"""The notebook's loss and its dice coefficient, and the loss of all maps, for any Keras backend."""

from typing import Any

import keras
from keras import ops


def dice_coefficient(y_true: Any, y_pred: Any) -> Any:
    """Dice coefficient of the flattened batch, ``(2 Σ t·p + 1) / (Σ t + Σ p + 1)``.

    The 1 is for two empty batches, which agree.

    Parameters
    ----------
    y_true, y_pred : tensors of the same shape
        Truth in {0, 1} and probability in [0, 1].

    Returns
    -------
    tensor
        Scalar float32 in (0, 1].
    """
    y_true = ops.cast(y_true, "float32")
    y_pred = ops.cast(y_pred, "float32")
    both = ops.sum(y_true * y_pred)
    return (2.0 * both + 1.0) / (ops.sum(y_true) + ops.sum(y_pred) + 1.0)


def mask_dice(y_true: Any, y_pred: Any) -> Any:
    """`dice_coefficient` of the first channel, the mask of nuclei."""
    return dice_coefficient(y_true[..., :1], y_pred[..., :1])


def bce_dice_loss(y_true: Any, y_pred: Any) -> Any:
    """Half the mean binary cross-entropy minus the dice coefficient; from about -1 upwards."""
    y_true = ops.cast(y_true, "float32")
    cross_entropy = ops.mean(keras.losses.binary_crossentropy(y_true, y_pred))
    return 0.5 * cross_entropy - dice_coefficient(y_true, y_pred)


def maps_loss(y_true: Any, y_pred: Any) -> Any:
    """The sum over the maps, (N, H, W, C) in [0, 1], of their `bce_dice_loss`."""
    maps = range(y_pred.shape[-1])
    return sum(bce_dice_loss(y_true[..., k : k + 1], y_pred[..., k : k + 1]) for k in maps)
