"""A package is what bioimage.io's own validator accepts."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.network.bioimageio_package import (
    RDF,
    Publication,
    as_scale_range,
    package_description,
    write_examples,
    zip_package,
)
from nucleus_unet.network.export_readme import OPSET, ModelOrigin
from nucleus_unet.recipe import Recipe

spec = pytest.importorskip("bioimageio.spec", reason="needs make install EXTRAS=export")

ORIGIN = ModelOrigin("abc", f"run abc: tiny, trained on {'cells ' * 200}", 40 * "c", "# Card")


def described(folder: Path, recipe: Recipe, author: str = "Ann Example") -> dict[str, Any]:
    """The description of a folder, whose network is not looked at."""
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    maps = np.full((32, 32, 2 if recipe.network.outputs == "borders" else 1), 0.5, np.float32)
    write_examples(folder, image, maps)
    (folder / "README.md").write_text("# Validation")
    (folder / "network.onnx").write_bytes(b"network")
    return package_description(folder, recipe, ORIGIN, Publication("MIT", [author]))


def add_keras(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))


def test_contrast_as_bioimageio_stretches_it() -> None:
    image = np.zeros((1, 1001, 3), np.uint8)  # 1,001 pixels: percentile 0.1 k is the k-th value
    image[0, :, 0] = np.arange(1001) // 10  # 0 to 100; percentile 1 is 1, and 99.7 is 99
    image[0, :, 1] = 7
    found = as_scale_range(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found[0, [0, 10, 500, 990, 1000], 0], [0, 0, 127.5, 255, 255], atol=1e-4
    )
    assert not found[..., 1:].any()


def test_a_package_of_a_network_of_any_size(tmp_path: Path, crops: Recipe) -> None:
    description = described(tmp_path / "a", crops)
    zip_package(tmp_path / "a", description, tmp_path / "a.zip")
    model = spec.load_model_description(tmp_path / "a.zip", perform_io_checks=True)
    assert (model.license, [author.name for author in model.authors]) == ("MIT", ["Ann Example"])
    [image], [maps] = model.inputs, model.outputs
    assert [axis.id for axis in image.axes] == ["batch", "y", "x", "channel"]
    assert (image.axes[1].size.min, image.axes[1].size.step) == (2, 2)
    assert maps.axes[3].channel_names == ["nucleus", "border"]
    assert [step["id"] for step in description["inputs"][0]["preprocessing"]] == [
        *("scale_range", "scale_linear", "clip")
    ]
    assert (model.weights.onnx.opset_version, model.weights.keras_v3) == (OPSET, None)
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        digest = hashlib.sha256(package.read("network.onnx")).hexdigest()
    assert model.weights.onnx.sha256 == digest
    assert [entry.doi for entry in model.cite] == [
        *("10.1007/978-3-319-24574-4_28", "10.1038/s41592-019-0612-7")
    ]
    assert len(model.description) <= 512


def test_a_package_of_a_network_of_a_fixed_size(tmp_path: Path, tiny: Recipe) -> None:
    described(tmp_path / "a", tiny)
    add_keras(tmp_path / "a")
    named = tiny.model_copy(update={"name": "mine/2.0 ü"})
    description = package_description(tmp_path / "a", named, ORIGIN, Publication("MIT", ["Ann"]))
    zip_package(tmp_path / "a", description, tmp_path / "a.zip")
    model = spec.load_model_description(tmp_path / "a.zip", perform_io_checks=True)
    assert model.name == "Cell nuclei U-Net (mine-2-0 -)"
    assert [axis.size for axis in model.inputs[0].axes[1:3]] == [32, 32]
    assert description["inputs"][0]["preprocessing"] == []
    assert str(model.weights.keras_v3.keras_version) == "3.15.1"
    assert model.weights.onnx.parent == "keras_v3"


def test_equal_folders_give_equal_bytes(tmp_path: Path, crops: Recipe) -> None:
    for name in "ab":
        zip_package(tmp_path / name, described(tmp_path / name, crops), tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_package_that_the_validator_refuses_is_not_written(tmp_path: Path, tiny: Recipe) -> None:
    description = described(tmp_path / "a", tiny, author="A/B")
    with pytest.raises(NucleusError) as caught:
        zip_package(tmp_path / "a", description, tmp_path / "a.zip")
    message = str(caught.value)
    assert message.startswith("bioimage.io's validator refuses the package: ")
    assert "authors" in message
    assert message.endswith(" failed. Correct what it names, for example --author.")
    assert "\n" not in message
    assert not (tmp_path / "a.zip").exists()


def test_a_damaged_file_is_noticed(tmp_path: Path, tiny: Recipe) -> None:
    description = described(tmp_path / "a", tiny)
    (tmp_path / "a" / "network.onnx").write_bytes(b"another")
    with pytest.raises(NucleusError, match=r"refuses the package: .*onnx"):
        zip_package(tmp_path / "a", description, tmp_path / "a.zip")
    assert (tmp_path / "a" / RDF).exists()


@pytest.mark.parametrize("licence", ["mine", "GPL", "cc-by-4.0"])
def test_a_licence_without_spdx_identifier(licence: str) -> None:
    Publication("CC-BY-4.0", ["Ann"]).require_licence()
    with pytest.raises(NucleusError) as caught:
        Publication(licence, ["Ann"]).require_licence()
    assert str(caught.value) == (
        f"--license {licence}: not an SPDX identifier. Choose one from https://spdx.org/licenses, for "
        "example CC-BY-4.0 or MIT."
    )
