"""Images that are in the training data and in the test data."""

from nucleus_unet.data.prepared import Images


def shared_images(training: Images, test: Images) -> list[tuple[str, str]]:
    """Find test images that are also training images, perhaps flipped or turned.

    Returns
    -------
    list of (str, str)
        Id of the test image and id of the training image.
    """
    known = {entry.pixels_sha256: entry.id for entry in training.entries}
    return [
        (entry.id, known[entry.pixels_sha256])
        for entry in test.entries
        if entry.pixels_sha256 in known
    ]
