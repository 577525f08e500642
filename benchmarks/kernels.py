"""A training step of best by the kernels that TensorFlow may take, one of each in turn in one run.

The choice is global to a process, so each has a process of its own.
"""

import argparse
import functools
import os
from typing import Any

from turns import step_seconds, timed

from nucleus_unet.network.backend import best_precision, configure, usable_cores
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.recipe import load_recipe

WAYS = ("deterministic", "any", "without oneDNN")
WARM_UP = 2
"""Steps of each that are not counted: they compile."""


@functools.cache
def compiled(way: str) -> Any:
    """The compiled model; the first call sets the process up."""
    if way == "without oneDNN":
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # read when TensorFlow is imported
    recipe = load_recipe("best")
    configure(usable_cores(), 10, best_precision(), deterministic=way != "any")
    import keras

    from nucleus_unet.network.losses import maps_loss
    from nucleus_unet.network.unet import build_segmenter

    model = build_segmenter(recipe.network, None)
    model.compile(keras.optimizers.Adam(recipe.training.learning_rate), maps_loss)
    return model


def step(way: str) -> float:
    """Seconds of one step."""
    import numpy as np

    recipe, rng = load_recipe("best"), np.random.default_rng(0)
    shape = (recipe.training.batch_size, *2 * (recipe.data.image_size,))
    images = rng.integers(0, 256, (*shape, 3), np.uint8)
    maps = rng.random((*shape, CHANNELS[recipe.network.outputs]), np.float32)
    return timed(compiled(way), images, maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of each; default 20")
    medians = step_seconds(step, [(way,) for way in WAYS], parser.parse_args().steps, WARM_UP)
    for (way,), step_s in medians.items():
        ratio = step_s / medians[WAYS[0],]
        print(f"{way:16}{step_s:.3f} s a step, {ratio:.2f} times the deterministic one's")


if __name__ == "__main__":
    main()
