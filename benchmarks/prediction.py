"""Time a prediction of the built-in model in seconds per megapixel, part by part.

    python benchmarks/prediction.py                 # two minutes on two cores
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/prediction.py

The images are drawn. 1030×1349 is little larger than 1024×1344 and must not cost more per pixel.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import draw_synthetic
from nucleus_unet.engine import prepare_environment
from nucleus_unet.network import builtin_model, configure, load_model, resolve
from nucleus_unet.network.builtin import BUILTIN_NETWORK
from nucleus_unet.network.inference import predict_maps
from nucleus_unet.nuclei import separate_nuclei
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import markdown_table

SIZES = ((1024, 1024), (1024, 1344), (1030, 1349), (2048, 2048))
VARIANTS: dict[str, dict[str, Any]] = {
    "one view": {"scales": (1.0,), "flips": False},
    "two scales": {"flips": False},
    "eight flips and turns": {"scales": (1.0,)},
    "both, as in best": {},
}


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """The shorter of two durations."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        work(*arguments)
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    prepare_environment()
    recipe = resolve(builtin_model().recipe)
    configure(recipe.training.cpu_threads)
    model = load_model(BUILTIN_NETWORK)

    def predicted(image: NDArray[np.uint8], chosen: Recipe) -> NDArray[np.float32]:
        [maps] = predict_maps(model, [image], chosen)
        return maps

    rows = []
    for height, width in SIZES:
        drawn, _ = draw_synthetic("fluorescence", np.random.default_rng(0))
        image = np.tile(drawn, (8, 8, 1))[:height, :width]
        cells = []
        for settings in VARIANTS.values():
            inference = recipe.inference.model_copy(update=settings)
            chosen = recipe.model_copy(update={"inference": inference})
            cells.append(seconds(predicted, image, chosen))
        maps = predicted(image, recipe)
        cells.append(seconds(separate_nuclei, maps, recipe.inference))
        megapixels = height * width / 1e6
        rows.append([f"{height}×{width}", *(f"{cell / megapixels:.2f}" for cell in cells)])
    print(markdown_table(["image", *VARIANTS, "nuclei from maps"], rows))


if __name__ == "__main__":
    main()
