"""A training step of best with deterministic kernels beside one with any, step by step in one run.

The choice is global to a process, so each has a process of its own; they take turns.
"""

import argparse
import functools
from typing import Any

from turns import step_seconds, timed

from nucleus_unet.backend import best_precision, configure, usable_cores
from nucleus_unet.recipe import load_recipe

WARM_UP = 2
"""Steps of each that are not counted: they compile."""


@functools.cache
def compiled(deterministic: bool) -> Any:
    """The compiled model; the first call sets the process up."""
    recipe = load_recipe("best")
    configure(usable_cores(), 10, best_precision(), deterministic=deterministic)
    import keras

    from nucleus_unet.losses import nuclei_loss
    from nucleus_unet.unet import build_segmenter

    model = build_segmenter(recipe.network, None)
    chosen = recipe.training
    optimizer = keras.optimizers.AdamW(chosen.learning_rate, weight_decay=chosen.weight_decay)
    model.compile(optimizer=optimizer, loss=nuclei_loss)
    return model


def step(deterministic: bool) -> float:
    """Seconds of one step."""
    import numpy as np

    recipe, rng = load_recipe("best"), np.random.default_rng(0)
    shape = (recipe.training.batch_size, *2 * (recipe.data.image_size,), 3)
    images, maps = rng.integers(0, 256, shape, np.uint8), rng.random(shape, np.float32)
    return timed(compiled(deterministic), images, maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of each; default 20")
    medians = step_seconds(step, [(True,), (False,)], parser.parse_args().steps, WARM_UP)
    for (deterministic,), step_s in medians.items():
        print(f"{'deterministic' if deterministic else 'any kernels':16}{step_s:.3f} s a step")
    print(f"deterministic takes {medians[True,] / medians[False,]:.2f} times as long")


if __name__ == "__main__":
    main()
