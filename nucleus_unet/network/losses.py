"""Loss and Dice coefficient of the original notebook, and the loss over all maps."""

from typing import Any

import keras
from keras import ops


def dice_coefficient(y_true: Any, y_pred: Any) -> Any:
    """Dice coefficient of the flattened batch, ``(2 Σ t·p + 1) / (Σ t + Σ p + 1)``.

    The added 1 gives 1 for two empty batches, which agree.

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


def without_ignored(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Make pixels that nobody annotated background in both; their truth is below 0."""
    y_true = ops.convert_to_tensor(y_true)
    return ops.maximum(y_true, 0.0), y_pred * ops.cast(y_true >= 0, y_pred.dtype)


def mask_dice(y_true: Any, y_pred: Any) -> Any:
    """Compute `dice_coefficient` of the first channel, the mask of nuclei."""
    return dice_coefficient(*without_ignored(y_true[..., :1], y_pred[..., :1]))


def bce_dice_loss(y_true: Any, y_pred: Any) -> Any:
    """Half the mean binary cross-entropy minus the Dice coefficient; about -1 for a perfect match."""
    y_true = ops.cast(y_true, "float32")
    cross_entropy = ops.mean(keras.losses.binary_crossentropy(y_true, y_pred))
    return 0.5 * cross_entropy - dice_coefficient(y_true, y_pred)


def maps_loss(y_true: Any, y_pred: Any) -> Any:
    """Sum of the `bce_dice_loss` of each map, without pixels that nobody annotated.

    Parameters
    ----------
    y_true, y_pred : tensors (N, H, W, C)
        Truth in {0, 1}, or -1 if nobody annotated the pixel, and probability in [0, 1].
    """
    y_true, y_pred = without_ignored(y_true, y_pred)
    maps = range(y_pred.shape[-1])
    return sum(bce_dice_loss(y_true[..., k : k + 1], y_pred[..., k : k + 1]) for k in maps)
