import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.instances import connected_components, upsample

probabilities = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(0, 1, width=32),
)


def components(above: list[list[int]]) -> NDArray[np.int32]:
    return connected_components(np.array(above, np.float32), 0.5)


def test_upsample_is_bilinear_between_pixel_centres() -> None:
    probability = np.array([[0, 1]], np.float32)
    result = upsample(probability, 2, 4)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[0, 0.25, 0.75, 1]] * 2)


def test_upsample_to_the_same_size_changes_nothing() -> None:
    probability = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    np.testing.assert_array_equal(upsample(probability, 2, 3), probability)


def test_upsample_also_shrinks() -> None:
    probability = np.array([[0, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(upsample(probability, 1, 2), [[0, 1]])


def test_equal_to_the_cutoff_is_background() -> None:
    labels = connected_components(np.array([[0.5, 0.5000001, 0.4]], np.float32), 0.5)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [[0, 1, 0]])


def test_nothing_above_the_cutoff() -> None:
    np.testing.assert_array_equal(components([[0, 0], [0, 0]]), np.zeros((2, 2)))


def test_one_pixel_is_a_nucleus_and_corners_connect() -> None:
    np.testing.assert_array_equal(
        components([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]),
        [[1, 0, 0, 2], [0, 1, 0, 0], [1, 0, 0, 0]],
    )


def test_opposite_borders_do_not_touch() -> None:
    np.testing.assert_array_equal(components([[1, 0, 1]]), [[1, 0, 2]])


def test_numbered_by_first_pixel_row_by_row() -> None:
    np.testing.assert_array_equal(
        components([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]),
        [[0, 0, 0, 1], [0, 0, 0, 0], [0, 2, 0, 0]],
    )
    # OpenCV scans blocks of 2 x 2 and would number these the other way round.
    np.testing.assert_array_equal(components([[0, 0, 1], [1, 0, 0]]), [[0, 0, 1], [2, 0, 0]])


@given(probabilities, st.integers(1, 30), st.integers(1, 30))
def test_upsample_stays_in_range(probability: NDArray[np.float32], height: int, width: int) -> None:
    result = upsample(probability, height, width)
    assert result.shape == (height, width)
    assert 0 <= result.min() <= result.max() <= 1


@given(probabilities, st.floats(0, 1))
def test_same_partition_as_opencv(probability: NDArray[np.float32], cutoff: float) -> None:
    labels = connected_components(probability, cutoff)
    count, other = cv2.connectedComponents((probability > cutoff).astype(np.uint8), connectivity=8)
    pairs = set(zip(labels.ravel().tolist(), other.ravel().tolist(), strict=True))
    assert labels.max() == count - 1
    assert len(pairs) == len(np.unique(labels))
    first = [int(np.flatnonzero(labels == number)[0]) for number in range(1, count)]
    assert first == sorted(first)
