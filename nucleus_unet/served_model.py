"""The model as MLflow loads it: images in, label images out.

MLflow runs this file to make the model ("models from code"): nothing is pickled.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import mlflow  # noqa: E402 - TensorFlow's chatter is settled by the line above
import numpy as np  # noqa: E402

from nucleus_unet.inference import load_model, segment  # noqa: E402
from nucleus_unet.recipe import Recipe  # noqa: E402


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Segments a batch of images of one size."""

    def load_context(self, context: Any) -> None:
        """Read the recipe and the network from the model's artifacts."""
        artifacts = context.artifacts
        self.recipe = Recipe.model_validate_json(Path(artifacts["recipe"]).read_bytes())
        self.network = load_model(Path(artifacts["network"]))

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB to (N, H, W) int32, 0 background and 1..n one nucleus each."""
        return np.stack(segment(self.network, list(model_input), self.recipe.inference))


mlflow.models.set_model(ServedModel())
