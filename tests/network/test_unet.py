import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_unet.errors import NucleusError
from nucleus_unet.network.unet import (
    MirrorPadding2D,
    build_segmenter,
    build_unet,
    read_network,
    unet_input_size,
)
from nucleus_unet.recipe import Network, load_recipe


@pytest.fixture
def bfloat16() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def small(**changes: Any) -> Network:
    return Network(**({"base_filters": 2, "depth": 1, "dropout": (0, 0.1)} | changes))


def images(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def convolutions(model: keras.Model) -> list[keras.Layer]:
    kinds = (keras.layers.Conv2D, keras.layers.Conv2DTranspose)
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def test_the_paper_s_network() -> None:
    network = load_recipe("paper").network.model_copy(update={"dropout": (0.0,) * 5})
    unet = build_unet(network, 572, outputs=2)
    assert unet.output_shape == (None, 388, 388, 2)
    assert len(convolutions(unet)) == 23
    assert unet.count_params() == 31_030_658 + 2 * 9 * 64  # the paper's images have one channel
    # Figure 1 of the paper: the size after each pair of convolutions, and the number of filters.
    sizes = {
        "down0b": (568, 64),
        "down1b": (280, 128),
        "down2b": (136, 256),
        "down3b": (64, 512),
        "bottomb": (28, 1024),
        "upconv3": (56, 512),
        "up3b": (52, 512),
        "up2b": (100, 256),
        "up1b": (196, 128),
        "up0b": (388, 64),
    }
    found = {name: unet.get_layer(name).output.shape for name in sizes}
    assert {name: (s[1], s[3]) for name, s in found.items()} == sizes


def test_the_seed_s_network() -> None:
    network = load_recipe("seed").network
    segmenter = build_segmenter(network, 256)
    assert segmenter.count_params() == 1_941_105
    assert {layer.name: layer.output.shape[1:] for layer in segmenter.layers} == {
        "image": (256, 256, 3),
        "scale": (256, 256, 3),
        "mirror": (444, 444, 3),
        "unet": (260, 260, 1),
        "crop": (256, 256, 1),
    }
    layers = segmenter.get_layer("unet").layers
    dropout = [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert dropout == [0.1, 0.1, 0.2, 0.2, 0.3, 0.2, 0.2, 0.1, 0.1]
    assert layers[-1].activation.__name__ == "sigmoid"
    *inner, _ = (layer for layer in layers if type(layer) is keras.layers.Conv2D)
    assert [layer.activation.__name__ for layer in inner] == ["tanh"] * 18
    assert {layer.kernel_initializer.__class__.__name__ for layer in inner} == {"HeNormal"}


def test_same_padding_needs_no_margin_and_no_more_parameters() -> None:
    network = load_recipe("seed", ["network.padding=same"]).network
    segmenter = build_segmenter(network, 256)
    assert segmenter.count_params() == 1_941_105
    assert [layer.name for layer in segmenter.layers] == ["image", "scale", "unet"]
    assert segmenter.output_shape == (None, 256, 256, 1)


@pytest.mark.parametrize(
    ("padding", "depth", "output", "size"),
    [
        ("valid", 4, 388, 572),
        ("valid", 4, 387, 572),
        ("valid", 4, 389, 588),
        ("valid", 4, 256, 444),
        ("valid", 4, 4, 188),
        ("valid", 1, 1, 18),
        ("same", 4, 256, 256),
        ("same", 4, 257, 272),
        ("same", 1, 1, 2),
    ],
)
def test_input_sizes(padding: Any, depth: int, output: int, size: int) -> None:
    network = Network(padding=padding, depth=depth, dropout=(0.0,) * (depth + 1))
    assert unet_input_size(network, output) == size


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("size", [24, 33])
def test_the_maps_have_the_size_of_the_image(padding: str, depth: int, size: int) -> None:
    network = small(padding=padding, depth=depth, dropout=(0.0,) * (depth + 1))
    probability = np.asarray(build_segmenter(network, size)(images(size)))
    assert probability.shape == (2, size, size, 1)
    assert probability.dtype == np.float32
    assert probability.min() >= 0
    assert probability.max() <= 1


@pytest.mark.parametrize("size", [None, 24, 31])
def test_levels_at_half_the_resolution(size: int | None) -> None:
    network = small(half_resolution=True, base_filters=6, depth=2, dropout=(0, 0, 0))
    assert (network.step_px, unet_input_size(network, 31)) == (8, 32)
    segmenter = build_segmenter(network, size)
    assert np.asarray(segmenter(images(size or 40))).shape == (2, size or 40, size or 40, 1)
    unet = build_unet(network, 32)
    assert unet.get_layer("down0a").output.shape == (None, 16, 16, 6)
    assert unet.get_layer("bottomb").output.shape == (None, 4, 4, 24)
    assert unet.get_layer("last").output.shape == (None, 32, 32, 2)


@pytest.mark.parametrize(
    ("padding", "depth", "size", "message"),
    [
        ("same", 2, 30, r"30 px gives 15 px at level 1.*Use 4 \+ a multiple of 4\.$"),
        ("valid", 1, 19, r"19 px gives 15 px at level 0.*Use 18 \+ a multiple of 2\.$"),
        ("valid", 4, 570, r"570 px gives 279 px at level 1.*Use 188 \+ a multiple of 16\.$"),
    ],
)
def test_a_size_that_cannot_be_halved_is_refused(
    padding: str, depth: int, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_unet(small(padding=padding, depth=depth, dropout=(0.0,) * (depth + 1)), size)


def test_an_image_smaller_than_its_mirrored_margin_is_refused() -> None:
    network = load_recipe("seed").network
    message = (
        r"data\.image_size = 64 is too small: .* depth 4 .* 94 px.* or network\.padding=same\.$"
    )
    with pytest.raises(NucleusError, match=message):
        build_segmenter(network, 64)
    assert np.asarray(build_segmenter(network, 96)(images(96, 1))).shape == (1, 96, 96, 1)
    deep = network.model_copy(update={"padding": "same", "depth": 6, "dropout": (0.0,) * 7})
    with pytest.raises(NucleusError, match=r"same convolutions .* or a smaller network\.depth\.$"):
        build_segmenter(deep, 20)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_saved_segmenter_predicts_the_same(tmp_path: Path, padding: str) -> None:
    segmenter = build_segmenter(small(padding=padding), 20)
    segmenter.save(tmp_path / "model.keras")
    loaded = read_network(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images(20)), segmenter(images(20)))


def with_layer(to: Path, layer: dict[str, Any]) -> Path:
    """A saved network that has one more layer, as its file describes it."""
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(to)
    with zipfile.ZipFile(to) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"].append(layer)
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in (members | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, content)
    return to


HOSTILE = {
    "a Lambda": lambda mark: keras.layers.Lambda(
        lambda x, mark=str(mark): [x, Path(mark).write_text("")][0]
    ),
    "a call of the system": lambda mark: {
        "module": "os",
        "class_name": "system",
        "config": f"touch {mark}",
        "registered_name": None,
    },
    "safe mode switched off": lambda mark: {
        "module": "keras.config",
        "class_name": "enable_unsafe_deserialization",
        "config": {},
        "registered_name": None,
    },
    "a SavedModel": lambda mark: {
        "module": "keras.layers",
        "class_name": "TFSMLayer",
        "config": {"filepath": str(mark.parent), "call_endpoint": "serve"},
        "registered_name": None,
    },
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.fault(
    "Security",
    "a model file that would run code",
    "refused in one line; nothing in it is run",
)
def test_a_hostile_network_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    path, mark = tmp_path / "model.keras", tmp_path / "mark"
    layer = HOSTILE[name](mark)
    if isinstance(layer, keras.layers.Layer):
        keras.Sequential([keras.Input((4,)), layer]).save(path)
        mark.unlink(missing_ok=True)
    else:
        with_layer(path, layer)
    with pytest.raises(NucleusError, match="not a model of this program, or damaged"):
        read_network(path)
    assert not mark.exists()
    assert keras.src.saving.serialization_lib.in_safe_mode() is not False


@pytest.mark.fault(
    "Damaged results",
    "a model file is damaged",
    "one line that names it",
)
def test_a_damaged_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    build_segmenter(small(), 20).save(path)
    for content in (path.read_bytes()[:-200], b"", b"no zip"):
        path.write_bytes(content)
        with pytest.raises(NucleusError, match=r"model\.keras: not a model of this program"):
            read_network(path)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "selu"])
def test_every_activation(activation: str) -> None:
    unet = build_unet(small(activation=activation), 16)
    assert unet.get_layer("down0a").activation.__name__ == activation
    assert np.isfinite(np.asarray(unet(images(16) / np.float32(255)))).all()


def test_dropout_by_level() -> None:
    names = [layer.name for layer in build_unet(small(dropout=(0, 0.1)), 16).layers]
    assert [name for name in names if "dropout" in name] == ["bottom_dropout"]


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_probabilities_are_float32_in_mixed_precision(padding: str) -> None:
    segmenter = build_segmenter(small(padding=padding, activation="tanh"), 16)
    assert segmenter.get_layer("unet").get_layer("down0a").compute_dtype == "bfloat16"
    probability = np.asarray(segmenter(images(16)))
    assert probability.dtype == np.float32
    rounded = np.asarray(keras.ops.cast(keras.ops.cast(probability, "bfloat16"), "float32"))
    assert (probability != rounded).mean() > 0.5  # finer than bfloat16


def test_mirroring_does_not_repeat_the_border() -> None:
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32).reshape(1, 3, 3, 1)
    assert np.asarray(MirrorPadding2D((1, 2))(x))[0, ..., 0].tolist() == [
        [5, 4, 5, 6, 5, 4],
        [2, 1, 2, 3, 2, 1],
        [5, 4, 5, 6, 5, 4],
        [8, 7, 8, 9, 8, 7],
        [5, 4, 5, 6, 5, 4],
        [2, 1, 2, 3, 2, 1],
    ]
    assert MirrorPadding2D((1, 2)).compute_output_shape((None, 3, 3, 1)) == (None, 6, 6, 1)


@given(st.integers(1, 5), st.integers(1, 600))
def test_the_valid_input_size_is_the_smallest_that_covers_the_output(
    depth: int, output: int
) -> None:
    def run(size: int) -> int:
        for _ in range(depth):
            size -= 4
            assert size % 2 == 0
            size //= 2
        size -= 4
        for _ in range(depth):
            size = size * 2 - 4
        return size

    network = Network(padding="valid", depth=depth, dropout=(0.0,) * (depth + 1))
    size = unet_input_size(network, output)
    assert run(size) >= output
    assert size - 2**depth < 2 or run(size - 2**depth) < output
