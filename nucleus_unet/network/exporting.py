"""Write a trained network for other programs; this module does not load Keras."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import draw_synthetic
from nucleus_unet.engine import active_switches, run_in_worker
from nucleus_unet.errors import NucleusError
from nucleus_unet.extras import import_extra
from nucleus_unet.files import new_folder, sha256_file, writing
from nucleus_unet.network.augment import resize_image
from nucleus_unet.network.backend import resolve
from nucleus_unet.network.bioimageio_package import (
    Publication,
    as_scale_range,
    package_description,
    write_examples,
    zip_package,
)
from nucleus_unet.network.export_readme import OPSET, ModelOrigin, export_readme
from nucleus_unet.recipe import Recipe

ExportFormat = Literal["onnx", "savedmodel", "bioimageio"]
"""ONNX, TensorFlow's SavedModel, or a package for bioimage.io that holds the ONNX file."""
LIBRARIES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx",),
    "savedmodel": (),
    "bioimageio": ("onnx", "bioimageio.spec"),
}
"""What each format needs of the extra."""
ExportTarget = Literal["onnx", "savedmodel"] | Publication
"""A format, with what bioimage.io asks."""
PACKAGE = "nuclei.bioimageio.zip"
TEST_IMAGE_PX = 256
"""Side of the test image in a package, for networks that take any size."""

_OTHER_FOLDER = "Choose another folder with --out."
_ONNX = f"`network.onnx` is an ONNX file of opset {OPSET}, with the input `image` and the output `maps`."
_SAVED_MODEL = (
    "`saved_model` is a SavedModel of TensorFlow. Its signature `serving_default` has the input "
    "`image` and the output `output_0`."
)
_RDF_STEPS = (
    "The steps in `rdf.yaml` stretch the contrast in nearly the same way as the steps below, but "
    "bioimage.io has no step that inverts a bright background."
)


def require_export(form: ExportFormat, licence: str | None, authors: Sequence[str]) -> ExportTarget:
    """Make sure that an export can begin.

    Parameters
    ----------
    form : ExportFormat
    licence : str, optional
        SPDX identifier.
    authors : sequence of str

    Returns
    -------
    ExportTarget
        For `export_model`.

    Raises
    ------
    NucleusError
        If the extra is not installed, if licence or authors are missing, wrong or not used, or if
        KERAS_BACKEND cannot write the format.
    """
    target: ExportTarget
    if form == "bioimageio":
        if not licence or not authors:
            raise NucleusError(
                "--to bioimageio needs --license and --author. Give the SPDX identifier of the licence "
                "under which you publish the model, for example CC-BY-4.0, and your name."
            )
        target = Publication(licence, authors)
    elif licence or authors:
        raise NucleusError(
            f"--license and --author have no use with --to {form}. Leave them out, or choose "
            "--to bioimageio."
        )
    else:
        target = form
    name = active_switches()["KERAS_BACKEND"]
    if form == "savedmodel" and name != "tensorflow":
        raise NucleusError(
            f"KERAS_BACKEND={name} cannot write a SavedModel of TensorFlow. Unset KERAS_BACKEND."
        )
    for library in LIBRARIES[form]:
        import_extra(library, "export", f"--to {form}")
    if isinstance(target, Publication):
        target.require_licence()
    return target


def export_model(
    recipe: Recipe, network: Path, origin: ModelOrigin, to: Path, target: ExportTarget
) -> list[Path]:
    """Write a network and a description of the steps before and after it.

    Parameters
    ----------
    recipe : Recipe
        The recipe of the model, with the tuned values.
    network : Path
        The ``model.keras``.
    origin : ModelOrigin
    to : Path
        The folder, which must be empty or not exist. It is written completely or not at all.
    target : ExportTarget
        As `require_export` returns it.

    Returns
    -------
    list of Path
        What was written, in the folder: ``network.onnx`` or ``saved_model`` and ``README.md``, or
        `PACKAGE`, which holds its own.

    Raises
    ------
    NucleusError
        If the folder is not empty or cannot be written, or bioimage.io's validator refuses the package.

    Notes
    -----
    Keras runs in a worker process. The network computes in float32, whatever precision it was trained
    in. Equal models give equal bytes, except with ``savedmodel``, which TensorFlow writes differently
    each time.
    """
    recipe = resolve(recipe)
    with new_folder(to, _OTHER_FOLDER) as folder, writing(to, _OTHER_FOLDER):
        if isinstance(target, Publication):
            with TemporaryDirectory(dir=folder) as content:
                _write_package(recipe, network, origin, Path(content))
                description = package_description(Path(content), recipe, origin, target)
                zip_package(Path(content), description, folder / PACKAGE)
        elif target == "onnx":
            _in_worker("onnx_graph:write_onnx", network, recipe, folder / "network.onnx")
            _write_readme(recipe, network, origin, folder, _ONNX)
        else:
            _in_worker("portable:write_saved_model", network, recipe, folder / "saved_model")
            _write_readme(recipe, network, origin, folder, _SAVED_MODEL)
    return sorted(to.iterdir())


def _write_package(recipe: Recipe, network: Path, origin: ModelOrigin, folder: Path) -> None:
    """Write the files of a package, without their description."""
    _in_worker("onnx_graph:write_onnx", network, recipe, folder / "network.onnx")
    image = _example(recipe)
    seen = as_scale_range(image) if recipe.data.normalize else image.astype(np.float32)
    maps, plain = _in_worker("portable:predict_example", network, recipe, seen)
    write_examples(folder, image, maps)
    files = _ONNX
    if plain:
        shutil.copyfile(network, folder / "model.keras")
        files += " `model.keras` is the same for Keras 3."
    if recipe.data.normalize:
        files += f" {_RDF_STEPS}"
    _write_readme(recipe, network, origin, folder, files)


def _example(recipe: Recipe) -> NDArray[np.uint8]:
    """A synthetic image of a size that the network takes."""
    image, _ = draw_synthetic("fluorescence", np.random.default_rng(0))
    if recipe.data.framing == "resize":
        return resize_image(image, recipe.data.image_size)
    return image[:TEST_IMAGE_PX, :TEST_IMAGE_PX]


def _write_readme(
    recipe: Recipe, network: Path, origin: ModelOrigin, folder: Path, files: str
) -> None:
    text = export_readme(recipe, origin, sha256_file(network), files)
    (folder / "README.md").write_text(text)


def _in_worker(function: str, network: Path, recipe: Recipe, *args: Any) -> Any:
    threads = recipe.training.cpu_threads
    return run_in_worker(threads, f"nucleus_unet.network.{function}", network, recipe, *args)
