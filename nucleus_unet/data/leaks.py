"""Images that appear twice, for example in the training data and in the test data."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.prepared import Images, load_image
from nucleus_unet.files import sha256_bytes


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 over the pixels of an image, the same for its eight flips and turns.

    Parameters
    ----------
    image : (H, W, 3) uint8

    Examples
    --------
    >>> image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    >>> pixel_digest(image) == pixel_digest(np.rot90(image)) == pixel_digest(image[:, ::-1])
    True
    """
    views = (np.rot90(view, turns) for view in (image, image[:, ::-1]) for turns in range(4))
    return min(sha256_bytes(repr(v.shape).encode() + v.tobytes()) for v in views)


def shared_images(training: Images, test: Images, store: Path) -> list[tuple[str, str]]:
    """Find test images that are also training images, perhaps flipped or turned.

    Returns
    -------
    list of (str, str)
        Id of the test image and id of the training image.
    """
    known = {pixel_digest(load_image(store, entry)): entry.id for entry in training.entries}
    found = ((e.id, known.get(pixel_digest(load_image(store, e)))) for e in test.entries)
    return [(test_id, training_id) for test_id, training_id in found if training_id]
