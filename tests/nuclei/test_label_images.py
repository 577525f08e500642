import numpy as np
import pytest

from nucleus_unet.nuclei.exports import decode_label_image, encode_label_image


@pytest.mark.parametrize(
    ("largest", "suffix", "start", "dtype"),
    [
        (0, ".png", b"\x89PNG", np.uint16),
        (65535, ".png", b"\x89PNG", np.uint16),
        (65536, ".tif", b"II*\0", np.uint32),
        (2**31 - 1, ".tif", b"II*\0", np.uint32),
    ],
)
def test_label_images_are_lossless(largest: int, suffix: str, start: bytes, dtype: type) -> None:
    labels = (
        np.array([[0, 1, 300], [largest, 2, 0]], np.int32) if largest else np.zeros((2, 3), int)
    )
    found, content = encode_label_image(labels)
    assert (found, content[:4]) == (suffix, start)
    assert decode_label_image(content).dtype == dtype
    np.testing.assert_array_equal(decode_label_image(content), labels)
