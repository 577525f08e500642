import tracemalloc
from collections.abc import Iterable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data import slides as module
from nucleus_unet.data.images import pixel_digest

Images = list[tuple[str, str, NDArray[np.uint8]]]


def group_by_slide(images: Iterable[tuple[str, str, NDArray[np.uint8]]]) -> dict[str, str]:
    """Group images by their pixels, as the program does."""
    return module.group_by_slide((id_, name, pixel_digest(im), im) for id_, name, im in images)


def slide(seed: int, height: int = 80, width: int = 120) -> NDArray[np.uint8]:
    """A smooth random image."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip(128 + 300 * smooth, 0, 255).astype(np.uint8)


def tiles(name: str, picture: NDArray[np.uint8]) -> Images:
    """Cut into 2 × 3 tiles, whose ids and digests are in the order of their positions."""
    return [
        (f"{name}{y}{x}", f"{name}{y}{x}", picture[40 * y : 40 * y + 40, 40 * x : 40 * x + 40])
        for y in range(2)
        for x in range(3)
    ]


def test_tiles_of_one_slide_are_grouped_in_any_order() -> None:
    images = tiles("a", slide(1)) + tiles("b", slide(2))
    expected = {id_: f"{id_[0]}00" for id_, _, _ in images}
    assert group_by_slide(images) == expected
    shuffled = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    assert group_by_slide(shuffled) == expected


def test_the_size_of_blocks_does_not_change_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    again = [(f"{id_}+", f"{id_}+", image) for id_, _, image in tiles("a", slide(1))]
    images = tiles("a", slide(1)) + tiles("b", slide(2)) + again
    expected = group_by_slide(images)
    assert sorted({*expected.values()}) == ["a00", "b00"]
    for block in (1, 5, 12):
        monkeypatch.setattr(module, "BLOCK", block)
        assert group_by_slide(images) == expected


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 30)
    monkeypatch.setattr(module, "THUMBNAIL_PX", 4)
    picture = slide(1)
    images = [(f"{k:04}", f"{k:04}", picture[:40, :40]) for k in range(1000)]
    tracemalloc.start()
    assert set(group_by_slide(images).values()) == {"0000"}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6  # all pairs together, two numbers of 8 bytes each, would take 8e6


def test_images_of_other_slides_do_not_change_a_name() -> None:
    before = tiles("b", slide(2))
    after = group_by_slide(tiles("a", slide(1)) + before)
    assert group_by_slide(before).items() <= after.items()


def test_a_similar_edge_of_another_slide_is_not_joined() -> None:
    left, right = (image for _, _, image in tiles("a", slide(1))[:2])
    stranger = slide(2)[:40, :40].copy()
    stranger[:, 0] = (
        left[:, -1] // 2 + 100
    )  # correlates more than the true neighbour, but is brighter
    found = group_by_slide([("a", "1", left), ("b", "2", right), ("c", "3", stranger)])
    assert found == {"a": "1", "b": "1", "c": "3"}


def test_few_slides_are_joined_by_chance() -> None:
    """Edges with few nuclei resemble each other."""

    def image(seed: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        gray = np.zeros((256, 256), np.float32)
        for _ in range(rng.integers(8, 60)):
            place, axes = rng.uniform(0, 256, 2).tolist(), rng.uniform(10, 18, 2).tolist()
            cv2.ellipse(gray, (place, axes, rng.uniform(0, 180)), rng.uniform(30, 120), -1)
        noisy = cv2.GaussianBlur(gray, (0, 0), 1) + 8 + rng.normal(0, 0.5, gray.shape)
        return np.repeat(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    found = group_by_slide((f"{k:03}", f"{k:03}", image(k)) for k in range(500))
    assert len({*found.values()}) >= 490


def test_two_images_of_one_field_are_one_slide() -> None:
    picture = slide(3)
    brighter = np.clip(picture * 1.2 + 5, 0, 255).astype(np.uint8)
    found = group_by_slide([("b", "2", picture), ("a", "7", brighter), ("c", "1", slide(4))])
    assert found == {"a": "2", "b": "2", "c": "1"}


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("fall_off", [0.2, 0.5])
def test_the_same_illumination_does_not_join_slides(fall_off: float, noise: float) -> None:
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    rows, columns = np.mgrid[:128, :128]
    images = []
    for k in range(30):
        rng = np.random.default_rng(k)
        light = 200 * (1 - fall_off * (x * x + y * y) / 2)
        for row, column in rng.integers(10, 118, (6, 2)):
            light[np.hypot(rows - row, columns - column) < 6] *= 0.5
        gray = light + noise * rng.standard_normal(light.shape)
        images.append((f"{k:02}", f"{k:02}", np.dstack([gray] * 3).astype(np.uint8)))
    assert group_by_slide(images) == {id_: digest for id_, digest, _ in images}


@pytest.mark.parametrize("value", [0, 200])
def test_uniform_images_are_not_joined(value: int) -> None:
    plain = np.full((30, 30, 3), value, np.uint8)
    found = group_by_slide([("a", "1", plain), ("b", "2", plain + 1)])
    assert found == {"a": "1", "b": "2"}


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("step", [1, -1])
def test_the_same_pixels_are_one_slide_even_flipped_or_turned(turns: int, step: int) -> None:
    picture = slide(6)
    turned = np.rot90(picture[:, ::step], turns)
    found = group_by_slide([("a", "2", picture), ("b", "1", turned), ("c", "0", slide(7))])
    assert found == {"a": "1", "b": "1", "c": "0"}


def test_slides_that_share_an_image_are_one() -> None:
    left, middle, right = (image for _, _, image in tiles("a", slide(1))[:3])
    upright = [("c", "3", left), ("d", "4", middle)]
    turned = [("e", "1", np.rot90(middle)), ("f", "2", np.rot90(right))]
    assert group_by_slide([*upright, turned[1]]) == {"c": "3", "d": "3", "f": "2"}
    assert group_by_slide([*upright, *turned]) == {"c": "1", "d": "1", "e": "1", "f": "1"}


def test_images_of_different_sizes_are_not_joined() -> None:
    picture = slide(5)
    found = group_by_slide([("a", "1", picture), ("b", "2", picture[:, :-1])])
    assert found == {"a": "1", "b": "2"}


def test_an_image_of_one_pixel_and_no_images() -> None:
    assert group_by_slide([("a", "1", np.zeros((1, 1, 3), np.uint8))]) == {"a": "1"}
    assert group_by_slide([]) == {}
