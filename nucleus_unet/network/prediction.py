"""Probability maps on disk, predicted by a worker process: this module does not load Keras."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nucleus_unet.engine import run_in_worker
from nucleus_unet.files import sha256_file
from nucleus_unet.network.backend import device_kind
from nucleus_unet.recipe import Recipe

KERAS_LIBRARIES = ("keras", "tensorflow", "numpy", "opencv-python-headless")
"""Distributions whose version changes the bits of a training or of a prediction."""
AFTER_PREDICTION = {
    *(
        "cutoff",
        "seed_cutoff",
        "min_area_px",
        "min_confidence",
        "tune",
        "fit_scale",
    ),
    "grow_px",
}
"""Keys of the recipe's ``inference`` that do not change the maps."""


def write_maps(
    recipe: Recipe,
    network: Path,
    images: Mapping[str, Path],
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Predict prepared images in a worker process and save their maps, except those that are there.

    Parameters
    ----------
    recipe : Recipe
        Resolved.
    network : Path
        A ``model.keras``.
    images : mapping of str to Path
        Image id to ``.npy`` file, (H, W, 3) uint8.
    folder : Path
        Where ``<id>.npy`` is written for each image, as `predict_maps` returns it.
    progress : callable
        Called with (done, total), in images.

    Returns
    -------
    list of Path
        The files, in the order of `images`.
    """
    saved = [folder / f"{id_}.npy" for id_ in images]
    for left in folder.rglob(".*"):  # a killed process left it
        left.unlink()
    missing = {
        path: image for path, image in zip(saved, images.values(), strict=True) if not path.exists()
    }
    run_in_worker(
        recipe.training.cpu_threads,
        "nucleus_unet.network.inference:predict_to_files",
        *(network, recipe, [*missing.values()], [*missing]),
        meanwhile=lambda: progress(sum(path.exists() for path in saved), len(saved)),
    )
    return saved


def prediction_key(recipe: Recipe, network: Path) -> dict[str, Any]:
    """What maps depend on, apart from the images: weights, recipe, threads and device."""
    return {
        "model": sha256_file(network),
        "data": recipe.data.model_dump(include={"framing", "normalize"}),
        "inference": recipe.inference.model_dump(exclude=AFTER_PREDICTION),
        "threads": recipe.training.cpu_threads,
        "device": device_kind(),
    }
