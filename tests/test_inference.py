from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet import inference
from nucleus_unet.inference import load_model, predict, segment, write_probabilities
from nucleus_unet.instances import connected_components, upsample
from nucleus_unet.recipe import Inference, Network
from nucleus_unet.unet import build_segmenter

SIZE = 16


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_segmenter(Network(base_filters=4, depth=1, dropout=(0.5, 0.5)), SIZE)


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    rng, sizes = np.random.default_rng(0), [(16, 16), (20, 31), (9, 16), (40, 25), (16, 17)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_one_probability_an_image_in_order(
    model: keras.Model, images: list[NDArray[np.uint8]]
) -> None:
    found = list(predict(model, images, 2))
    assert len(found) == 5
    for probability in found:
        assert (probability.shape, probability.dtype) == ((SIZE, SIZE), np.float32)
    backwards = list(predict(model, images[::-1], 2))[::-1]
    np.testing.assert_allclose(found, backwards, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.01  # the order could have been seen
    alone = np.asarray(model(images[0][None]))[0, ..., 0]
    np.testing.assert_allclose(found[0], alone, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_the_batch_size_does_not_matter(
    model: keras.Model, images: list[NDArray[np.uint8]], batch_size: int
) -> None:
    expected = list(predict(model, images, 4))
    np.testing.assert_allclose(list(predict(model, images, batch_size)), expected, atol=1e-6)


def test_what_else_is_in_the_batch_does_not_move_a_bit(
    model: keras.Model, images: list[NDArray[np.uint8]]
) -> None:
    whole = list(predict(model, images, 4))
    np.testing.assert_array_equal(list(predict(model, images[:3], 4)), whole[:3])
    np.testing.assert_array_equal(list(predict(model, images[4:], 4)), whole[4:])


def test_no_images_no_probabilities(model: keras.Model) -> None:
    assert list(predict(model, [], 4)) == []


def test_segment_labels_at_the_original_size(
    model: keras.Model, images: list[NDArray[np.uint8]]
) -> None:
    probabilities = list(predict(model, images, 2))
    cutoff = float(np.median(probabilities))
    labels = segment(model, images, Inference(cutoff=cutoff, batch_size=2))
    assert [found.shape for found in labels] == [image.shape[:2] for image in images]
    assert {found.dtype for found in labels} == {np.dtype(np.int32)}
    for found, probability in zip(labels, probabilities, strict=True):
        assert found.max() > 0
        np.testing.assert_array_equal(
            found, connected_components(upsample(probability, *found.shape), cutoff)
        )


def test_probabilities_are_written_one_file_each(
    model: keras.Model,
    images: list[NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []  # this process is set up already
    monkeypatch.setattr(inference.backend, "configure", threads.append)
    model.save(tmp_path / "model.keras")
    sources = [tmp_path / f"image{i}.npy" for i in range(5)]
    for path, image in zip(sources, images, strict=True):
        np.save(path, image)
    to = [tmp_path / f"probability{i}.npy" for i in range(5)]
    write_probabilities(tmp_path / "model.keras", Inference(batch_size=2), 3, sources, to)
    assert threads == [3]
    np.testing.assert_array_equal([np.load(path) for path in to], list(predict(model, images, 2)))


def test_a_model_is_read_once(model: keras.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    assert load_model(tmp_path / "model.keras") is load_model(tmp_path / "model.keras")
