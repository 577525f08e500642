import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.network.targets import CHANNELS, border_map, training_targets

label_images = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)
)
each_type = pytest.mark.parametrize(
    "dtype", [np.uint16, np.int32, np.int64]
)  # prepared labels are uint16


@each_type
def test_borders_by_hand(dtype: type[np.integer]) -> None:
    labels: NDArray[np.integer] = np.array(
        [[1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 3]], dtype
    )
    expected = np.array([[0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(border_map(labels), expected)
    touching: NDArray[np.integer] = np.array([[1, 1, 1, 2, 2, 2]], dtype)
    np.testing.assert_array_equal(border_map(touching), [[0, 1, 1, 1, 1, 0]])


def test_borders_of_labels_above_16_bits() -> None:
    labels = np.array([[1, 1, 1, 65_537, 65_537, 65_537]])  # equal modulo 2¹⁶
    np.testing.assert_array_equal(border_map(labels), [[0, 1, 1, 1, 1, 0]])


@given(label_images)
def test_maps_are_0_or_1(labels: NDArray[np.int32]) -> None:
    maps = training_targets(labels, "borders")
    np.testing.assert_array_equal(training_targets(labels.astype(np.uint16), "borders"), maps)
    assert (maps.shape, maps.dtype) == ((*labels.shape, 2), np.float32)
    assert set(np.unique(maps)) <= {0, 1}
    np.testing.assert_array_equal(maps[..., 0], labels > 0)


@given(label_images)
def test_the_maps_do_not_depend_on_the_numbers_of_the_nuclei(labels: NDArray[np.int32]) -> None:
    renamed = np.where(labels, 50 - 7 * labels, 0)
    np.testing.assert_array_equal(
        training_targets(labels, "borders"), training_targets(renamed, "borders")
    )


@pytest.mark.parametrize("outputs", CHANNELS)
def test_the_number_of_channels(outputs: str) -> None:
    assert training_targets(np.eye(4, dtype=np.int32), outputs).shape == (4, 4, CHANNELS[outputs])


@pytest.mark.parametrize("outputs", CHANNELS)
def test_all_maps_of_a_pixel_that_nobody_annotated_are_negative(outputs: str) -> None:
    labels = np.array([[1, 1, -1, 2, 0, 0, 0]])
    maps = training_targets(labels, outputs)
    assert maps[0, :, 0].tolist() == [1, 1, -1, 1, 0, 0, 0]
    assert maps[..., -1][0, 2] == -1
    complete = training_targets(np.maximum(labels, 0), outputs)
    np.testing.assert_array_equal(np.delete(maps, 2, 1), np.delete(complete, 2, 1))
