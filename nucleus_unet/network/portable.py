"""The network for other programs: in float32, whatever precision it was trained in.

Call these functions in a new process.
"""

from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.network import backend
from nucleus_unet.network.ensemble import mean_of, members
from nucleus_unet.network.inference import load_model
from nucleus_unet.network.unet import MirrorPadding2D, build_segmenter
from nucleus_unet.recipe import Recipe


def float32_network(network: Path, recipe: Recipe) -> keras.Model:
    """Build the network of a ``model.keras`` again, so that all its layers compute in float32.

    Parameters
    ----------
    network : Path
        The ``model.keras``.
    recipe : Recipe
        Its recipe.
    """
    model, portable = load_model(network), []
    for member in members(model):
        portable.append(build_segmenter(recipe.network, model.input_shape[1]))
        portable[-1].set_weights(member.get_weights())
    return mean_of(portable) if len(portable) > 1 else portable[0]


def write_saved_model(network: Path, recipe: Recipe, to: Path) -> None:
    """Write a network as a folder in TensorFlow's SavedModel format.

    Parameters
    ----------
    network : Path
        The ``model.keras``.
    recipe : Recipe
        Its resolved recipe.
    to : Path
        The folder to write.
    """
    backend.configure(recipe.training.cpu_threads)
    float32_network(network, recipe).export(to, format="tf_saved_model", verbose=False)


def predict_example(
    network: Path, recipe: Recipe, image: NDArray[np.float32]
) -> tuple[NDArray[np.float32], bool]:
    """Predict one image, and say whether Keras alone can load the network.

    Parameters
    ----------
    network : Path
        The ``model.keras``.
    recipe : Recipe
        Its resolved recipe.
    image : (H, W, 3) float32 in 0..255
        What the network gets.

    Returns
    -------
    tuple of (H, W, C) float32 and bool
        The maps; and True if the ``model.keras`` has no layer of this package and computes in float32.
    """
    backend.configure(recipe.training.cpu_threads)
    maps = float32_network(network, recipe).predict_on_batch(image[None])
    plain = recipe.training.precision == "float32" and not any(
        isinstance(layer, MirrorPadding2D)
        for member in members(load_model(network))
        for layer in member.layers
    )
    return np.asarray(maps)[0], plain
