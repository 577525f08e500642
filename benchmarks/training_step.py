"""Compare the time of a training step of "seed" with that of the original notebook's network.

- The notebook's network is hard-coded and runs in float32. It has `same` convolutions here, because
  its own `valid` ones cannot be built.
- Our network runs with `same` and with `valid` convolutions, in float32 and in mixed_bfloat16.

A dtype policy is global to a process, so each precision runs in its own process. The processes take
turns, one step at a time. Loss and optimizer are those of the recipe "seed". Metrics and loading are
not measured.
"""

import argparse
import functools
from typing import Any

from turns import step_seconds, timed

from nucleus_unet.network import configure, usable_cores
from nucleus_unet.recipe import load_recipe

WARM_UP = 1
"""First steps that are not counted, because they compile."""

PLAIN = ("float32", "notebook")
WAYS = [PLAIN, *((p, c) for p in ("float32", "mixed_bfloat16") for c in ("same", "valid"))]


def plain_unet(size: int) -> Any:
    """The notebook's `Unet`, with `same` convolutions."""
    from keras import layers

    def convolution(filters: int) -> Any:
        return layers.Conv2D(
            filters, 3, activation="tanh", kernel_initializer="he_normal", padding="same"
        )

    def double(x: Any, filters: int, dropout: float) -> Any:
        return convolution(filters)(layers.Dropout(dropout)(convolution(filters)(x)))

    def up(x: Any, skip: Any, filters: int) -> Any:
        x = layers.Conv2DTranspose(filters, 2, strides=2, padding="same")(x)
        return layers.concatenate([x, skip])

    inputs = layers.Input((size, size, 3))
    s = layers.Lambda(lambda x: x / 255)(inputs)
    c1 = double(s, 16, 0.1)
    c2 = double(layers.MaxPooling2D(2)(c1), 32, 0.1)
    c3 = double(layers.MaxPooling2D(2)(c2), 64, 0.2)
    c4 = double(layers.MaxPooling2D(2)(c3), 128, 0.2)
    c5 = double(layers.MaxPooling2D(2)(c4), 256, 0.3)
    c6 = double(up(c5, c4, 128), 128, 0.2)
    c7 = double(up(c6, c3, 64), 64, 0.2)
    c8 = double(up(c7, c2, 32), 32, 0.1)
    c9 = double(up(c8, c1, 16), 16, 0.1)
    return inputs, layers.Conv2D(1, 1, activation="sigmoid")(c9)


@functools.cache
def compiled(precision: str, convolutions: str) -> Any:
    """Compile a model; the first call configures the process."""
    configure(usable_cores(), seed=10, precision=precision)
    import keras

    from nucleus_unet.network import bce_dice_loss, build_segmenter

    if convolutions == "notebook":
        model = keras.Model(*plain_unet(256))
    else:
        recipe = load_recipe("seed", [f"network.padding={convolutions}"])
        model = build_segmenter(recipe.network, recipe.data.image_size)
    if (parameters := model.count_params()) != 1_941_105:
        raise SystemExit(f"{convolutions}: {parameters} parameters instead of 1,941,105")
    model.compile(optimizer=keras.optimizers.SGD(), loss=bce_dice_loss)
    return model


def step(batch_size: int, precision: str, convolutions: str) -> float:
    """Measure one step, in seconds."""
    import numpy as np

    model, rng = compiled(precision, convolutions), np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, 256, 256, 3), np.uint8)
    masks = rng.integers(0, 2, (batch_size, 256, 256, 1)).astype(np.float32)
    return timed(model, images, masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="steps of each network; default 5")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a batch; default 32")
    arguments = parser.parse_args()
    one = functools.partial(step, arguments.batch_size)
    medians = step_seconds(one, WAYS, arguments.steps, WARM_UP)
    print(f"{'precision':16}{'network':12}{'s per step':>12}{'images/s':>10}{'ratio':>8}")
    for way, step_s in medians.items():
        speed, ratio = arguments.batch_size / step_s, medians[PLAIN] / step_s
        print(f"{way[0]:16}{way[1]:12}{step_s:>12.3f}{speed:>10.1f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
