"""Mean IoU as the original notebook defines it, as a Keras metric for any backend."""

from typing import Any

import keras
from keras import ops

from nucleus_unet.network.losses import without_ignored
from nucleus_unet.nuclei import THRESHOLDS


class ThresholdedMeanIoU(keras.metrics.Metric):
    """Mean over thresholds of the mean IoU of nucleus and background.

    Parameters
    ----------
    thresholds : tuple of float
        Thresholds of probability. Default: the ten of the competition, 0.50:0.05:0.95.

    Notes
    -----
    - A pixel counts as nucleus at threshold t if ``y_pred > t``.
    - Pixels are counted over all updates since the last reset, so the result does not depend on
      how images are grouped into batches.
    - A class that occurs neither in the truth nor in the prediction is left out of the mean over
      classes, as in ``tf.metrics.mean_iou``.
    - Counts are exact up to 2⁵⁵ pixels for each threshold and each of tp, fp, fn, tn.
    """

    def __init__(self, thresholds: tuple[float, ...] = THRESHOLDS) -> None:
        super().__init__(name="mean_iou", dtype="float32")
        self.thresholds = tuple(thresholds)
        # Rows tp, fp, fn, tn. float32 would stop counting at 2²⁴ pixels, int32 would overflow at 2³¹.
        self.low, self.high = (
            self.add_variable(
                (4, len(self.thresholds)), initializer="zeros", dtype="int32", name=name
            )
            for name in ("counts_below_2_24", "counts_of_2_24")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count the pixels of a batch of images with up to 2²⁴ pixels each; truth > 0.5 is nucleus."""
        truth = ops.convert_to_tensor(y_true) > 0.5
        by_image = (ops.shape(truth)[0], -1, 1)
        truth = ops.reshape(truth, by_image)
        probability = ops.reshape(ops.cast(y_pred, "float32"), by_image)
        found = probability > ops.convert_to_tensor([self.thresholds], dtype="float32")
        tp = _count(ops.logical_and(truth, found))
        fp, fn = _count(found) - tp, _count(truth) - tp
        counts = self.low + ops.stack([tp, fp, fn, ops.size(truth) - tp - fp - fn])
        self.high.assign_add(counts // 2**24)
        self.low.assign(counts % 2**24)

    def result(self) -> Any:
        """Return the mean IoU, a scalar float32 in [0, 1]."""
        low, high = (ops.cast(word, "float32") for word in (self.low, self.high))
        tp, fp, fn, tn = ops.unstack(2.0**24 * high + low, axis=0)
        union = ops.stack([tp + fp + fn, tn + fp + fn])
        iou = ops.stack([tp, tn]) / ops.maximum(union, 1.0)
        classes = ops.sum(ops.cast(union > 0, "float32"), axis=0)
        return ops.mean(ops.sum(iou, axis=0) / ops.maximum(classes, 1.0))


def _count(pixels: Any) -> Any:
    """Number of true values by column: (N, P, K) to (K,)."""
    # Sum as float32: TensorFlow sums integers on the CPU only.
    of_images = ops.sum(ops.cast(pixels, "float32"), axis=1)
    return ops.sum(ops.cast(of_images, "int32"), axis=0)


class MaskMeanIoU(ThresholdedMeanIoU):
    """The `ThresholdedMeanIoU` of the mask of nuclei, the first channel.

    Pixels that nobody annotated count as background.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(*without_ignored(y_true[..., :1], y_pred[..., :1]))
