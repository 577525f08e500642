"""Exported networks find the same nuclei as the program."""

import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data import draw_synthetic
from nucleus_unet.errors import NucleusError
from nucleus_unet.network.bioimageio_package import Publication, as_scale_range
from nucleus_unet.network.builtin import BUILTIN_NETWORK, builtin_model
from nucleus_unet.network.export_readme import ModelOrigin
from nucleus_unet.network.exporting import PACKAGE, export_model, require_export
from nucleus_unet.network.inference import load_model, segment_images

NEEDS = "needs make install EXTRAS=export"
ORIGIN = ModelOrigin("builtin", "the built-in model", 40 * "c", "# Card")
ANN = Publication("CC0-1.0", ["Ann Example"])


class Exported:
    """An ONNX file in the place of a Keras model: the program does the steps before and after it."""

    def __init__(self, content: bytes) -> None:
        runtime = pytest.importorskip("onnxruntime", reason=NEEDS)
        self.session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.output_shape = self.session.get_outputs()[0].shape

    def predict_on_batch(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        [maps] = self.session.run(["maps"], {"image": batch.astype(np.float32)})
        return maps


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as a package for bioimage.io."""
    for library in ("onnx", "bioimageio.spec"):
        pytest.importorskip(library, reason=NEEDS)
    folder = tmp_path_factory.mktemp("package") / "out"
    [path] = export_model(builtin_model().recipe, BUILTIN_NETWORK, ORIGIN, folder, ANN)
    assert path == folder / PACKAGE
    return path


def content(package: Path, name: str) -> bytes:
    with zipfile.ZipFile(package) as archive:
        return archive.read(name)


def tensor(package: Path, name: str) -> NDArray[np.float32]:
    with zipfile.ZipFile(package) as archive, archive.open(name) as file:
        return np.load(file)


@pytest.mark.parametrize(("kind", "seed"), [("fluorescence", 3), ("stained", 1)])
def test_onnxruntime_finds_the_same_nuclei(package: Path, kind: str, seed: int) -> None:
    image, _ = draw_synthetic(kind, np.random.default_rng(seed))
    recipe = builtin_model().recipe
    exported = cast(Any, Exported(content(package, "network.onnx")))
    [labels] = segment_images(exported, [image], recipe)
    [expected] = segment_images(load_model(BUILTIN_NETWORK), [image], recipe)
    assert labels.max() > 5
    np.testing.assert_array_equal(labels, expected)


def test_the_test_tensors_of_a_package_belong_together(package: Path) -> None:
    spec = pytest.importorskip("bioimageio.spec", reason=NEEDS)
    model = spec.load_model_description(package, perform_io_checks=True)
    raw = tensor(package, "test_input.npy")
    seen = as_scale_range(raw[0].astype(np.uint8))[None]
    maps = Exported(content(package, "network.onnx")).predict_on_batch(seen)
    np.testing.assert_allclose(maps, tensor(package, "test_output.npy"), atol=1e-4)
    assert model.config.nucleus_unet["run"] == "builtin"
    assert content(package, "model.keras") == BUILTIN_NETWORK.read_bytes()
    text = content(package, "README.md").decode()
    assert "`model.keras` is the same for Keras 3. The steps in `rdf.yaml` stretch" in text


def test_the_same_model_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    written = export_model(
        builtin_model().recipe, BUILTIN_NETWORK, ORIGIN, tmp_path / "out", "onnx"
    )
    assert [path.name for path in written] == ["README.md", "network.onnx"]
    assert written[1].read_bytes() == content(package, "network.onnx")
    assert "`network.onnx` is an ONNX file of opset 13" in written[0].read_text()


@pytest.mark.slow
def test_a_saved_model_gives_the_same_maps(tmp_path: Path) -> None:
    import tensorflow as tf

    recipe, out = builtin_model().recipe, tmp_path / "out"
    written = export_model(recipe, BUILTIN_NETWORK, ORIGIN, out, "savedmodel")
    assert [path.name for path in written] == ["README.md", "saved_model"]
    batch = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3)).astype(np.float32)
    serve = tf.saved_model.load(str(written[1])).signatures["serving_default"]
    maps = serve(image=tf.constant(batch))["output_0"].numpy()
    expected = np.asarray(load_model(BUILTIN_NETWORK).predict_on_batch(batch))
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NucleusError) as caught:
        export_model(builtin_model().recipe, BUILTIN_NETWORK, ORIGIN, tmp_path, "onnx")
    assert str(caught.value) == (
        f"{tmp_path}: the folder is not empty. Choose another folder with --out."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("licence", "authors"), [(None, ["Ann"]), ("MIT", []), ("", [""])])
def test_bioimageio_needs_a_licence_and_an_author(licence: str | None, authors: list[str]) -> None:
    with pytest.raises(NucleusError) as caught:
        require_export("bioimageio", licence, authors)
    assert str(caught.value) == (
        "--to bioimageio needs --license and --author. Give the SPDX identifier of the licence under "
        "which you publish the model, for example CC-BY-4.0, and your name."
    )


@pytest.mark.parametrize(("licence", "authors"), [(None, ["Ann"]), ("MIT", [])])
def test_other_formats_have_no_licence_and_no_author(
    licence: str | None, authors: list[str]
) -> None:
    with pytest.raises(NucleusError) as caught:
        require_export("onnx", licence, authors)
    assert str(caught.value) == (
        "--license and --author have no use with --to onnx. Leave them out, or choose --to bioimageio."
    )


@pytest.mark.parametrize(
    ("form", "library"),
    [("onnx", "onnx"), ("bioimageio", "onnx"), ("bioimageio", "bioimageio")],
)
def test_without_the_extra_a_message_names_the_command_that_installs_it(
    form: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "bioimageio":
        pytest.importorskip("onnx", reason=NEEDS)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "bioimageio.spec", raising=False)
    options = ("MIT", ["Ann"]) if form == "bioimageio" else (None, [])
    with pytest.raises(NucleusError) as caught:
        require_export(form, *options)
    missing = "bioimageio.spec" if library == "bioimageio" else library
    assert str(caught.value) == (
        f"--to {form}: {missing} is not installed. Install it with: make install EXTRAS=export"
    )


def test_a_saved_model_needs_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require_export("savedmodel", None, []) == "savedmodel"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(NucleusError) as caught:
        require_export("savedmodel", None, [])
    assert str(caught.value) == (
        "KERAS_BACKEND=jax cannot write a SavedModel of TensorFlow. Unset KERAS_BACKEND."
    )


def test_what_can_begin() -> None:
    for library in ("onnx", "bioimageio.spec"):
        pytest.importorskip(library, reason=NEEDS)
    assert require_export("onnx", None, []) == "onnx"
    assert require_export("bioimageio", "MIT", ["Ann"]) == Publication("MIT", ["Ann"])
