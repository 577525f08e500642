"""The ONNX file computes what the network computes."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.network.ensemble import mean_of
from nucleus_unet.network.export_readme import OPSET
from nucleus_unet.network.unet import build_segmenter
from nucleus_unet.recipe import Network

onnx = pytest.importorskip("onnx", reason="needs make install EXTRAS=export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs make install EXTRAS=export")

from nucleus_unet.network.onnx_graph import onnx_network  # noqa: E402


def segmenter(size: int | None = None, **changes: Any) -> keras.Model:
    """A small network with weights, and biases, that are not 0."""
    network = Network(**({"base_filters": 3, "depth": 2, "dropout": (0.1, 0, 0.2)} | changes))
    model = build_segmenter(network, size)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def images(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.float32)


def run(content: bytes, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    [maps] = session.run(["maps"], {"image": batch})
    return maps


def names(values: Sequence[Any]) -> list[tuple[str, list[str | int]]]:
    sides = ([d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values)
    return [(value.name, side) for value, side in zip(values, sides, strict=True)]


def test_a_network_without_weights_gives_its_last_bias() -> None:
    model = segmenter()
    zeros = [np.zeros_like(weight) for weight in model.get_weights()]
    zeros[-1][:] = np.log(3)  # sigmoid(ln 3) = 3 / (1 + 3)
    model.set_weights(zeros)
    np.testing.assert_allclose(
        run(onnx_network(model), images(1, 8, 12)), np.full((1, 8, 12, 1), 0.75), atol=1e-6
    )


def test_the_mean_of_several_networks() -> None:
    model, batch = mean_of([segmenter(), segmenter(depth=2)]), images(2, 12, 20)
    np.testing.assert_allclose(run(onnx_network(model), batch), np.asarray(model(batch)), atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "outputs"),
    [("relu", "borders"), ("elu", "mask"), ("selu", "mask"), ("tanh", "borders")],
)
def test_every_activation_and_output(activation: str, outputs: str) -> None:
    model, batch = segmenter(activation=activation, outputs=outputs), images(2, 12, 20)
    maps = np.asarray(model(batch))
    assert maps.std() > 0.01
    np.testing.assert_allclose(run(onnx_network(model), batch), maps, atol=1e-5)


@pytest.mark.parametrize("size", [None, 31])
def test_levels_at_half_the_resolution(size: int | None) -> None:
    model, batch = segmenter(size, half_resolution=True), images(2, size or 24, size or 40)
    maps = np.asarray(model(batch))
    assert maps.std() > 0.01
    np.testing.assert_allclose(run(onnx_network(model), batch), maps, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "padding", "kinds"),
    [
        (16, "same", set()),
        (30, "same", {"Pad", "Slice"}),  # margins of one pixel
        (31, "same", {"Pad", "Slice"}),  # a margin on one side only
        (48, "valid", {"Pad", "Slice"}),
    ],
)
def test_networks_of_a_fixed_size(size: int, padding: str, kinds: set[str]) -> None:
    model, batch = segmenter(size, padding=padding), images(2, size, size)
    content = onnx_network(model)
    np.testing.assert_allclose(run(content, batch), np.asarray(model(batch)), atol=1e-5)
    graph = onnx.load_from_string(content).graph
    assert {node.op_type for node in graph.node} & {"Pad", "Slice"} == kinds
    assert names(graph.input) == [("image", ["N", size, size, 3])]


def test_the_file_names_its_tensors_and_its_opset() -> None:
    file = onnx.load_from_string(onnx_network(segmenter(outputs="borders")))
    assert names(file.graph.input) == [("image", ["N", "H", "W", 3])]
    assert names(file.graph.output) == [("maps", ["N", "H", "W", 2])]
    assert [(opset.domain, opset.version) for opset in file.opset_import] == [("", OPSET)]


def test_equal_networks_give_equal_bytes() -> None:
    model = segmenter()
    assert onnx_network(model) == onnx_network(model)
    assert onnx_network(segmenter()) == onnx_network(model)


def test_a_layer_that_no_unet_has() -> None:
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(inputs))
    with pytest.raises(TypeError, match="a U-Net has no layer of the type GlobalMaxPooling2D"):
        onnx_network(model)
