"""A training step of best with deterministic kernels beside one with any, step by step in one run.

The choice is global to a process, so each has a process of its own; they take turns.
"""

import argparse
import functools
from statistics import median
from time import perf_counter
from typing import Any

from nucleus_unet.backend import best_precision, configure, usable_cores
from nucleus_unet.isolation import new_process
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
    model.compile(optimizer=keras.optimizers.AdamW(1e-3), loss=nuclei_loss)
    return model


def step(deterministic: bool) -> float:
    """Seconds of one step."""
    import numpy as np

    recipe, rng = load_recipe("best"), np.random.default_rng(0)
    shape = (recipe.training.batch_size, *2 * (recipe.data.image_size,), 3)
    images, maps = rng.integers(0, 256, shape, np.uint8), rng.random(shape, np.float32)
    model = compiled(deterministic)
    start = perf_counter()
    model.train_on_batch(images, maps)  # returns the loss, and so waits for it
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of each; default 20")
    arguments = parser.parse_args()
    processes = {deterministic: new_process() for deterministic in (True, False)}
    seconds: dict[bool, list[float]] = {key: [] for key in processes}
    try:
        for _ in range(WARM_UP + arguments.steps):
            for key, process in processes.items():
                seconds[key].append(process.submit(step, key).result())
    finally:
        for process in processes.values():
            process.shutdown()
    medians = {key: median(times[WARM_UP:]) for key, times in seconds.items()}
    for key, step_s in medians.items():
        print(f"{'deterministic' if key else 'any kernels':16}{step_s:.3f} s a step")
    print(f"deterministic takes {medians[True] / medians[False]:.2f} times as long")


if __name__ == "__main__":
    main()
