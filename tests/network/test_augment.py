from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nucleus_unet.network.augment import (
    MOST_GLOW,
    crop_matrix,
    dim_nuclei,
    random_crop_matrix,
    random_glow,
    random_matrix,
    random_stain,
    resize_image,
    warp_sample,
)
from nucleus_unet.recipe import Augmentation

OFF: dict[str, Any] = {
    "horizontal_flip": False,
    "vertical_flip": False,
    "rotation_range_deg": 0,
    "width_shift_range": 0,
    "height_shift_range": 0,
    "zoom_range": 0,
}


class Draws:
    """A random generator with known draws."""

    def __init__(self, uniform: list[float], mirror: list[int]) -> None:
        self._uniform, self._mirror = uniform, mirror

    def uniform(self, low: float, high: float, size: int) -> NDArray[np.float64]:
        assert (low, high, size) == (-1, 1, 5)
        return np.array(self._uniform)

    def integers(self, high: int, size: int) -> NDArray[np.int64]:
        assert (high, size) == (2, 2)
        return np.array(self._mirror)


def matrix(
    turn: float = 0,
    shift: tuple[float, float] = (0, 0),
    zoom: tuple[float, float] = (0, 0),
    mirror: tuple[int, int] = (0, 0),
    **ranges: Any,
) -> NDArray[np.float64]:
    """The matrix for given draws (x before y); all ranges that are not named are off."""
    draws = Draws([turn, *shift, *zoom], list(mirror))
    return random_matrix(Augmentation(**(OFF | ranges)), cast(np.random.Generator, draws))


def warped(labels: list[list[int]], transform: NDArray[np.float64]) -> list[list[int]]:
    """Warp a square as image and as labels; for shifts by complete pixels both agree."""
    before = np.array(labels, np.uint16)
    image, after = warp_sample(
        np.repeat(before[..., None], 3, 2).astype(np.uint8), before, transform, len(labels)
    )
    assert (image.dtype, after.dtype) == (np.uint8, np.uint16)
    np.testing.assert_array_equal(image, np.repeat(after[..., None], 3, 2))
    return cast(list[list[int]], after.tolist())


def many(**ranges: Any) -> NDArray[np.float64]:
    augmentation = Augmentation(**(OFF | ranges))
    rng = np.random.default_rng(0)
    return np.stack([random_matrix(augmentation, rng) for _ in range(4000)])


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A random image with full contrast and without fine detail."""
    noise = np.random.default_rng(seed).random((height, width, 3))
    blurred = cv2.GaussianBlur(noise, (0, 0), 5, borderType=cv2.BORDER_REPLICATE)
    scaled = cv2.normalize(blurred, np.empty(0), 0, 255, cv2.NORM_MINMAX)
    return np.asarray(scaled).astype(np.uint8)


NUMBERS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_without_ranges_nothing_changes() -> None:
    assert warped(NUMBERS, matrix(1, (1, 1), (1, 1), (1, 1))) == NUMBERS


@pytest.mark.parametrize(
    ("turn", "degrees", "expected"),
    [
        (1, 90, [[7, 4, 1], [8, 5, 2], [9, 6, 3]]),
        (-1, 90, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),
        (1, 180, [[9, 8, 7], [6, 5, 4], [3, 2, 1]]),
        (0.5, 180, [[7, 4, 1], [8, 5, 2], [9, 6, 3]]),
    ],
)
def test_rotations(turn: float, degrees: float, expected: list[list[int]]) -> None:
    assert warped(NUMBERS, matrix(turn, rotation_range_deg=degrees)) == expected


def test_flips() -> None:
    left_right = [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert warped(NUMBERS, matrix(mirror=(1, 0), horizontal_flip=True)) == left_right
    assert warped(NUMBERS, matrix(mirror=(0, 1), horizontal_flip=True)) == NUMBERS
    assert warped(NUMBERS, matrix(mirror=(0, 1), vertical_flip=True)) == NUMBERS[::-1]


def test_a_shift_repeats_the_border() -> None:
    rows = [[1, 2, 3, 4]] * 4
    columns = np.transpose(rows).tolist()
    by_width = matrix(shift=(1, 1), width_shift_range=0.5)
    assert warped(rows, by_width) == [[3, 4, 4, 4]] * 4
    assert warped(columns, by_width) == columns
    by_height = matrix(shift=(-1, -0.5), height_shift_range=0.5)
    assert warped(rows, by_height) == rows
    assert warped(columns, by_height) == np.transpose([[1, 1, 2, 3]] * 4).tolist()


def test_a_zoom_above_one_shows_more() -> None:
    labels = np.zeros((9, 9), np.int32)
    labels[:, 3:6] = 1
    more = warp_sample(
        np.zeros((9, 9, 3), np.uint8), labels, matrix(zoom=(1, 0), zoom_range=0.9), 9
    )[1]
    less = warp_sample(
        np.zeros((9, 9, 3), np.uint8), labels, matrix(zoom=(-1, 0), zoom_range=0.7), 9
    )[1]
    assert more.tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 0]] * 9
    assert less.tolist() == [[1] * 9] * 9


def test_zooms_of_x_and_y_are_independent_and_uniform_in_1_plus_minus_the_range() -> None:
    x, y = many(zoom_range=0.1)[:, [0, 1], [0, 1]].T
    for zoom in (x, y):
        assert 0.9 <= zoom.min() < 0.901
        assert 1.099 < zoom.max() <= 1.1
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.06


@pytest.mark.parametrize(("key", "axis"), [("width_shift_range", 0), ("height_shift_range", 1)])
def test_a_shift_is_uniform_in_plus_minus_its_share_of_the_side(key: str, axis: int) -> None:
    shift = many(**{key: 0.2})[:, :2, 2]
    np.testing.assert_allclose(
        np.quantile(shift[:, axis], [0, 0.25, 0.5, 0.75, 1]), [-0.2, -0.1, 0, 0.1, 0.2], atol=0.01
    )
    assert not shift[:, 1 - axis].any()


def test_a_rotation_is_uniform_in_plus_minus_its_degrees() -> None:
    matrices = many(rotation_range_deg=90)
    degrees = np.rad2deg(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    np.testing.assert_allclose(
        np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]), [-90, -45, 0, 45, 90], atol=3
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1)


@pytest.mark.parametrize(("key", "axis"), [("horizontal_flip", 0), ("vertical_flip", 1)])
def test_a_flip_happens_half_of_the_time(key: str, axis: int) -> None:
    diagonal = np.diagonal(many(**{key: True}), axis1=1, axis2=2)
    assert set(diagonal[:, axis]) == {-1, 1}
    assert (diagonal[:, 1 - axis] == 1).all()
    assert 0.47 < (diagonal[:, axis] < 0).mean() < 0.53


def test_the_two_flips_are_independent() -> None:
    x, y = many(horizontal_flip=True, vertical_flip=True)[:, [0, 1], [0, 1]].T
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.06


@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_matrix(seed: int) -> None:
    first, second = (random_matrix(Augmentation(), np.random.default_rng(seed)) for _ in "ab")
    np.testing.assert_array_equal(first, second)


@given(st.integers(0, 2**32))
def test_switching_a_range_off_changes_no_other_draw(seed: int) -> None:
    def drawn(**changed: Any) -> NDArray[np.float64]:
        return random_matrix(Augmentation(**changed), np.random.default_rng(seed))

    full = drawn()
    np.testing.assert_array_equal(drawn(zoom_range=0)[:, 2], full[:, 2])
    np.testing.assert_array_equal(
        drawn(width_shift_range=0, height_shift_range=0)[:2, :2], full[:2, :2]
    )
    np.testing.assert_array_equal(
        np.abs(drawn(horizontal_flip=False, vertical_flip=False)), np.abs(full)
    )
    # A rotation from the left keeps the lengths of the columns and the angles between them.
    upright = drawn(rotation_range_deg=0)
    np.testing.assert_allclose((full.T @ full)[:2], (upright.T @ upright)[:2], atol=1e-12)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(2, 40), st.integers(2, 40), st.just(3))),
    st.integers(2, 40),
)
def test_warping_by_the_identity_resizes(image: NDArray[np.uint8], size: int) -> None:
    by_warp = warp_sample(image, np.zeros(image.shape[:2], np.uint16), np.eye(3), size)[0]
    np.testing.assert_allclose(by_warp.astype(int), resize_image(image, size).astype(int), atol=1)


@given(
    hnp.arrays(
        st.sampled_from([np.uint16, np.int32]),
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        elements=st.integers(0, 60000),
    ),
    st.integers(0, 2**32),
    st.integers(1, 30),
)
def test_warping_creates_no_new_label(labels: NDArray[np.integer], seed: int, size: int) -> None:
    transform = random_matrix(Augmentation(), np.random.default_rng(seed))
    image = np.zeros((*labels.shape, 3), np.uint8)
    image, moved = warp_sample(image, labels, transform, size)
    assert (image.shape, moved.shape) == ((size, size, 3), (size, size))
    assert moved.dtype == labels.dtype
    assert set(np.unique(moved)) <= set(np.unique(labels))


@given(st.integers(0, 2**32), st.sampled_from([(40, 40), (64, 40), (30, 50)]))
def test_image_and_labels_move_together(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    labels = (smooth(*shape, seed)[..., 0] > 127).astype(np.int32)
    image = np.repeat(labels[..., None] * 255, 3, 2).astype(np.uint8)
    image, moved = warp_sample(image, labels, random_matrix(Augmentation(), rng), 48)
    # The nearest of the four interpolated pixels has a weight of at least a quarter.
    assert (moved[image[..., 0] > 0.75 * 255 + 1] == 1).all()
    assert (moved[image[..., 0] < 0.25 * 255 - 1] == 0).all()
    assert ((image > 64) & (image < 191)).mean() < 0.2


def test_a_rectangular_image_is_rotated_as_the_square_it_becomes() -> None:
    transform = random_matrix(Augmentation(), np.random.default_rng(3))
    image = smooth(60, 90)
    labels = np.zeros((60, 90), np.uint16)
    once = warp_sample(image, labels, transform, 75)[0].astype(int)
    square = resize_image(image, 75)
    twice = warp_sample(square, np.zeros((75, 75), np.uint16), transform, 75)[0].astype(int)
    assert np.abs(once - twice).mean() < 0.5
    assert np.abs(once - twice).max() <= 4


@pytest.mark.parametrize("seed", range(4))
def test_the_transform_agrees_with_keras_image_data_generator(seed: int) -> None:
    """Keras now rotates the other way, because its axes were swapped; the range is ± the same."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    size, rng = 64, np.random.default_rng(seed)
    turn, shift_x, shift_y, zoom_x, zoom_y = rng.uniform(-1, 1, 5)
    mirror_x, mirror_y = rng.integers(2, size=2)
    image = smooth(size, size, seed)
    theirs = ImageDataGenerator().apply_transform(
        image.astype(np.float32),
        {
            "theta": -90 * turn,
            "tx": 0.1 * size * shift_x,
            "ty": 0.2 * size * shift_y,
            "zx": 1 + 0.3 * zoom_x,
            "zy": 1 + 0.3 * zoom_y,
            "flip_horizontal": bool(mirror_x),
            "flip_vertical": bool(mirror_y),
        },
    )
    transform = matrix(
        turn,
        (shift_x, shift_y),
        (zoom_x, zoom_y),
        (mirror_x, mirror_y),
        horizontal_flip=True,
        vertical_flip=True,
        rotation_range_deg=90,
        width_shift_range=0.1,
        height_shift_range=0.2,
        zoom_range=0.3,
    )
    ours = warp_sample(image, np.zeros((size, size), np.uint16), transform, size)[0]
    np.testing.assert_allclose(ours, theirs, atol=1)
    assert np.abs(theirs - image).mean() > 10  # it moved


# Crops


def numbered(height: int, width: int) -> NDArray[np.uint16]:
    return np.arange(height * width, dtype=np.uint16).reshape(height, width)


def cropped(labels: NDArray[np.uint16], frame: NDArray[np.float64], size: int) -> NDArray[Any]:
    return warp_sample(np.zeros((*labels.shape, 3), np.uint8), labels, frame, size, mirrored=True)[
        1
    ]


@pytest.mark.parametrize(
    ("place", "top", "left"), [((0, 0), 0, 0), ((1, 1), 6, 8), ((0.5, 0), 3, 0), ((0, 0.5), 0, 4)]
)
def test_a_crop_is_a_part_of_the_image(place: tuple[float, float], top: int, left: int) -> None:
    labels = numbered(10, 12)
    piece = cropped(labels, crop_matrix(labels.shape, 4, place=place), 4)
    np.testing.assert_array_equal(piece, labels[top : top + 4, left : left + 4])


def test_a_crop_larger_than_the_image_has_it_in_the_middle() -> None:
    labels = numbered(2, 8)
    piece = cropped(labels, crop_matrix(labels.shape, 4, place=(0.9, 0)), 4)
    np.testing.assert_array_equal(piece[1:3], labels[:, :4])
    np.testing.assert_array_equal(piece[[0, 3]], labels[[1, 0], :4])  # mirrored


def test_a_crop_can_be_magnified() -> None:
    labels = numbered(6, 6)
    piece = cropped(labels, crop_matrix(labels.shape, 6, scale=3), 6)
    np.testing.assert_array_equal(piece, labels[2:4, 2:4].repeat(3, 0).repeat(3, 1))


def test_random_crops_cover_the_range_of_scales_and_stay_inside() -> None:
    rng, augmentation = np.random.default_rng(0), Augmentation(scale_range=(0.5, 2))
    corners = np.array([[-0.5, 0.5], [-0.5, 0.5], [1, 1]])
    scales = []
    for _ in range(2000):
        frame = random_crop_matrix(augmentation, (200, 300), 64, rng)
        assert np.abs((frame @ corners)[:2]).max() <= 0.5 + 1e-9
        scales.append(64 / (frame[0, 0] * 300))
        assert 64 / (frame[1, 1] * 200) == pytest.approx(scales[-1])
    assert 0.5 <= min(scales) < 0.52
    assert 1.9 < max(scales) <= 2
    assert np.median(scales) == pytest.approx(1, abs=0.06)  # as often halved as doubled


# Intensities


def test_a_stain_range_of_0_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    for seed in range(4):
        drawn = random_stain(image, 0, np.random.default_rng(seed))
        np.testing.assert_array_equal(drawn, image)


def test_the_same_seed_gives_the_same_stain() -> None:
    image = np.random.default_rng(0).integers(40, 200, (32, 32, 3), np.uint8)
    before = image.copy()
    first, again, other = (
        random_stain(image, 0.25, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != image).any()
    np.testing.assert_array_equal(image, before)


def test_each_channel_gets_its_own_stain() -> None:
    gray = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    for seed in range(20):
        drawn = random_stain(gray, 0.2, np.random.default_rng(seed)).astype(int)
        assert all((drawn[..., a] != drawn[..., b]).any() for a, b in ((0, 1), (1, 2), (0, 2)))
        assert np.abs(drawn - gray).max() < 128


def two_nuclei() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    labels = np.zeros((64, 64), np.int32)
    labels[8:24, 8:24], labels[8:24, 40:56] = 1, 2
    image = np.full((64, 64, 3), 20, np.uint8)
    image[labels > 0] = 220
    return image, labels


def test_nuclei_are_dimmed_one_by_one_and_the_background_is_not() -> None:
    image, labels = two_nuclei()
    shares = []
    for seed in range(200):
        dim = dim_nuclei(image, labels, 0.9, np.random.default_rng(seed))
        assert (dim.shape, dim.dtype) == (image.shape, np.uint8)
        assert np.median(dim[labels == 0]) == 20
        nuclei = [dim[10:22, 10:22].astype(float), dim[10:22, 42:54].astype(float)]
        assert max(np.ptp(one) for one in nuclei) <= 1  # each is dimmed evenly
        shares.append([(one.mean() - 20) / 200 for one in nuclei])
    found = np.array(shares)
    assert found.min() >= 0.095
    assert found.max() <= 1
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.25
    # The logarithms are even: half of the factors are below the square root of 0.1.
    assert 0.4 < (found < 0.1**0.5).mean() < 0.6
    np.testing.assert_array_equal(image, two_nuclei()[0])


def test_debris_lie_outside_nuclei() -> None:
    image, labels = two_nuclei()
    counts = []
    for seed in range(50):
        dim = dim_nuclei(image, labels, 0.9, np.random.default_rng(seed))
        spots = ((dim[..., 0] > 160) & (labels == 0)).astype(np.uint8)
        counts.append(cv2.connectedComponents(spots)[0] - 1)
    assert min(counts) == 0
    assert 2 <= max(counts) <= 3


def test_a_glow_surrounds_what_is_bright() -> None:
    image = np.full((64, 64, 3), 20, np.uint8)
    image[28:36, 28:36] = 220
    before, shares = image.copy(), []
    for seed in range(50):
        glowing = random_glow(image, np.random.default_rng(seed))
        added = glowing.astype(int) - image
        assert (glowing.dtype, added.min()) == (np.uint8, 0)
        assert added[32, 25, 0] >= added[32, 20, 0] >= added[32, 0, 0]
        shares.append(added.max() / 200)
    np.testing.assert_array_equal(image, before)
    assert min(shares) < 0.02
    assert 0.1 < max(shares) <= MOST_GLOW
    dark = np.full((64, 64, 3), 20, np.uint8)
    np.testing.assert_array_equal(random_glow(dark, np.random.default_rng(0)), dark)


@pytest.mark.parametrize("value", [0, 1])
def test_without_nuclei_or_without_background_nothing_is_dimmed(value: int) -> None:
    image, labels = np.full((32, 32, 3), 90, np.uint8), np.full((32, 32), value, np.int32)
    np.testing.assert_array_equal(dim_nuclei(image, labels, 0.9, np.random.default_rng(0)), image)
