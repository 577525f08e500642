"""A registered model behind MLflow's own server."""

import os
import sys
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from nucleus_unet.data import rle
from nucleus_unet.nuclei.submission import read_submission


@pytest.mark.slow
def test_an_image_is_answered_with_its_labels(retrained: Any, start_server: Any) -> None:
    place = retrained.place
    environment = place.environment | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{place.home}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # it starts uvicorn
    }

    number = retrained.client.get_run(retrained.run_id).data.tags["model.version"]

    def command(port: int) -> list[str]:
        serve = ("-m", "mlflow", "models", "serve", "--env-manager", "local", "--workers", "1")
        where = ("--host", "127.0.0.1", "--port", str(port))
        return [sys.executable, *serve, *where, "-m", f"models:/nucleus-unet/{number}"]

    server = start_server(command, "", environment)
    path = min(Path(place.test).glob("*/images/*.png"))
    pixels = cv2.imread(str(path))
    assert pixels is not None
    image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    answer = httpx.post(
        f"{server.url}/invocations", json={"inputs": [image.tolist()]}, timeout=120
    ).raise_for_status()
    [labels] = np.array(answer.json()["predictions"])
    assert labels.shape == image.shape[:2]
    submitted = read_submission(retrained.submission)[path.stem]
    assert labels.max() == len(submitted) > 0
    expected = rle.decode_rle(submitted, *image.shape[:2])
    assert np.mean((labels > 0) != (expected > 0)) < 0.001
