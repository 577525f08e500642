"""Mean IoU as the notebook means it, as a Keras metric for any backend."""

from typing import Any

import keras
from keras import ops

from nucleus_unet.scoring import THRESHOLDS


class ThresholdedMeanIoU(keras.metrics.Metric):
    """Mean over thresholds of the mean IoU of nucleus and background.

    For each threshold t a pixel is nucleus where ``y_pred > t``. Pixels are counted over all updates
    since the last reset, so the result does not depend on how they fall into batches. A class that
    neither truth nor prediction holds is left out of the mean over classes, as in
    ``tf.metrics.mean_iou``. Counts are exact up to 2³¹ pixels for each kind and threshold.

    Parameters
    ----------
    thresholds : tuple of float
        The ten of the competition, 0.50:0.05:0.95.
    """

    def __init__(self, thresholds: tuple[float, ...] = THRESHOLDS) -> None:
        # Counts are whole numbers: float32 would stop counting at 16,777,216 pixels.
        super().__init__(name="mean_iou", dtype="float32")
        self.thresholds = tuple(thresholds)
        shape = (len(self.thresholds),)
        self.tp, self.fp, self.fn, self.tn = (
            self.add_variable(shape, initializer="zeros", dtype="int32", name=kind)
            for kind in ("tp", "fp", "fn", "tn")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count the pixels of a batch; truth is nucleus above 0.5, shapes are equal."""
        truth = ops.reshape(ops.convert_to_tensor(y_true) > 0.5, (-1, 1))
        probability = ops.reshape(ops.cast(y_pred, "float32"), (-1, 1))
        found = probability > ops.convert_to_tensor([self.thresholds], dtype="float32")
        tp = _count(ops.logical_and(truth, found))
        fp, fn = _count(found) - tp, _count(truth) - tp
        for variable, count in ((self.tp, tp), (self.fp, fp), (self.fn, fn)):
            variable.assign_add(count)
        self.tn.assign_add(ops.size(truth) - tp - fp - fn)

    def result(self) -> Any:
        """Scalar float32 in [0, 1]."""
        tp, fp, fn, tn = (ops.cast(v, "float32") for v in (self.tp, self.fp, self.fn, self.tn))
        union = ops.stack([tp + fp + fn, tn + fp + fn])
        iou = ops.stack([tp, tn]) / ops.maximum(union, 1.0)
        classes = ops.sum(ops.cast(union > 0, "float32"), axis=0)
        return ops.mean(ops.sum(iou, axis=0) / ops.maximum(classes, 1.0))


def _count(pixels: Any) -> Any:
    """How many are true, by column."""
    return ops.sum(ops.cast(pixels, "int32"), axis=0)


class MaskMeanIoU(ThresholdedMeanIoU):
    """`ThresholdedMeanIoU` of the first channel, the mask of nuclei."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true[..., :1], y_pred[..., :1])
