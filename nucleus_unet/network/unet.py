"""The U-Net of Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597), by loop over its depth."""

from typing import Any

import keras

from nucleus_unet.errors import NucleusError
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.recipe import Network


def build_unet(network: Network, size: int | None, outputs: int = 1) -> keras.Model:
    """The bare network: contracting path, expansive path and a 1×1 convolution.

    With ``valid`` padding the output is smaller than the input (572 gives 388 at depth 4) and the
    skips are cropped to the middle; with ``same`` padding it has the size of the input.

    Parameters
    ----------
    network : Network
        The part of the recipe.
    size : int or None
        Side of the square input, in px; None for any, with ``same`` padding.
    outputs : int
        Channels of the output.

    Returns
    -------
    keras.Model
        (N, size, size, 3) float to (N, s, s, outputs) float32 in [0, 1].

    Raises
    ------
    ValueError
        A size whose feature maps cannot be halved evenly `depth` times.
    """
    inputs = keras.Input((size, size, 3), name="image")
    x, skips = inputs, []
    for level in range(network.depth):
        x = _double_convolution(x, network, level, f"down{level}")
        if size and x.shape[1] % 2:
            raise ValueError(
                f"an input of {size} px gives {x.shape[1]} px at level {level}, which cannot be "
                f"halved; {_size_rule(network)}"
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
    # float32 whatever the policy: probabilities near 0 and 1 do not fit bfloat16
    x = keras.layers.Conv2D(outputs, 1, name="logits", dtype="float32")(x)
    maps = keras.layers.Activation("sigmoid", name="maps", dtype="float32")(x)
    return keras.Model(inputs, maps, name="unet")


def build_segmenter(network: Network, image_size: int | None) -> keras.Model:
    """The network as it is trained and logged: images in, maps of `nucleus_unet.network.targets` out.

    Scales 0..255 to 0..1. Around ``valid`` convolutions the image is mirrored outwards until the
    output covers it, and the output is cropped to the image, so that sizes in and out are the same.

    Parameters
    ----------
    network : Network
        The part of the recipe.
    image_size : int or None
        Side of the images, in px; None for any multiple of 2**depth, with ``same`` padding.

    Returns
    -------
    keras.Model
        (N, image_size, image_size, 3) in 0..255 to (N, image_size, image_size, C) float32 in [0, 1].

    Raises
    ------
    NucleusError
        An image that is smaller than the margin that would be mirrored around it.
    """
    channels = CHANNELS[network.outputs]
    if image_size is None:
        inputs = keras.Input((None, None, 3), name="image")
        x = keras.layers.Rescaling(1 / 255, name="scale")(inputs)
        return keras.Model(inputs, build_unet(network, None, outputs=channels)(x), name="segmenter")
    size = unet_input_size(network, image_size)
    if (margin := max(_margins(size, image_size))) >= image_size:
        other = "network.padding=same" if network.padding == "valid" else "a smaller network.depth"
        raise NucleusError(
            f"data.image_size = {image_size}: {network.padding} convolutions at depth {network.depth} "
            f"mirror {margin} px around it, more than it has; take larger images or {other}"
        )
    unet = build_unet(network, size, outputs=channels)
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(inputs)
    if size > image_size:
        x = MirrorPadding2D(_margins(size, image_size), name="mirror")(x)
    outputs = unet(x)
    if outputs.shape[1] > image_size:
        outputs = keras.layers.Cropping2D(
            (_margins(outputs.shape[1], image_size),) * 2, name="crop", dtype="float32"
        )(outputs)
    return keras.Model(inputs, outputs, name="segmenter")


def unet_input_size(network: Network, output_size: int) -> int:
    """The smallest input side in px whose output covers `output_size` px.

    Examples
    --------
    >>> unet_input_size(Network(padding="valid"), 388)
    572
    >>> unet_input_size(Network(padding="valid"), 256)
    444
    """
    if network.padding == "same":
        step = 2**network.depth
        return -(-output_size // step) * step
    # From the bottom up: each pair of unpadded 3×3 convolutions costs 4 px, each level doubles.
    bottom = 1
    while _valid_output(bottom, network.depth) < output_size:
        bottom += 1
    size = bottom + 4
    for _ in range(network.depth):
        size = size * 2 + 4
    return size


@keras.saving.register_keras_serializable("nucleus_unet")
class MirrorPadding2D(keras.layers.Layer):
    """Pads (before, after) px on both axes with the mirrored image, its border not repeated."""

    def __init__(self, padding: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.padding = tuple(padding)

    def call(self, x: Any) -> Any:
        """(N, H, W, C) to (N, H + before + after, W + before + after, C)."""
        return keras.ops.pad(x, ((0, 0), self.padding, self.padding, (0, 0)), mode="reflect")

    def compute_output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        added = sum(self.padding)
        return (shape[0], shape[1] + added, shape[2] + added, shape[3])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"padding": self.padding}


def _double_convolution(x: Any, network: Network, level: int, name: str) -> Any:
    """Convolve, dropout, convolve; the filters double with each level."""
    for half in "ab":
        x = keras.layers.Conv2D(
            network.base_filters * 2**level,
            3,
            padding=network.padding,
            activation=network.activation,
            kernel_initializer="he_normal",
            name=f"{name}{half}",
        )(x)
        if half == "a" and network.dropout[level]:
            x = keras.layers.Dropout(network.dropout[level], name=f"{name}_dropout")(x)
    return x


def _margins(larger: int, smaller: int) -> tuple[int, int]:
    before = (larger - smaller) // 2
    return before, larger - smaller - before


def _valid_output(bottom: int, depth: int) -> int:
    """Output side of a network whose bottom level ends with `bottom` px."""
    for _ in range(depth):
        bottom = bottom * 2 - 4
    return bottom


def _size_rule(network: Network) -> str:
    near = unet_input_size(network, 1)
    return f"sizes that fit are {near} + a multiple of {2**network.depth}"
