"""Compare the time of a training step of "best" with different kernels of TensorFlow.

The choice of kernels is global to a process, so each choice runs in its own process. The processes take
turns, one step at a time.
"""

import argparse
import functools
import os
from typing import Any

from turns import step_seconds, timed

from nucleus_unet.network import CHANNELS, best_precision, configure, usable_cores
from nucleus_unet.recipe import load_recipe

WAYS = ("deterministic", "any", "without oneDNN")
WARM_UP = 2
"""First steps that are not counted, because they compile."""


@functools.cache
def compiled(way: str) -> Any:
    """Compile the model; the first call configures the process."""
    if way == "without oneDNN":
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # TensorFlow reads this when it is imported
    recipe = load_recipe("best")
    configure(usable_cores(), 10, best_precision(), deterministic=way != "any")
    import keras

    from nucleus_unet.network import build_segmenter, maps_loss

    model = build_segmenter(recipe.network, None)
    model.compile(keras.optimizers.Adam(recipe.training.learning_rate), maps_loss)
    return model


def step(way: str) -> float:
    """Measure one step, in seconds."""
    import numpy as np

    recipe, rng = load_recipe("best"), np.random.default_rng(0)
    shape = (recipe.training.batch_size, *2 * (recipe.data.image_size,))
    images = rng.integers(0, 256, (*shape, 3), np.uint8)
    maps = rng.random((*shape, CHANNELS[recipe.network.outputs]), np.float32)
    return timed(compiled(way), images, maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of each choice; default 20")
    medians = step_seconds(step, [(way,) for way in WAYS], parser.parse_args().steps, WARM_UP)
    for (way,), step_s in medians.items():
        ratio = step_s / medians[WAYS[0],]
        print(f"{way:16}{step_s:.3f} s per step, {ratio:.2f} times the deterministic step")


if __name__ == "__main__":
    main()
