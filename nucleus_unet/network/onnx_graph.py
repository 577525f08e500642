"""The network as an ONNX file, built layer by layer.

Keras exports to ONNX with tf2onnx, which needs TensorFlow, names the output ``Identity:0`` and gives
other bytes each time. A U-Net has few kinds of layers, so that a graph of its own is short and exact.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from nucleus_unet.network import backend
from nucleus_unet.network.ensemble import members
from nucleus_unet.network.export_readme import OPSET
from nucleus_unet.network.portable import float32_network
from nucleus_unet.network.unet import MirrorPadding2D
from nucleus_unet.recipe import Recipe

IR_VERSION = 8
"""Version of the format of the file, of the same time as `OPSET`."""
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
KERNEL_AXES = (3, 2, 0, 1)
"""The axes of a kernel in the order of ONNX, with the channels first; transposed convolutions too."""


def write_onnx(network: Path, recipe: Recipe, to: Path) -> None:
    """Write the network of a ``model.keras`` as an ONNX file; call this in a new process.

    Parameters
    ----------
    network : Path
        The ``model.keras``.
    recipe : Recipe
        Its resolved recipe.
    to : Path
        The file to write.
    """
    backend.configure(recipe.training.cpu_threads)
    to.write_bytes(onnx_network(float32_network(network, recipe)))


def onnx_network(model: keras.Model) -> bytes:
    """Convert a network to ONNX.

    Parameters
    ----------
    model : keras.Model
        A model built by `nucleus_unet.network.unet.build_segmenter`, or the mean of several, in
        float32.

    Returns
    -------
    bytes
        The ONNX file. Its input ``image`` is (N, H, W, 3) float32 in 0..255, and its output ``maps``
        (N, H, W, C) float32 in [0, 1]. Equal networks give equal bytes.
    """
    graph = _Graph()
    image = graph.add("Transpose", "image", perm=TO_CHANNELS_FIRST)
    predicted = [_segmenter(graph, member, image) for member in members(model)]
    x = graph.add("Mean", *predicted) if len(predicted) > 1 else predicted[0]
    graph.nodes.append(helper.make_node("Transpose", [x], ["maps"], perm=TO_CHANNELS_LAST))
    height, width = model.input_shape[1:3]
    sides = ("N", height or "H", width or "W")
    entry, exit_ = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [*sides, shape[-1]])
        for name, shape in (("image", model.input_shape), ("maps", model.output_shape))
    )
    made = helper.make_model(
        helper.make_graph(graph.nodes, "nucleus_unet", [entry], [exit_], graph.constants),
        producer_name="nucleus-unet",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


class _Graph:
    """The nodes and constants that were added so far."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _segmenter(graph: _Graph, model: keras.Model, x: str) -> str:
    """Add a chain: rescaling, perhaps mirrored margins, U-Net, perhaps a crop."""
    for layer in model.layers:
        x = _unet(graph, layer, x) if isinstance(layer, keras.Model) else _layer(graph, layer, [x])
    return x


def _unet(graph: _Graph, unet: keras.Model, x: str) -> str:
    """Add the layers of `build_unet`, which have several inputs where a skip is joined."""
    made = {unet.inputs[0].name: x}
    for layer in unet.layers[1:]:  # the first one is the input
        sources = layer.input if isinstance(layer.input, list) else [layer.input]
        made[layer.output.name] = _layer(graph, layer, [made[source.name] for source in sources])
    return made[unet.outputs[0].name]


def _layer(graph: _Graph, layer: keras.Layer, inputs: list[str]) -> str:
    """Add one layer and return the name of its output."""
    match layer:
        case keras.layers.InputLayer() | keras.layers.Dropout():
            return inputs[0]
        case keras.layers.Rescaling():
            return graph.add("Mul", *inputs, graph.constant(np.array(layer.scale, np.float32)))
        case keras.layers.Conv2D() | keras.layers.Conv2DTranspose():
            return _convolution(graph, layer, inputs[0])
        case keras.layers.Activation():
            return _activated(graph, layer, inputs[0])
        case keras.layers.MaxPooling2D():
            return graph.add("MaxPool", *inputs, kernel_shape=[2, 2], strides=[2, 2])
        case keras.layers.Concatenate():
            return graph.add("Concat", *inputs, axis=1)
        case keras.layers.Cropping2D():
            starts, ends = np.transpose(layer.cropping)
            ends = np.where(ends, -ends, np.iinfo(np.int64).max)
            limits = (
                graph.constant(each.astype(np.int64)) for each in (starts, ends, np.array([2, 3]))
            )
            return graph.add("Slice", *inputs, *limits)
        case MirrorPadding2D():
            before, after = layer.padding
            pads = np.array([0, 0, before, before, 0, 0, after, after], np.int64)
            return graph.add("Pad", *inputs, graph.constant(pads), mode="reflect")
    raise TypeError(f"a U-Net has no layer of the type {type(layer).__name__}")


def _convolution(graph: _Graph, layer: Any, x: str) -> str:
    kernel, bias = (np.asarray(weight, np.float32) for weight in layer.get_weights())
    parts = x, graph.constant(kernel.transpose(KERNEL_AXES)), graph.constant(bias)
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return graph.add("ConvTranspose", *parts, strides=layer.strides)
    margin = (layer.kernel_size[0] - layer.strides[0] + 1) // 2 if layer.padding == "same" else 0
    convolved = graph.add("Conv", *parts, pads=[margin] * 4, strides=layer.strides)
    return _activated(graph, layer, convolved)


def _activated(graph: _Graph, layer: Any, x: str) -> str:
    """Add the activation of a layer. The constants of elu and selu are those of Keras by default."""
    name = layer.activation.__name__
    return x if name == "linear" else graph.add(name.capitalize(), x)
