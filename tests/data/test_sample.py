import mmap

import numpy as np

from nucleus_unet.data.sample import Sample


def test_a_sample_is_memory_mapped_and_read_only(samples: list[Sample]) -> None:
    image, labels = samples[1].load()
    assert (image.shape, image.dtype) == ((40, 32, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((40, 32), np.uint16)
    for array, path in ((image, samples[1].image), (labels, samples[1].labels)):
        assert isinstance(array.base, mmap.mmap)
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, np.load(path))
