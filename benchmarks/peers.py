"""Score what a user would take instead, on the validation images of `best`.

    python3 -m venv stardist
    stardist/bin/pip install --no-deps --require-hashes --requirement benchmarks/stardist.lock
    python benchmarks/peers.py stage1_train.zip stardist/bin/python --minutes 25 --run RUN_ID

Trains StarDist 2D for so many minutes on the training images of `best`, which should be the time that
`best` takes on the same machine. Prints the scores of StarDist, of Otsu's threshold with a watershed, of
the built-in model, and of the models of runs, for example of the recipe `seed`. `best` and
StarDist choose their thresholds on the same validation images. What StarDist found is kept in the home.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cases import Case, cases
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from nucleus_unet.data import KINDS, SplitImage, make_split
from nucleus_unet.engine import home_folder, prepare_environment
from nucleus_unet.network import BUILTIN, configure, load_model, resolve, segment_images
from nucleus_unet.nuclei import match_nuclei
from nucleus_unet.recipe import load_recipe
from nucleus_unet.reports import markdown_table
from nucleus_unet.runs import records

SMALLEST_PX = 20
SEEDS_APART_PX = 5


class Found(NamedTuple):
    """What a method found in the validation images."""

    labels: Sequence[NDArray[np.integer]]
    seconds: float
    peak_memory_bytes: int


def otsu(images: Sequence[NDArray[np.uint8]]) -> Found:
    start = time.monotonic()
    found = [_otsu(image) for image in images]
    return Found(found, time.monotonic() - start, _peak())


def _otsu(image: NDArray[np.uint8]) -> NDArray[np.integer]:
    grey = gaussian(image.mean(2), 1)
    bright = grey > threshold_otsu(grey)
    mask = remove_small_objects(
        binary_fill_holes(bright ^ (bright.mean() > 0.5)), max_size=SMALLEST_PX
    )
    depth = gaussian(distance_transform_edt(mask), 1)
    seeds = np.zeros(mask.shape, np.int32)
    places = peak_local_max(depth, min_distance=SEEDS_APART_PX, labels=label(mask))
    seeds[tuple(places.T)] = np.arange(1, len(places) + 1)
    return np.asarray(watershed(-depth, seeds, mask=mask))


def product(model: str, flips: bool, images: Sequence[NDArray[np.uint8]]) -> Found:
    """A model of this product at the own size of the images; call this in a new process."""
    recipe, network = records.fetch_model(model)
    recipe = resolve(recipe.with_overrides([f"inference.flips={flips}".lower()]))
    configure(recipe.training.cpu_threads)
    loaded = load_model(network)
    segment_images(loaded, images[:1], recipe)  # compiles
    start = time.monotonic()
    found = segment_images(loaded, images, recipe)
    return Found(found, time.monotonic() - start, _peak())


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def stardist(
    python: Path, minutes: float, training: Sequence[Case], validation: Sequence[Case]
) -> Found:
    folder = home_folder() / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "stardist.json"
    if not report.exists():
        for name, own in (("training", training), ("validation", validation)):
            pairs = [case.sample.load() for case in own]
            arrays: dict[str, Any] = {f"x{k}": image for k, (image, _) in enumerate(pairs)}
            arrays |= {f"y{k}": labels for k, (_, labels) in enumerate(pairs)}
            np.savez(folder / f"{name}.npz", **arrays)
        script = Path(__file__).with_name("stardist_peer.py")
        subprocess.run([python, script, folder, str(minutes)], check=True)
    said, arrays = json.loads(report.read_text()), dict(np.load(folder / "stardist.npz"))
    print(f"StarDist: {said['steps']} steps, accuracy {said['accuracy']:.3f} by its own matching\n")
    return Found([*arrays.values()], said["seconds"], said["peak_memory_bytes"])


def row(name: str, found: Found, validation: Sequence[Case]) -> list[str]:
    truths = [np.asarray(case.sample.load()[1], np.int32) for case in validation]
    matches = [match_nuclei(*pair) for pair in zip(truths, found.labels, strict=True)]
    scores = np.array([match.average_precision for match in matches])
    kinds = np.array([case.sample.kind for case in validation])
    of_kinds = [scores[kinds == kind].mean() for kind in KINDS if kind in kinds]
    megapixels = sum(truth.size for truth in truths) / 1e6
    numbers = (scores.mean(), scores[:, 0].mean(), np.mean(of_kinds), *of_kinds)
    return [
        name,
        *(f"{number:.3f}" for number in numbers),
        f"{found.seconds / megapixels:.1f}",
        f"{found.peak_memory_bytes / 2**30:.1f}",
    ]


def rows(runs: Sequence[str], found: Found, validation: Sequence[Case]) -> Iterator[list[str]]:
    images = [np.asarray(case.sample.load()[0]) for case in validation]
    yield row("StarDist 2D", found, validation)
    jobs: list[tuple[str, Callable[..., Found], tuple[Any, ...]]]
    jobs = [("Otsu and watershed", otsu, ())]
    jobs += [
        (f"{name}, {'with' if flips else 'without'} flips", product, (model, flips))
        for name, model in (("built-in model", BUILTIN), *((f"run {run}", run) for run in runs))
        for flips in (True, False)
    ]
    for name, function, arguments in jobs:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            yield row(name, pool.submit(function, *arguments, images).result(), validation)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("python", type=Path, help="of the environment of StarDist")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--run", action="append", default=[], help="id of a run; can be repeated")
    chosen = parser.parse_args()
    prepare_environment()
    known = {case.sample.id: case for case in cases(chosen.archive)}
    images = [SplitImage(id=i, kind=one.sample.kind, slide=one.slide) for i, one in known.items()]
    split = make_split(images, load_recipe("best").data)
    training, validation = (
        [known[image.id] for image in side] for side in (split.training, split.validation)
    )
    found = stardist(chosen.python, chosen.minutes, training, validation)
    kinds = {case.sample.kind for case in validation}
    head = (
        "method",
        "score",
        "AP at 0.50",
        "mean of kinds",
        *(kind for kind in KINDS if kind in kinds),
    )
    head += ("seconds per megapixel", "GiB")
    print(markdown_table(head, [*rows(chosen.run, found, validation)]))


if __name__ == "__main__":
    main()
