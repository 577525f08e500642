"""A network for other programs computes in float32."""

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from nucleus_unet.engine.isolation import new_process
from nucleus_unet.network.portable import float32_network, predict_example
from nucleus_unet.network.unet import build_segmenter
from nucleus_unet.recipe import Recipe


@pytest.fixture
def bfloat16() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def test_a_network_that_was_trained_in_bfloat16(
    bfloat16: None, crops: Recipe, tmp_path: Path
) -> None:
    trained = build_segmenter(crops.network, None)
    trained.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    portable = float32_network(tmp_path / "model.keras", crops)
    assert trained.get_layer("unet").get_layer("down0a").compute_dtype == "bfloat16"
    assert portable.get_layer("unet").get_layer("down0a").compute_dtype == "float32"
    for ours, theirs in zip(portable.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_an_example_says_whether_keras_alone_can_load_the_network(
    tiny: Recipe, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.float32)
    cases = [
        (tiny, True),
        (tiny.with_overrides(["training.precision=mixed_bfloat16"]), False),
        (tiny.with_overrides(["network.padding=valid"]), False),  # its margins are a layer of ours
    ]
    with new_process() as process:
        for index, (recipe, plain) in enumerate(cases):
            path = tmp_path / f"{index}.keras"
            model = build_segmenter(recipe.network, 32)
            model.save(path)
            maps, found = process.submit(predict_example, path, recipe, image).result()
            assert (maps.dtype, found) == (np.float32, plain)
            np.testing.assert_allclose(maps, np.asarray(model(image[None]))[0], atol=1e-5)
