"""Several networks as one, whose maps are the mean of theirs."""

from collections.abc import Sequence
from pathlib import Path

import keras

from nucleus_unet.network import backend
from nucleus_unet.network.unet import read_network


def write_mean(networks: Sequence[Path], threads: int, to: Path) -> None:
    """Write the mean of networks as a ``model.keras``; call this in a worker process.

    Parameters
    ----------
    networks : sequence of Path
        The ``model.keras`` of each, of the same architecture.
    threads : int
        Number of CPU threads.
    to : Path
        The file to write.
    """
    backend.configure(threads)
    mean_of([read_network(path) for path in networks]).save(to)


def mean_of(models: Sequence[keras.Model]) -> keras.Model:
    """Join networks of the same architecture into one; their layers are shared, not copied."""
    named = [
        keras.Model(model.input, model.output, name=f"member{number}")
        for number, model in enumerate(models, 1)
    ]
    image = keras.Input(models[0].input_shape[1:], name="image")
    maps = keras.layers.Average(name="mean", dtype="float32")([model(image) for model in named])
    return keras.Model(image, maps, name="segmenter")


def members(model: keras.Model) -> list[keras.Model]:
    """The networks that `mean_of` joined; the model itself if it is one network."""
    return [layer for layer in model.layers if layer.name.startswith("member")] or [model]


def with_spread(model: keras.Model) -> keras.Model:
    """Let a network that `mean_of` made also say how much its members disagree.

    Returns
    -------
    keras.Model
        Its maps with one more channel: the standard deviation, over the members, of the probability of a
        nucleus. The model itself if it is one network.
    """
    joined = members(model)
    if joined == [model]:
        return model
    each = [member(model.input) for member in joined]
    spread = keras.ops.std(keras.ops.stack([maps[..., :1] for maps in each]), axis=0)
    mean = keras.ops.mean(keras.ops.stack(each), axis=0)
    return keras.Model(model.input, keras.ops.concatenate([mean, spread], axis=-1))
