"""The mean of several networks is one network."""

from pathlib import Path

import keras
import numpy as np
import pytest

from nucleus_unet.network.ensemble import mean_of, members, with_spread
from nucleus_unet.network.portable import float32_network
from nucleus_unet.network.unet import build_segmenter
from nucleus_unet.recipe import Network, Recipe


@pytest.mark.parametrize(("padding", "size"), [("same", None), ("valid", 64)])
def test_the_maps_are_the_mean_of_those_of_the_members(
    padding: str, size: int | None, tmp_path: Path
) -> None:
    network = Network(padding=padding, base_filters=2, depth=1, dropout=(0, 0))
    models = [build_segmenter(network, size) for _ in range(3)]
    mean_of(models).save(tmp_path / "mean.keras")
    mean = keras.models.load_model(tmp_path / "mean.keras", compile=False)
    batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    each = [np.asarray(model(batch)) for model in models]
    np.testing.assert_allclose(np.asarray(mean(batch)), np.mean(each, axis=0), atol=1e-6)
    assert mean.input_shape == models[0].input_shape
    assert mean.output_shape == models[0].output_shape
    for member, model in zip(members(mean), models, strict=True):
        np.testing.assert_array_equal(np.asarray(member(batch)), np.asarray(model(batch)))


def test_one_network_is_its_own_member() -> None:
    model = build_segmenter(Network(base_filters=2, depth=1, dropout=(0, 0)), None)
    assert members(model) == [model]


def test_other_programs_get_every_member(crops: Recipe, tmp_path: Path) -> None:
    models = [build_segmenter(crops.network, None) for _ in range(2)]
    mean_of(models).save(tmp_path / "model.keras")
    portable = float32_network(tmp_path / "model.keras", crops)
    batch = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    each = [np.asarray(model(batch)) for model in models]
    np.testing.assert_allclose(np.asarray(portable(batch)), np.mean(each, axis=0), atol=1e-6)


def test_how_much_the_members_disagree() -> None:
    network = Network(base_filters=2, depth=1, dropout=(0, 0), outputs="borders")
    models = [build_segmenter(network, None) for _ in range(3)]
    batch = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    each = np.stack([np.asarray(model(batch)) for model in models])
    found = np.asarray(with_spread(mean_of(models))(batch))
    np.testing.assert_allclose(found[..., :2], each.mean(0), atol=1e-6)
    np.testing.assert_allclose(found[..., 2], each[..., 0].std(0), atol=1e-6)
    assert with_spread(models[0]) is models[0]
