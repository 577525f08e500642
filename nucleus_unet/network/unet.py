"""The U-Net of Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597), of any depth."""

import math
from pathlib import Path
from typing import Any

import keras

from nucleus_unet.errors import NucleusError
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.recipe import Network


def build_unet(network: Network, size: int | None, outputs: int = 1) -> keras.Model:
    """Build the network alone: contracting path, expansive path and a 1×1 convolution.

    Parameters
    ----------
    network : Network
        The recipe's ``network`` part.
    size : int or None
        Side of the square input in pixels. None accepts any size; it requires ``same`` padding.
    outputs : int
        Number of output channels.

    Returns
    -------
    keras.Model
        Maps (N, size, size, 3) float to (N, s, s, outputs) float32 in [0, 1]. With ``same`` padding s
        is equal to `size`. With ``valid`` padding s is smaller, and the skips are cropped to their
        centre: at depth 4, an input of 572 px gives an output of 388 px.

    Raises
    ------
    ValueError
        If the feature maps of this size cannot be halved ``network.depth`` times.

    Notes
    -----
    With ``half_resolution`` the levels work at half the size of the image. The last convolution sees
    the image again, next to the doubled maps, so that outlines do not lose a pixel.
    """
    inputs = keras.Input((size, size, 3), name="image")
    x, skips = inputs, []
    if network.half_resolution:
        x = _convolution(x, network, _outer_filters(network), "halve", kernel=4, strides=2)
    for level in range(network.depth):
        x = _double_convolution(x, network, level, f"down{level}")
        if size and x.shape[1] % 2:
            raise ValueError(
                f"an input of {size} px gives {x.shape[1]} px at level {level}, an odd number that "
                f"cannot be halved. Use {unet_input_size(network, 1)} + a multiple of "
                f"{network.step_px}."
            )
        skips.append(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool{level}")(x)
    x = _double_convolution(x, network, network.depth, "bottom")
    for level in reversed(range(network.depth)):
        filters = network.base_filters * 2**level
        x = keras.layers.Conv2DTranspose(filters, 2, strides=2, name=f"upconv{level}")(x)
        skip = skips[level]
        if size and (margin := (skip.shape[1] - x.shape[1]) // 2):
            skip = keras.layers.Cropping2D(margin, name=f"crop{level}")(skip)
        x = keras.layers.Concatenate(name=f"join{level}")([x, skip])
        x = _double_convolution(x, network, level, f"up{level}")
    if network.half_resolution:
        x = keras.layers.Conv2DTranspose(_outer_filters(network), 2, strides=2, name="double")(x)
        x = keras.layers.Concatenate(name="join")([x, inputs])
        x = _convolution(x, network, _outer_filters(network), "last")
    # Always float32: bfloat16 is too coarse for probabilities near 0 and 1.
    x = keras.layers.Conv2D(outputs, 1, name="logits", dtype="float32")(x)
    maps = keras.layers.Activation("sigmoid", name="maps", dtype="float32")(x)
    return keras.Model(inputs, maps, name="unet")


def build_segmenter(network: Network, image_size: int | None) -> keras.Model:
    """Build the model that is trained and logged: from images to maps of the same size.

    Parameters
    ----------
    network : Network
        The recipe's ``network`` part.
    image_size : int or None
        Side of the square images in pixels. None accepts any multiple of ``network.step_px``; it
        requires ``same`` padding.

    Returns
    -------
    keras.Model
        Maps (N, image_size, image_size, 3) in 0..255 to (N, image_size, image_size, C) float32 in
        [0, 1]. The C channels are those of `nucleus_unet.network.targets.training_targets`.

    Raises
    ------
    NucleusError
        If the image is not larger than the margin to mirror around it.

    Notes
    -----
    The model divides the values by 255. If `build_unet` needs a larger input than the image, the
    model mirrors the image at its borders and crops the output to the size of the image. ``valid``
    padding always needs this.
    """
    channels = CHANNELS[network.outputs]
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(inputs)
    if image_size is None:
        return keras.Model(inputs, build_unet(network, None, outputs=channels)(x), name="segmenter")
    size = unet_input_size(network, image_size)
    margins = _margins(size, image_size)
    if max(margins) >= image_size:
        other = "network.padding=same" if network.padding == "valid" else "a smaller network.depth"
        raise NucleusError(
            f"data.image_size = {image_size} is too small: {network.padding} convolutions at depth "
            f"{network.depth} need a mirrored margin of {max(margins)} px. Use larger images or {other}."
        )
    if size > image_size:
        x = MirrorPadding2D(margins, name="mirror")(x)
    outputs = build_unet(network, size, outputs=channels)(x)
    if outputs.shape[1] > image_size:
        outputs = keras.layers.Cropping2D(
            (_margins(outputs.shape[1], image_size),) * 2, name="crop", dtype="float32"
        )(outputs)
    return keras.Model(inputs, outputs, name="segmenter")


def unet_input_size(network: Network, output_size: int) -> int:
    """Compute the smallest input side in pixels whose output covers `output_size` pixels.

    Examples
    --------
    >>> unet_input_size(Network(padding="valid"), 388)
    572
    >>> unet_input_size(Network(padding="valid"), 256)
    444
    """
    step = network.step_px
    if network.padding == "same":
        return math.ceil(output_size / step) * step
    # Two unpadded 3×3 convolutions cost 4 px: 4 at the bottom, which are 4 * step px of the input, and
    # on the way down and on the way up 4 * (1 + 2 + ... + step / 2) = 4 * (step - 1) px.
    border = 4 * (step - 1)
    bottom = math.ceil((output_size + border) / step)
    return (bottom + 4) * step + border


@keras.saving.register_keras_serializable("nucleus_unet")
class MirrorPadding2D(keras.layers.Layer):
    """Pad both axes by (before, after) pixels with the mirrored image; the border is not repeated."""

    def __init__(self, padding: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.padding = tuple(padding)

    def call(self, x: Any) -> Any:
        """Pad (N, H, W, C) to (N, H + before + after, W + before + after, C)."""
        return keras.ops.pad(x, ((0, 0), self.padding, self.padding, (0, 0)), mode="reflect")

    def compute_output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        added = sum(self.padding)
        return (shape[0], shape[1] + added, shape[2] + added, shape[3])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"padding": self.padding}


def _double_convolution(x: Any, network: Network, level: int, name: str) -> Any:
    """Convolution, dropout, convolution; the number of filters doubles with each level."""
    for half in "ab":
        x = _convolution(x, network, network.base_filters * 2**level, f"{name}{half}")
        if half == "a" and network.dropout[level]:
            x = keras.layers.Dropout(network.dropout[level], name=f"{name}_dropout")(x)
    return x


def _convolution(
    x: Any, network: Network, filters: int, name: str, kernel: int = 3, strides: int = 1
) -> Any:
    return keras.layers.Conv2D(
        filters,
        kernel,
        strides,
        padding=network.padding,
        activation=network.activation,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _outer_filters(network: Network) -> int:
    """Number of filters of the layers around the levels, which work at full resolution and are slow."""
    return max(1, network.base_filters // 3)


def _margins(larger: int, smaller: int) -> tuple[int, int]:
    before = (larger - smaller) // 2
    return before, larger - smaller - before


def read_network(path: Path) -> keras.Model:
    """Read the network in a ``model.keras`` from any source, without running code in it.

    Raises
    ------
    NucleusError
        If the file is damaged, or describes anything else than layers of Keras and ours.
    """
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises errors of any type for damaged and hostile files
        reason = " ".join(str(error).split())
        raise NucleusError(
            f"{path}: not a model of this program, or damaged ({reason:.200}). Choose another model."
        ) from error
