"""Time the first prediction after the installation, from an image to its masks, in a new home.

    python benchmarks/first_prediction.py      # a minute on two cores

Predicts a made image of 1024×1024 px with the built-in model by `nucleus predict`, as a new user does.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from nucleus_unet.data import draw_synthetic


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        drawn, _ = draw_synthetic("fluorescence", np.random.default_rng(0))
        image = np.tile(drawn, (4, 4, 1))[:1024, :1024]
        cv2.imwrite(f"{folder}/image.png", image)
        words = ["predict", f"{folder}/image.png", "--out", f"{folder}/out"]
        for name in ("first prediction", "second prediction"):
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "nucleus_cli.main", *words],
                env=os.environ | {"NUCLEUS_HOME": f"{folder}/home"},
                check=True,
                capture_output=True,
            )
            print(f"{name:<20}{time.monotonic() - started:6.1f} s")
            [labels] = Path(folder, "out", "labels").iterdir()
            labels.unlink()


if __name__ == "__main__":
    main()
