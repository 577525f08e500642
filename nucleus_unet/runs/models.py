"""Trained models in MLflow, logged from code: nothing is pickled."""

import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from nucleus_unet.files import sha256_file
from nucleus_unet.network import backend
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.store import PatientClient, patiently
from nucleus_unet.runs.tracking import Run, log_tags

MODEL_ARTIFACT = "model"
MODEL_FILES = "model.files"
"""Tag of a run: the SHA-256 of each file of its model, by name, as JSON."""
MODEL_ID = "model.id"
"""Tag of a run: the id of its model in MLflow."""
REQUIREMENTS = (
    *("mlflow", "keras", "tensorflow", "numpy", "opencv-python-headless"),
    *("scikit-image", "scipy", "pydantic"),
)
"""Distributions that the logged model needs to be loaded elsewhere, at the versions that made it."""
EXAMPLE_PX = 64
"""Side of the example image that is logged with a model."""


def log_model(run: Run, recipe: Recipe, network: Path, example: Path) -> str:
    """Log a model with signature, parameters, an example image and pinned requirements.

    Call this in a worker process, because MLflow loads the model to check it.

    Parameters
    ----------
    run : Run
        A run that is open. If an earlier attempt of it logged the same model, nothing is logged.
    recipe : Recipe
        Resolved, with the tuned values.
    network : Path
        The ``model.keras``.
    example : Path
        A prepared image, ``.npy``, (H, W, 3) uint8. Its upper left corner becomes the example.

    Returns
    -------
    str
        The model's id in MLflow.
    """
    backend.configure(recipe.training.cpu_threads)
    with tempfile.TemporaryDirectory() as folder:
        # Without the built-in model, which the code of a model does not need.
        without = shutil.ignore_patterns("builtin", "__pycache__")
        package = shutil.copytree(
            Path(__file__).parents[1], Path(folder) / "nucleus_unet", ignore=without
        )
        recipe_file = Path(folder) / "recipe.json"
        recipe_file.write_text(recipe.model_dump_json(indent=1))
        digests = json.dumps({path.name: sha256_file(path) for path in (recipe_file, network)})
        tags = PatientClient().get_run(run.id).data.tags
        if tags.get(MODEL_FILES) == digests:
            return str(tags[MODEL_ID])
        mlflow.start_run(run_id=run.id)
        try:
            logged = patiently(
                mlflow.pyfunc.log_model,
                name=MODEL_ARTIFACT,
                step=-1,  # MLflow copies the run's metrics of this step to the model; there are none
                python_model=str(package / "runs" / "served_model.py"),
                code_paths=[str(package)],
                artifacts={"network": network.as_uri(), "recipe": recipe_file.as_uri()},
                params={key: str(value) for key, value in recipe.flat().items()},
                input_example=np.array(
                    np.load(example, mmap_mode="r")[None, :EXAMPLE_PX, :EXAMPLE_PX]
                ),
                signature=ModelSignature(
                    Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
                    Schema([TensorSpec(np.dtype(np.int32), (-1, -1, -1))]),
                ),
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
            )
        finally:
            mlflow.end_run("RUNNING")  # the run is not finished yet
    log_tags(run, {MODEL_FILES: digests, MODEL_ID: logged.model_id})
    return str(logged.model_id)
