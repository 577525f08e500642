"""Label images as files that lose nothing, and that ImageJ and QuPath open."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def encode_label_image(labels: NDArray[np.integer]) -> tuple[str, bytes]:
    """Encode a label image (H, W) with the labels as its values.

    Returns
    -------
    tuple of str and bytes
        ``.png`` and a 16-bit gray PNG; where a label is over 65,535 ``.tif`` and a 32-bit TIFF.
    """
    assert labels.min(initial=0) >= 0
    suffix, dtype = (".png", np.uint16) if labels.max(initial=0) < 2**16 else (".tif", np.uint32)
    return suffix, bytes(cv2.imencode(suffix, labels.astype(dtype))[1])


def decode_label_image(content: bytes) -> NDArray[Any]:
    """The labels (H, W) that `encode_label_image` made, as uint16 or uint32."""
    labels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    return labels
