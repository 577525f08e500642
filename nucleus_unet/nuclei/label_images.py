"""Labels as lossless image files that ImageJ and QuPath can open."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def encode_label_image(labels: NDArray[np.integer]) -> tuple[str, bytes]:
    """Encode labels as an image file whose pixel values are the labels.

    Parameters
    ----------
    labels : (H, W) int
        0 background, 1..n one nucleus each.

    Returns
    -------
    tuple of str and bytes
        Suffix and content of the file: ``.png`` and a 16-bit gray PNG, or ``.tif`` and a 32-bit TIFF
        if a label is greater than 65,535.
    """
    assert labels.min(initial=0) >= 0
    suffix, dtype = (".png", np.uint16) if labels.max(initial=0) < 2**16 else (".tif", np.uint32)
    return suffix, bytes(cv2.imencode(suffix, labels.astype(dtype))[1])


def decode_label_image(content: bytes) -> NDArray[Any]:
    """Decode a file of `encode_label_image` to labels, (H, W) uint16 or uint32."""
    labels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    return labels
