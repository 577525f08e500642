import numpy as np
import pytest

from nucleus_unet.network.normalization import apply_table, normalizing_table


def ramp(low: int, high: int, share_bright: float = 0.2) -> np.ndarray:
    """An image of mostly `low`, a share of `high`, and a few values halfway between."""
    values = np.full((100, 100, 3), low, np.uint8)
    values[: round(100 * share_bright)] = high
    values[0, :10] = (low + high) // 2
    return values


@pytest.mark.parametrize(("low", "high"), [(2, 22), (40, 240), (0, 255)])
def test_a_dark_background_becomes_0_and_bright_nuclei_255(low: int, high: int) -> None:
    image = ramp(low, high)
    seen = apply_table(image, normalizing_table(image))
    assert (seen[50, 50] == 0).all()
    assert (seen[10, 50] == 255).all()
    assert abs(int(seen[0, 0, 0]) - 127) <= 4


def test_a_bright_background_is_inverted() -> None:
    image = 255 - ramp(15, 215)
    seen = apply_table(image, normalizing_table(image))
    assert (seen[50, 50] == 0).all()
    assert (seen[10, 50] == 255).all()


@pytest.mark.parametrize("vignetting", [0, 10])
@pytest.mark.parametrize("nuclei", [1, 10])
def test_few_nuclei_on_a_dark_background_stay_bright(nuclei: int, vignetting: float) -> None:
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    ground = 30 - vignetting * (x**2 + y**2) ** 2 / 2
    image = np.rint(ground + np.random.default_rng(0).normal(0, 1.5, ground.shape))
    for k in range(nuclei):
        image[20 * k + 20 : 20 * k + 26, 100:106] = 150  # each covers 0.05 % of the image
    image = np.repeat(image[..., None].astype(np.uint8), 3, axis=2)
    for seen in (image, 255 - image):
        normal = apply_table(seen, normalizing_table(seen))
        assert (normal[22, 102] == 255).all()
        assert np.median(normal) < 240


@pytest.mark.parametrize("rows", [1, 6, 200])
def test_padding_and_dead_pixels_do_not_invert_an_image(rows: int) -> None:
    image = np.rint(np.random.default_rng(0).normal(30, 1.5, (512, 512, 1))).astype(np.uint8)
    image[240:260, 100:120] = 48
    image = np.repeat(image, 3, axis=2)
    padded, dead = image.copy(), image.copy()
    padded[:rows] = 0
    dead[np.random.default_rng(1).random((512, 512)) < 0.0002 * rows] = 0
    for seen in (padded, dead):
        normal = apply_table(seen, normalizing_table(seen))
        assert normal[250, 101:119].min() == 255
        assert np.median(normal) < 255


def test_each_channel_is_stretched_by_its_own_percentiles() -> None:
    image = np.stack([ramp(10, 60)[..., 0], ramp(0, 255)[..., 0], ramp(5, 25)[..., 0]], axis=-1)
    seen = apply_table(image, normalizing_table(image))
    assert (seen[50, 50] == 0).all()
    assert (seen[10, 50] == 255).all()


def test_noise_is_not_stretched_to_the_full_range() -> None:
    image = np.random.default_rng(0).integers(4, 6, (64, 64, 3)).astype(np.uint8)
    seen = apply_table(image, normalizing_table(image))
    assert np.ptp(seen) <= 255 / 8 + 1


def test_the_table_of_an_image_also_normalises_its_crops() -> None:
    image = ramp(2, 22)
    table = normalizing_table(image)
    assert (table.dtype, table.shape) == (np.uint8, (256, 3))
    normalized = apply_table(image, table)
    np.testing.assert_array_equal(apply_table(image[5:30, 7:9], table), normalized[5:30, 7:9])
