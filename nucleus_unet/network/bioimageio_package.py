"""A package for bioimage.io (https://bioimage.io): the network, its description and a test image."""

import json
import re
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file
from nucleus_unet.network.export_readme import CHANNEL_NAMES, OPSET, ModelOrigin
from nucleus_unet.network.normalization import PERCENTILES
from nucleus_unet.recipe import Recipe

FORMAT_VERSION = "0.5.14"
"""Version of the description's format (https://github.com/bioimage-io/spec-bioimage-io)."""
RDF = "rdf.yaml"
"""The description; its name is fixed."""
EPS = 1e-6
"""What bioimage.io's ``scale_range`` adds to a range by default, so that it is not 0."""
CITATIONS = (
    (
        "The network: Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image "
        "Segmentation, MICCAI 2015",
        "10.1007/978-3-319-24574-4_28",
    ),
    (
        "The score, and the data set BBBC038v1: Caicedo et al., Nucleus segmentation across imaging "
        "experiments: the 2018 Data Science Bowl, Nature Methods 2019",
        "10.1038/s41592-019-0612-7",
    ),
)
"""Text and DOI of each citation."""
TAGS = ("2d", "nuclei", "cells", "unet", "instance-segmentation", "fluorescence-light-microscopy")
_LONGEST_NAME, _LONGEST_DESCRIPTION = 64, 512  # longer ones give a warning


@dataclass(frozen=True)
class Publication:
    """What bioimage.io asks and only the publisher knows."""

    licence: str
    """SPDX identifier of the licence of the weights."""
    authors: Sequence[str]

    def require_licence(self) -> None:
        """Make sure that the licence has an SPDX identifier.

        Raises
        ------
        NucleusError
            If it has none.
        """
        from bioimageio.spec.generic.v0_3 import LicenseId

        try:
            LicenseId(self.licence)
        except ValueError:
            raise NucleusError(
                f"--license {self.licence}: not an SPDX identifier. Choose one from "
                "https://spdx.org/licenses, for example CC-BY-4.0 or MIT."
            ) from None


def as_scale_range(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stretch the contrast as the steps of the description do, which are all that bioimage.io has.

    They differ from `normalizing_table`: they do not round, and do not invert a bright background.

    Parameters
    ----------
    image : (H, W, 3) uint8

    Returns
    -------
    (H, W, 3) float32 in 0..255
    """
    low, high = np.percentile(image.astype(np.float32), PERCENTILES, axis=(0, 1))
    return np.clip(255 * (image - low) / (high - low + EPS), 0, 255).astype(np.float32)


def write_examples(folder: Path, image: NDArray[np.uint8], maps: NDArray[np.float32]) -> None:
    """Write the test tensors, the samples and the cover of a package.

    Parameters
    ----------
    folder : Path
    image : (H, W, 3) uint8
        The test image, before any step.
    maps : (H, W, C) float32 in [0, 1]
        What the network makes of it.
    """
    np.save(folder / "test_input.npy", image[None].astype(np.float32))
    np.save(folder / "test_output.npy", maps[None])
    tifffile.imwrite(folder / "sample_output.tif", maps)
    nucleus = np.rint(255 * maps[..., :1]).astype(np.uint8)
    cover = np.concatenate([image, np.repeat(nucleus, 3, axis=2)], axis=1)
    for name, pixels in (("sample_input.png", image), ("cover.png", cover)):
        (folder / name).write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())


def package_description(
    folder: Path, recipe: Recipe, origin: ModelOrigin, publication: Publication
) -> dict[str, Any]:
    """Describe a package, as the file ``rdf.yaml`` of bioimage.io does.

    Parameters
    ----------
    folder : Path
        With ``README.md``, ``network.onnx``, the files of `write_examples`, and perhaps ``model.keras``.
    recipe : Recipe
        Resolved, with the tuned values.
    origin : ModelOrigin
    publication : Publication
    """
    name = re.sub(r"[^A-Za-z0-9_+() -]", "-", f"Cell nuclei U-Net ({recipe.name})")
    description = (
        f"Finds cell nuclei in microscope images. This is {origin.description}. Its maps become nuclei "
        "by the steps in README.md."
    )
    image, maps = _tensors(folder, recipe)
    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": name[:_LONGEST_NAME],
        "description": textwrap.shorten(description, _LONGEST_DESCRIPTION, placeholder=" ..."),
        "license": publication.licence,
        "authors": [{"name": author} for author in publication.authors],
        "cite": [{"text": text, "doi": doi} for text, doi in CITATIONS],
        "tags": list(TAGS),
        "documentation": _file(folder, "README.md"),
        "covers": [_file(folder, "cover.png")],
        "inputs": [image],
        "outputs": [maps],
        "weights": _weights(folder),
        "config": {
            "nucleus_unet": {
                "run": origin.run_id,
                "commit": origin.commit,
                "recipe": recipe.model_dump(mode="json"),
            }
        },
    }


def zip_package(folder: Path, description: Mapping[str, Any], to: Path) -> None:
    """Add the description to a folder, validate both with bioimage.io's own validator, and zip them.

    Parameters
    ----------
    folder : Path
        As for `package_description`.
    description : mapping
        As `package_description` returns it.
    to : Path
        The zip. Equal files give equal bytes.

    Raises
    ------
    NucleusError
        If the package is not valid. The zip is then not written.
    """
    from bioimageio.spec import InvalidDescr, load_description, save_bioimageio_yaml_only

    save_bioimageio_yaml_only(dict(description), folder / RDF)
    checked = load_description(folder / RDF, perform_io_checks=True)
    if isinstance(checked, InvalidDescr):
        why = textwrap.shorten(str(checked.get_reason()), 300, placeholder=" ...").rstrip(".")
        raise NucleusError(
            f"bioimage.io's validator refuses the package: {why}. Correct what it names, "
            "for example --author."
        )
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as package:
        for path in sorted(folder.iterdir()):
            # Without a date.
            package.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def _tensors(folder: Path, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptions of the input and of the output."""
    step = recipe.network.step_px
    side = recipe.data.image_size
    resized = recipe.data.framing == "resize"
    spaces = [
        {"type": "space", "id": axis, "size": side if resized else {"min": step, "step": step}}
        for axis in "yx"
    ]
    channels = {"type": "channel", "channel_names": ["red", "green", "blue"]}
    image = {
        "id": "image",
        "description": "RGB, values 0 to 255; see README.md for the steps before",
        "axes": [{"type": "batch"}, *spaces, channels],
        "data": {"type": "float32", "range": [0, 255]},
        "test_tensor": _file(folder, "test_input.npy"),
        "sample_tensor": _file(folder, "sample_input.png"),
        "preprocessing": _preprocessing() if recipe.data.normalize else [],
    }
    same = [
        {"type": "space", "id": axis, "size": {"tensor_id": "image", "axis_id": axis}}
        for axis in "yx"
    ]
    channels = {"type": "channel", "channel_names": list(CHANNEL_NAMES[recipe.network.outputs])}
    maps = {
        "id": "maps",
        "description": "Probabilities; README.md says how they become nuclei",
        "axes": [{"type": "batch"}, *same, channels],
        "data": {"type": "float32", "range": [0, 1]},
        "test_tensor": _file(folder, "test_output.npy"),
        "sample_tensor": _file(folder, "sample_output.tif"),
    }
    return image, maps


def _preprocessing() -> list[dict[str, Any]]:
    """The steps of `as_scale_range`."""
    low, high = PERCENTILES
    limits = {"min_percentile": low, "max_percentile": high}
    return [
        {"id": "scale_range", "kwargs": {"axes": ["y", "x"], **limits}},
        {"id": "scale_linear", "kwargs": {"gain": 255.0, "offset": 0.0}},
        {"id": "clip", "kwargs": {"min": 0.0, "max": 255.0}},
    ]


def _weights(folder: Path) -> dict[str, Any]:
    onnx = _file(folder, "network.onnx") | {"opset_version": OPSET}
    original = folder / "model.keras"
    if not original.exists():
        return {"onnx": onnx}
    with zipfile.ZipFile(original) as archive:
        made = json.loads(archive.read("metadata.json"))
    keras = _file(folder, original.name) | {
        "keras_version": made["keras_version"],
        "backend": ["tensorflow", metadata.version("tensorflow")],
    }
    return {"keras_v3": keras, "onnx": onnx | {"parent": "keras_v3"}}


def _file(folder: Path, name: str) -> dict[str, Any]:
    return {"source": name, "sha256": sha256_file(folder / name)}
