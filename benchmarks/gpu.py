"""Measure trainings on a GPU: their speed, the speed of loading, and the scores of a full training.

    python benchmarks/gpu.py pack stage1_train.zip data.zip
    python benchmarks/gpu.py speed data.zip
    python benchmarks/gpu.py load data.zip
    python benchmarks/gpu.py train data.zip best network.base_filters=32

- `pack` writes the prepared images and labels of a data set to a small lossless file. Use it to
  measure on a machine where Prefect and MLflow are missing and this package cannot be installed: set
  PYTHONPATH=. there.
- `speed` trains a few epochs for each recipe and precision, each in a new process. It prints the
  speed of the last epoch, because the first one compiles.
- `load` only creates the batches of `best`, with different numbers of threads in turn.
- `train` trains like `nucleus retrain`, with the same split, then tunes and scores on the validation
  images. With --without, images of the given sizes (height x width) are left out of both, and are
  scored separately.

Set KERAS_BACKEND=jax to train with JAX. To run several trainings on one GPU at once, give each its own
HOME. Without that, one waits for the other.
"""

import argparse
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from nucleus_unet.data import (
    SIDES,
    Sample,
    SplitImage,
    group_by_slide,
    imaging_kind,
    in_threads,
    load_image,
    load_labels,
    make_split,
    prepare_images,
    prepare_labels,
)
from nucleus_unet.engine import EVENTS, EventLog, code_digest, epochs, follow, run_in_worker
from nucleus_unet.files import sha256_file
from nucleus_unet.network import batches, resolve
from nucleus_unet.recipe import Inference, Recipe, digest_of, load_recipe
from nucleus_unet.reports import evaluation, tuning

# Recipe, precision, batch size.
WAYS = [
    *(("seed", precision, 32) for precision in ("float32", "mixed_bfloat16")),
    ("paper", "mixed_bfloat16", 8),
    *(("best", precision, 16) for precision in ("float32", "mixed_bfloat16")),
]
EPOCHS = 3
LOADING_THREADS = (1, 2, 4, 8)
LOADING_ROUNDS = 5
INDEX = "index.json"
LOSSLESS = [cv2.IMWRITE_WEBP_QUALITY, 101]


def pack(raw: Path, to: Path) -> None:
    """Write a data set as a zip of WebP images, PNG labels, and the kind and slide of each image."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(to, "w") as file:
        store = Path(folder)
        images = prepare_images([raw], store, "benchmark")
        labels = prepare_labels([raw], images, store, "benchmark")
        slide_of = group_by_slide(
            (e.id, e.source_sha256, e.pixels_sha256, load_image(store, e)) for e in images.entries
        )
        index = []
        for image, label in zip(images.entries, labels.entries, strict=True):
            pixels = load_image(store, image)
            index.append([image.id, imaging_kind(pixels), slide_of[image.id]])
            _, webp = cv2.imencode(".webp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), LOSSLESS)
            nuclei = load_labels(store, label)
            assert nuclei.max() < 2**16, (
                f"image {image.id} has more nuclei than a 16-bit PNG can hold"
            )
            _, png = cv2.imencode(".png", nuclei.astype(np.uint16))
            file.writestr(f"{image.id}.webp", webp.tobytes())
            file.writestr(f"{image.id}.png", png.tobytes())
        file.writestr(INDEX, json.dumps(index))


def unpack(file: Path, folder: Path) -> tuple[list[Sample], dict[str, str]]:
    """Unpack samples as ``.npy`` files in a folder; return them and the slide of each."""
    with zipfile.ZipFile(file) as packed:
        index = json.loads(packed.read(INDEX))
        members = {name: packed.read(name) for name in packed.namelist()}

    def one(row: tuple[str, str, str]) -> Sample:
        id_, kind, _ = row
        sample = Sample(id_, folder / f"{id_}.npy", folder / f"{id_}.labels.npy", kind)
        for name, path in ((f"{id_}.webp", sample.image), (f"{id_}.png", sample.labels)):
            array = cv2.imdecode(np.frombuffer(members[name], np.uint8), cv2.IMREAD_UNCHANGED)
            assert array is not None
            np.save(path, cv2.cvtColor(array, cv2.COLOR_BGR2RGB) if array.ndim == 3 else array)
        return sample

    return list(in_threads(one, index, None)), {id_: slide for id_, _, slide in index}


def trained(
    recipe: Recipe, samples: list[Sample], validation: list[Sample], folder: Path
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Train in a new process; return its ``start`` event and its ``epoch`` events."""
    log = EventLog(folder / EVENTS)
    job = ("nucleus_unet.network.training:train_network", recipe, samples, validation, folder)
    reported = list(follow(*job, poll=log.new))
    return next(event for event in reported if event["event"] == "start"), epochs(reported)


def speed(samples: list[Sample], name: str, precision: str, batch_size: int, steps: int) -> None:
    """Print the training speed of the last epoch in images per second, loading included."""
    overrides = {"precision": precision, "batch_size": batch_size, "epochs": EPOCHS}
    overrides["steps_per_epoch"] = steps
    recipe = resolve(load_recipe(name, [f"training.{k}={v}" for k, v in overrides.items()]))
    with tempfile.TemporaryDirectory() as folder:
        start, history = trained(recipe, samples, samples[:8], Path(folder))
    print(f"{name:8}{precision:16}{batch_size:>6}", end="")
    print(f"{history[-1]['images_per_s']:>12.1f}  {start['backend']} on {start['device']}")


def load(samples: list[Sample], steps: int) -> None:
    """Print how many images of `best` are loaded per second, by number of threads."""
    recipe = load_recipe("best")
    seconds: dict[int, list[float]] = {threads: [] for threads in LOADING_THREADS}
    for _ in range(LOADING_ROUNDS):
        for threads, of_threads in seconds.items():
            batches.LOADING_THREADS = threads
            made = batches.training_batches(recipe, samples)
            next(made)  # starts the threads, which load ahead
            started = perf_counter()
            for _ in range(steps):
                next(made)
            of_threads.append(perf_counter() - started)
    for threads, of_threads in seconds.items():
        images_per_s = steps * recipe.training.batch_size / median(of_threads)
        print(f"{threads} threads{images_per_s:>12.0f} images/s")


def train(
    recipe: Recipe,
    samples: list[Sample],
    slide_of: dict[str, str],
    without: list[str],
    folder: Path,
) -> dict[str, Any]:
    """Train, tune and score; return the times, the tuned values and the scores."""
    by_size: dict[str, list[Sample]] = {}
    for sample in samples:
        by_size.setdefault("{}x{}".format(*sample.load()[1].shape), []).append(sample)
    left_out = {size: by_size.pop(size) for size in without}
    by_id = {sample.id: sample for of_size in by_size.values() for sample in of_size}
    rows = [SplitImage(id=i, kind=one.kind, slide=slide_of[i]) for i, one in by_id.items()]
    split = make_split(rows, recipe.data)
    training, validation = ([by_id[image.id] for image in split.side(side)] for side in SIDES)
    start, history = trained(recipe, training, validation, folder)
    training_ended = perf_counter()
    maps = predicted(recipe, validation, folder)
    inference = recipe.inference
    if inference.tune:
        inference = tuning.tune_inference(validation, maps, inference, lambda done, total: None)
    row = {
        "device": f"{start['backend']} on {start['device']}",
        "parameters": start["parameters"],
        "steps": recipe.training.epochs * recipe.training.steps_per_epoch,
        "epochs, s": round(sum(epoch["seconds"] for epoch in history), 1),
        "images/s": history[-1]["images_per_s"],
        "loss": round(history[-1]["loss"], 4),
        "tuned": inference.model_dump(include=set(tuning.GRID)),
        **scored(validation, maps, inference, "validation"),
        "prediction and tuning, s": round(perf_counter() - training_ended, 1),
    }
    for size, of_size in left_out.items():
        row |= scored(of_size, predicted(recipe, of_size, folder), inference, f"left out {size}")
    return row


def predicted(recipe: Recipe, samples: list[Sample], folder: Path) -> list[Path]:
    """Predict samples with the model in a folder; return the files of the maps, in order."""
    maps = [folder / f"{sample.id}.maps.npy" for sample in samples]
    job = (folder / "model.keras", recipe, [sample.image for sample in samples], maps)
    run_in_worker(
        recipe.training.cpu_threads, "nucleus_unet.network.inference:predict_to_files", *job
    )
    return maps


def scored(
    samples: list[Sample], maps: list[Path], inference: Inference, name: str
) -> dict[str, Any]:
    """Score maps, overall and by imaging kind."""
    table = evaluation.score_maps(samples, maps, inference, lambda done, total: None)
    by_kind = {kind: round(of["score"], 4) for kind, of in table["by_kind"].items()}
    return {f"{name} score": round(table["score"], 4), f"{name} score by kind": by_kind}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="pack a training set for another machine")
    packing.add_argument("raw", type=Path, help="zip or folder of raw images and masks")
    speeding = commands.add_parser("speed", help="training speed in images per second, by recipe")
    speeding.add_argument("--steps", type=int, default=20, help="steps per epoch; default 20")
    loading = commands.add_parser(
        "load", help="loading speed in images per second, by number of threads"
    )
    loading.add_argument("--steps", type=int, default=60, help="batches per round; default 60")
    training = commands.add_parser("train", help="a full training and its scores")
    for command in (packing, speeding, loading, training):
        command.add_argument("pack", type=Path, help="the packed data set")
    training.add_argument("recipe", help="name of a recipe, or path of a .toml file")
    training.add_argument("override", nargs="*", help="KEY=VALUE, changes a key of the recipe")
    training.add_argument(
        "--without", default="", help="sizes to leave out, for example 512x640,360x360"
    )
    training.add_argument(
        "--out",
        type=Path,
        help="folder for model and events; an interrupted training continues from it",
    )
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.raw, arguments.pack)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("NUCLEUS_HOME", folder)
        samples, slide_of = unpack(arguments.pack, Path(folder))
        if arguments.command == "speed":
            print(f"{'recipe':8}{'precision':16}{'batch':>6}{'images/s':>12}")
            for way in WAYS:
                speed(samples, *way, arguments.steps)
            return
        if arguments.command == "load":
            load(samples, arguments.steps)
            return
        recipe = resolve(load_recipe(arguments.recipe, arguments.override))
        what = [
            recipe.digest(),
            arguments.without,
            sha256_file(arguments.pack),
            code_digest("network.training"),
        ]
        out = (arguments.out or Path(folder)) / digest_of(what)[:12]
        out.mkdir(parents=True, exist_ok=True)
        without = [size for size in arguments.without.split(",") if size]
        print(arguments.recipe, *arguments.override, *(f"without {size}" for size in without))
        print(json.dumps(train(recipe, samples, slide_of, without, out), indent=1))


if __name__ == "__main__":
    main()
