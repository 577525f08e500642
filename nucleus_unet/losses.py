"""The notebook's loss and its dice coefficient, for any Keras backend."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("nucleus_unet")
def dice_coefficient(y_true: Any, y_pred: Any, smooth: float = 1.0) -> Any:
    """Dice coefficient of the flattened batch, ``(2 Σ t·p + s) / (Σ t + Σ p + s)``.

    Parameters
    ----------
    y_true, y_pred : tensors of the same shape
        Truth in {0, 1} and probability in [0, 1].
    smooth : float
        Added above and below, so that two empty batches agree with 1.

    Returns
    -------
    tensor
        Scalar float32 in (0, 1].
    """
    y_true = ops.cast(y_true, "float32")
    y_pred = ops.cast(y_pred, "float32")
    both = ops.sum(y_true * y_pred)
    return (2.0 * both + smooth) / (ops.sum(y_true) + ops.sum(y_pred) + smooth)


@keras.saving.register_keras_serializable("nucleus_unet")
def bce_dice_loss(y_true: Any, y_pred: Any) -> Any:
    """Half the mean binary cross-entropy minus the dice coefficient; from about -1 upwards."""
    y_true = ops.cast(y_true, "float32")
    cross_entropy = ops.mean(keras.losses.binary_crossentropy(y_true, y_pred))
    return 0.5 * cross_entropy - dice_coefficient(y_true, y_pred)
