"""Train StarDist 2D and predict with it; `peers.py` calls this in an environment of its own.

    python benchmarks/stardist_peer.py FOLDER MINUTES

Reads ``training.npz`` and ``validation.npz`` from the folder: images ``x0``, ``x1``, ... and labels
``y0``, ``y1``, .... Trains for MINUTES with StarDist's defaults for images with three channels, chooses
its thresholds on the validation images, as the recipe `best` does, and writes ``stardist.npz``, the
labels of the validation images, and ``stardist.json``.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
from csbdeep.utils import normalize
from stardist.matching import matching_dataset
from stardist.models import Config2D, StarDist2D
from tf_keras.callbacks import Callback


def load(path: Path) -> tuple[list[Any], list[Any]]:
    arrays = np.load(path)
    numbers = range(len(arrays.files) // 2)
    images = [normalize(arrays[f"x{k}"], 1, 99.8, axis=(0, 1)) for k in numbers]
    return images, [arrays[f"y{k}"].astype(np.uint16) for k in numbers]


def augmented(image: Any, labels: Any) -> tuple[Any, Any]:
    """Flip, turn, and change brightness and noise, as in StarDist's examples."""
    draws = np.random.default_rng()
    turns = int(draws.integers(4))
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if draws.random() < 0.5:
        image, labels = image[::-1], labels[::-1]
    image = image * draws.uniform(0.6, 2) + draws.uniform(-0.2, 0.2)
    noise = 0.02 * draws.uniform(0, 1) * draws.normal(0, 1, image.shape)
    return image + noise, labels


class Until(Callback):
    """Stop at a time."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end, self.steps = end, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        self.model.stop_training = time.monotonic() > self.end


def main() -> None:
    folder, minutes = Path(sys.argv[1]), float(sys.argv[2])
    training, validation = load(folder / "training.npz"), load(folder / "validation.npz")
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=3, train_tensorboard=False)
    model = StarDist2D(config, "peer", str(folder))
    model.prepare_for_training()
    until = Until(time.monotonic() + 60 * minutes)
    model.callbacks.append(until)
    model.train(*training, validation, augmenter=augmented, epochs=10_000, steps_per_epoch=100)
    model.optimize_thresholds(*validation)
    model.predict_instances(validation[0][0])  # compiles
    start = time.monotonic()
    found = [model.predict_instances(image)[0] for image in validation[0]]
    seconds = time.monotonic() - start
    np.savez(folder / "stardist.npz", *found)
    [half] = matching_dataset(validation[1], found, [0.5], by_image=True, show_progress=False)
    report = {
        "steps": until.steps,
        "seconds": seconds,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "accuracy": float(half.accuracy),
    }
    (folder / "stardist.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
