"""The model that comes with the package, and what is known about it."""

import functools
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nucleus_unet.data import TrainingImages
from nucleus_unet.recipe import Recipe

BUILTIN = "builtin"
"""What the model is called where a run that trained a model may be named."""
BUILTIN_NETWORK = Path(__file__).parents[1] / "builtin" / "model.keras"
"""The network, with weights in half precision."""
BUILTIN_CARD = BUILTIN_NETWORK.with_name("card.md")
BUILTIN_RECORD = BUILTIN_NETWORK.with_name("record.json")


class BuiltinModel(BaseModel):
    """What is known about the model that comes with the package."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    """Resolved, with the tuned values."""
    network_sha256: str
    data: str
    """Name of the training data."""
    score: float
    """On validation images, of slides that the model was not trained on."""
    images: int
    """Number of validation images."""
    commit: str
    """Revision of the program that trained it."""
    trained_on: TrainingImages
    seen: frozenset[str]
    """Digest of the pixels of each image that it was trained on, as `pixel_digest` gives it."""

    def __str__(self) -> str:
        return (
            f"the built-in model: {self.recipe.name} of revision {self.commit[:7]}, trained on "
            f"{self.data}, score {self.score:.3f} on {self.images} images of other slides"
        )


@functools.cache
def builtin_model() -> BuiltinModel:
    """Read what is known about the built-in model."""
    return BuiltinModel.model_validate_json(BUILTIN_RECORD.read_bytes())
