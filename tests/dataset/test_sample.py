import numpy as np

from nucleus_unet.dataset.sample import Sample


def test_a_sample_is_mapped_and_not_read(samples: list[Sample]) -> None:
    image, labels = samples[1].load()
    assert (image.shape, image.dtype) == ((40, 32, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((40, 32), np.uint16)
    assert isinstance(image, np.memmap)
    assert isinstance(labels, np.memmap)
    np.testing.assert_array_equal(image, np.load(samples[1].image))
