"""The model as MLflow loads it: images in, label images out.

MLflow runs this file to make the model ("models from code"): nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel

from nucleus_unet.network.inference import load_model, segment_images
from nucleus_unet.recipe import Recipe


class ServedModel(PythonModel):
    """Segments a batch of images of one size."""

    def load_context(self, context: Any) -> None:
        """Read the recipe and the network from the model's artifacts."""
        artifacts = context.artifacts
        self.recipe = Recipe.model_validate_json(Path(artifacts["recipe"]).read_bytes())
        self.network = load_model(Path(artifacts["network"]))

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB to (N, H, W) int32, 0 background and 1..n one nucleus each."""
        return np.stack(segment_images(self.network, list(model_input), self.recipe))


mlflow.models.set_model(ServedModel())
