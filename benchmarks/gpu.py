"""Training speed by recipe, precision and batch size on the device at hand, loading included.

    python benchmarks/gpu.py --data DIR     # prepared images: DIR/images/*.npy and DIR/labels/*.npy

Without --data the built-in sample is prepared first. Runs on either backend: KERAS_BACKEND=jax.
Each line is a training of its own, in a process of its own; the first epoch compiles and is left out.
"""

import argparse
import os
import tempfile
from pathlib import Path

from nucleus_unet.backend import resolve
from nucleus_unet.dataset.prepared import ingest, merge
from nucleus_unet.dataset.sample import Sample
from nucleus_unet.dataset.synthetic import write_synthetic
from nucleus_unet.events import EventLog
from nucleus_unet.isolation import follow
from nucleus_unet.recipe import load_recipe

# Recipe, precision, images in a batch.
WAYS = [
    *(("seed", precision, 32) for precision in ("float32", "mixed_bfloat16")),
    ("seed", "mixed_bfloat16", 128),
    *(("paper", precision, 1) for precision in ("float32", "mixed_bfloat16")),
    ("paper", "mixed_bfloat16", 8),
    *(("best", "mixed_bfloat16", batch_size) for batch_size in (16, 64)),
]
EPOCHS = 3


def sample_data(folder: Path) -> list[Sample]:
    """The built-in sample, prepared."""
    raw, _ = write_synthetic(folder / "raw")
    images = ingest([raw], folder, "benchmark")
    labels = merge([raw], images, folder, "benchmark")
    return [
        Sample(image.id, image.path(folder), label.path(folder), "")
        for image, label in zip(images.entries, labels.entries, strict=True)
    ]


def measure(samples: list[Sample], name: str, precision: str, batch_size: int, steps: int) -> None:
    """Print the images trained in a second in the last epoch."""
    overrides = {"precision": precision, "batch_size": batch_size, "epochs": EPOCHS}
    overrides["steps_per_epoch"] = steps
    recipe = resolve(load_recipe(name, [f"training.{k}={v}" for k, v in overrides.items()]))
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "events.jsonl")
        job = ("nucleus_unet.training:train", recipe, samples, samples[:8], Path(folder))
        epochs = [e for e in follow(*job, poll=log.new) if e["event"] in ("start", "epoch")]
    print(f"{name:8}{precision:16}{batch_size:>6}", end="")
    print(f"{epochs[-1]['images_per_s']:>12.1f}  {epochs[0]['backend']} on {epochs[0]['device']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of prepared images and labels")
    parser.add_argument("--steps", type=int, default=20, help="steps in an epoch; default 20")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("NUCLEUS_HOME", folder)
        if data := arguments.data:
            labels = sorted((data / "labels").glob("*.npy"))
            samples = [Sample(p.stem, data / "images" / p.name, p, "") for p in labels]
        else:
            samples = sample_data(Path(folder))
        print(f"{'recipe':8}{'precision':16}{'batch':>6}{'images/s':>12}")
        for way in WAYS:
            measure(samples, *way, arguments.steps)


if __name__ == "__main__":
    main()
