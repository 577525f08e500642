from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nucleus_unet.recipe import Recipe


@pytest.fixture(scope="module")
def served(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of an untrained network, with the artifacts that MLflow gives it."""
    from nucleus_unet.network.unet import build_segmenter
    from nucleus_unet.runs.served_model import ServedModel

    folder = tmp_path_factory.mktemp("model")
    build_segmenter(tiny.network, tiny.data.image_size).save(folder / "model.keras")
    (folder / "recipe.json").write_text(tiny.model_dump_json())
    model = ServedModel()
    artifacts = {"network": f"{folder}/model.keras", "recipe": f"{folder}/recipe.json"}
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return model


def test_it_reads_recipe_and_network_from_its_artifacts(served: Any, tiny: Recipe) -> None:
    assert served.recipe == tiny
    assert served.network.input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_images_in_label_images_of_their_size_out(served: Any, size: tuple[int, int]) -> None:
    from nucleus_unet.network.inference import segment_images

    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    labels = served.predict(None, images)
    assert (labels.shape, labels.dtype) == ((3, *size), np.int32)
    assert labels.min() >= 0
    expected = segment_images(served.network, list(images), served.recipe)
    np.testing.assert_array_equal(labels, expected)
