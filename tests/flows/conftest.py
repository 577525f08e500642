from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def client(retrained: Any) -> Any:
    """Of the MLflow database that the retraining run logged to."""
    return retrained.client


@pytest.fixture(scope="session")
def artifacts(retrained: Any) -> Path:
    """The folder of the run's artifacts."""
    folder: Path = retrained.artifacts
    return folder
