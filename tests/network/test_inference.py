import itertools
import resource
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nucleus_unet.engine.isolation import new_process
from nucleus_unet.network import inference
from nucleus_unet.network.inference import (
    OVERLAP_PX,
    STEP_PX,
    load_model,
    predict_maps,
    predict_to_files,
    segment_images,
)
from nucleus_unet.network.normalization import apply_table, normalizing_table
from nucleus_unet.network.unet import build_segmenter
from nucleus_unet.nuclei import scoring
from nucleus_unet.nuclei.instances import resize_maps, separate_nuclei
from nucleus_unet.recipe import Network, Recipe, load_recipe

SIZE = 16


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_segmenter(Network(base_filters=4, depth=1, dropout=(0.5, 0.5)), SIZE)


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    rng, sizes = np.random.default_rng(0), [(16, 16), (20, 31), (9, 16), (40, 25), (16, 17)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return tiny.with_overrides(["training.threads=3"])


def batched(recipe: Recipe, batch_size: int) -> Recipe:
    return recipe.with_overrides([f"inference.batch_size={batch_size}"])


def test_each_image_gets_its_maps_in_order(
    model: keras.Model, images: list[NDArray[np.uint8]], recipe: Recipe
) -> None:
    found = list(predict_maps(model, images, recipe))
    assert len(found) == 5
    for maps in found:
        assert (maps.shape, maps.dtype) == ((SIZE, SIZE, 1), np.float32)
    backwards = list(predict_maps(model, images[::-1], recipe))[::-1]
    np.testing.assert_allclose(found, backwards, atol=1e-6)
    assert (
        np.abs(found[0] - found[1]).max() > 0.01
    )  # two images in the wrong order would be noticed
    alone = np.asarray(model(images[0][None]))[0]
    np.testing.assert_allclose(found[0], alone, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_the_maps_do_not_depend_on_the_batch_size(
    model: keras.Model, images: list[NDArray[np.uint8]], recipe: Recipe, batch_size: int
) -> None:
    expected = list(predict_maps(model, images, batched(recipe, 4)))
    np.testing.assert_allclose(
        list(predict_maps(model, images, batched(recipe, batch_size))), expected, atol=1e-6
    )


def test_the_other_images_of_a_batch_change_no_bit(
    model: keras.Model, images: list[NDArray[np.uint8]], recipe: Recipe
) -> None:
    all_maps = list(predict_maps(model, images, batched(recipe, 4)))
    np.testing.assert_array_equal(
        list(predict_maps(model, images[:3], batched(recipe, 4))), all_maps[:3]
    )
    np.testing.assert_array_equal(
        list(predict_maps(model, images[4:], batched(recipe, 4))), all_maps[4:]
    )


def test_without_images_there_are_no_maps(model: keras.Model, recipe: Recipe) -> None:
    assert list(predict_maps(model, [], recipe)) == []


def test_segment_labels_at_the_original_size(
    model: keras.Model, images: list[NDArray[np.uint8]], recipe: Recipe
) -> None:
    maps = list(predict_maps(model, images, recipe))
    cutoff = float(np.median(maps))
    cut = recipe.with_overrides([f"inference.cutoff={cutoff}"])
    labels = segment_images(model, images, cut)
    assert [found.shape for found in labels] == [image.shape[:2] for image in images]
    assert {found.dtype for found in labels} == {np.dtype(np.int32)}
    for found, predicted in zip(labels, maps, strict=True):
        assert found.max() > 0
        expected = separate_nuclei(resize_maps(predicted, *found.shape), cut.inference)
        np.testing.assert_array_equal(found, expected)


def test_the_maps_of_each_image_are_saved_in_a_file(
    model: keras.Model,
    recipe: Recipe,
    images: list[NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []  # Keras is already configured in this process
    monkeypatch.setattr(inference.backend, "configure", threads.append)
    model.save(tmp_path / "model.keras")
    sources = [tmp_path / f"image{i}.npy" for i in range(5)]
    for path, image in zip(sources, images, strict=True):
        np.save(path, image)
    to = [tmp_path / f"maps{i}.npy" for i in range(5)]
    predict_to_files(tmp_path / "model.keras", recipe, sources, to)
    assert threads == [3]
    np.testing.assert_array_equal(
        [np.load(path) for path in to], list(predict_maps(model, images, recipe))
    )


def test_a_model_is_loaded_once(model: keras.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    assert load_model(tmp_path / "model.keras") is load_model(tmp_path / "model.keras")


# Complete images at their own resolution


@pytest.fixture(scope="module")
def native(crops: Recipe) -> Recipe:
    wider = ["network.activation=elu", "network.base_filters=4", "inference.tile_px=320"]
    return crops.with_overrides(["data.normalize=false", *wider])


@pytest.fixture(scope="module")
def native_model(native: Recipe) -> keras.Model:
    keras.utils.set_random_seed(1)
    return build_segmenter(native.network, None)


@pytest.fixture(scope="module")
def mosaic() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).random((700, 900, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise - 0.5, (0, 0), 2)
    return np.clip(128 + 900 * smooth, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 130), (31, 320)])
def test_maps_have_the_size_of_the_image(
    native_model: keras.Model, native: Recipe, mosaic: NDArray[np.uint8], size: tuple[int, int]
) -> None:
    image = mosaic[: size[0], : size[1]]
    [maps] = predict_maps(native_model, [image], native)
    assert (maps.shape, maps.dtype) == ((*size, 2), np.float32)
    if size == (64, 64):
        np.testing.assert_allclose(maps, np.asarray(native_model(image[None]))[0], atol=1e-6)


def test_tiles_leave_no_seams(
    native_model: keras.Model, native: Recipe, mosaic: NDArray[np.uint8]
) -> None:
    [tiled] = predict_maps(native_model, [mosaic], native)
    [at_once] = predict_maps(
        native_model, [mosaic], native.with_overrides(["inference.tile_px=960"])
    )
    np.testing.assert_allclose(tiled, at_once, atol=1e-5)
    assert (np.ptp(at_once, axis=(0, 1)) > 0.05).all()


@given(
    length=st.integers(6, 200).map(lambda steps: 64 * steps),
    most=st.integers(5, 16).map(lambda steps: 64 * steps),
)
def test_tiles_cover_an_axis_and_are_no_larger_than_they_must_be(length: int, most: int) -> None:
    places, shares = zip(*inference._tiles(length, most), strict=True)
    total = np.zeros(length)
    for place, share in zip(places, shares, strict=True):
        total[place] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    [side] = {place.stop - place.start for place in places}
    overlaps = [a.stop - b.start for a, b in itertools.pairwise(places)]
    assert side <= most
    assert all(overlap >= OVERLAP_PX for overlap in overlaps)
    if overlaps:
        assert sum(overlaps) < len(overlaps) * OVERLAP_PX + len(places) * STEP_PX


def test_every_tile_has_the_same_size(native: Recipe, mosaic: NDArray[np.uint8]) -> None:
    shapes = set()

    class Model(keras.Model):
        output_shape = (None, None, None, 2)

        def predict_on_batch(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            shapes.add(batch.shape)
            return np.zeros((*batch.shape[:3], 2), np.float32)

    [maps] = predict_maps(Model(), [mosaic], native)
    assert maps.shape == (700, 900, 2)
    assert shapes == {(1, 320, 320, 3)}


def test_flips_and_rotations_are_undone(native: Recipe, mosaic: NDArray[np.uint8]) -> None:
    class Echo(keras.Model):
        """A model that returns two channels of the image as maps."""

        output_shape = (None, None, None, 2)

        def predict_on_batch(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            return (batch[..., :2] / 255).astype(np.float32)

    flipped = native.with_overrides(["inference.flips=true"])
    image = mosaic[:70, :100]
    [maps] = predict_maps(Echo(), [image], flipped)
    np.testing.assert_allclose(maps, image[..., :2] / 255, atol=1e-6)


def test_the_maps_of_each_scale_have_the_size_of_the_image(
    native: Recipe, mosaic: NDArray[np.uint8]
) -> None:
    sides: list[int] = []

    class Echo(keras.Model):
        output_shape = (None, None, None, 2)

        def predict_on_batch(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            sides.append(batch.shape[2])
            return (batch[..., :2] / 255).astype(np.float32)

    image = mosaic[:128, :192]
    [maps] = predict_maps(
        Echo(), [image], native.with_overrides(["inference.scales=[1, 0.5, 1.5]"])
    )
    assert sides == [192, 128, 320]  # multiples of 64
    assert maps.shape == (128, 192, 6)
    np.testing.assert_allclose(maps[..., :2], image[..., :2] / 255, atol=1e-6)
    means = image[..., :2].reshape(64, 2, 96, 2, 2).mean((1, 3))  # over 2 × 2 pixels
    np.testing.assert_allclose(maps[..., 2:4], resize_maps(means / 255, 128, 192), atol=0.005)
    [tiny] = predict_maps(
        Echo(), [image[:1, :1]], native.with_overrides(["inference.scales=[0.25]"])
    )
    assert tiny.shape == (1, 1, 2)


def test_resized_images_are_flipped_too(
    model: keras.Model, recipe: Recipe, images: list[NDArray[np.uint8]]
) -> None:
    both = [images[0], np.rot90(images[0])]
    maps, turned = predict_maps(model, both, recipe.with_overrides(["inference.flips=true"]))
    np.testing.assert_allclose(np.rot90(maps), turned, atol=1e-5)
    maps, turned = predict_maps(model, both, recipe)
    assert np.abs(np.rot90(maps) - turned).max() > 0.001


def test_with_flips_the_maps_of_a_rotated_image_are_the_rotated_maps(
    native_model: keras.Model, native: Recipe, mosaic: NDArray[np.uint8]
) -> None:
    flipped = native.with_overrides(["inference.flips=true"])
    image = mosaic[:64, :128]
    [maps] = predict_maps(native_model, [image], flipped)
    [turned] = predict_maps(native_model, [np.rot90(image)], flipped)
    np.testing.assert_allclose(np.rot90(maps), turned, atol=1e-5)


def test_images_are_normalised_before_they_are_cut_into_tiles(
    native_model: keras.Model, native: Recipe, mosaic: NDArray[np.uint8]
) -> None:
    normal = native.with_overrides(["data.normalize=true"])
    image = mosaic[:64, :64]
    [maps] = predict_maps(native_model, [image], normal)
    seen = apply_table(image, normalizing_table(image))
    np.testing.assert_allclose(maps, np.asarray(native_model(seen[None]))[0], atol=1e-6)


@pytest.mark.slow
def test_tiles_give_the_nuclei_of_one_pass_in_less_memory(tmp_path: Path) -> None:
    recipe = load_recipe("best", ["network.base_filters=4", "training.threads=2"])
    # An untrained network has low confidence everywhere.
    recipe = recipe.with_overrides(["inference.flips=false", "inference.min_confidence=0"])
    keras.utils.set_random_seed(3)
    build_segmenter(recipe.network, None).save(tmp_path / "model.keras")
    noise = np.random.default_rng(0).random((4000, 4000, 3), np.float32)
    image = np.clip(128 + 900 * cv2.GaussianBlur(noise - 0.5, (0, 0), 3), 0, 255).astype(np.uint8)
    np.save(tmp_path / "4000.npy", image)
    np.save(tmp_path / "2000.npy", image[:2000, :2000])

    def predicted(size: int, tile_px: int) -> tuple[NDArray[np.float32], int]:
        tiled = recipe.with_overrides([f"inference.tile_px={tile_px}"])
        images, to = [tmp_path / f"{size}.npy"], [tmp_path / "maps.npy"]
        with new_process() as process:
            process.submit(predict_to_files, tmp_path / "model.keras", tiled, images, to).result()
            used = process.submit(resource.getrusage, resource.RUSAGE_SELF).result()
        return np.load(tmp_path / "maps.npy"), used.ru_maxrss * 1024

    at_once, peak_at_once = predicted(4000, 4032)
    tiled, peak = predicted(4000, 1024)
    _, peak_of_a_quarter = predicted(2000, 1024)
    grown = at_once.nbytes + image.nbytes
    cutoffs = np.median(at_once, axis=(0, 1))
    inference = recipe.inference.model_copy(
        update={
            "cutoff": cutoffs[0],
            "seed_cutoff": cutoffs[0] * (1 - cutoffs[1]),
        }
    )
    expected, found = separate_nuclei(at_once, inference), separate_nuclei(tiled, inference)
    assert expected.max() > 1000
    assert scoring.match_nuclei(expected, found).score == 1
    assert found.max() == expected.max()
    assert np.count_nonzero(found > 0) == pytest.approx(np.count_nonzero(expected > 0), rel=1e-5)
    # Only the maps and the image grow with the size of the image, not the network's memory.
    assert peak - peak_of_a_quarter < grown
    assert peak_at_once - peak > 2 * grown
