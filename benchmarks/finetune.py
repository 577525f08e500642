"""Measure what fine-tuning on 20 images of a new source gains, and how long it takes.

    python benchmarks/finetune.py stage1_train.zip "stained on colour" 256 320

Leaves a source of the 2018 Data Science Bowl out (the images of one kind and size), trains `best` on the
others (an hour or more on two cores, 10 minutes with --steps 500), and fine-tunes that model with the
recipe `finetune` on 20 images of the source, complete slides. The rest of the source is then predicted
with the model before and after, and with a model that was trained on the 20 images from random weights
with as many steps. Each step is kept in the home, so an interrupted measurement continues.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nucleus_unet.data import (
    KINDS,
    images_code,
    imaging_kind,
    load_image,
    prepare_images,
    slides_of_entries,
)
from nucleus_unet.engine import home_folder, prepare_environment
from nucleus_unet.files import sha256_bytes, write_atomically

NUCLEUS = (sys.executable, "-m", "nucleus_cli.main")
LEAST_IMAGES = 20


def source_slides(archive: Path, source: tuple[str, int, int]) -> tuple[set[str], list[set[str]]]:
    """Ids of the images of other sources, and of each slide of a source, in an order by chance."""
    store = home_folder()
    images = prepare_images([archive], store, images_code(), annotated=True)
    shown = {entry.id: load_image(store, entry) for entry in images.entries}
    slides = slides_of_entries(store, images.entries)
    own: dict[str, set[str]] = defaultdict(set)
    for id_, image in shown.items():
        if (imaging_kind(image), *image.shape[:2]) == source:
            own[slides[id_]].add(id_)
    ordered = sorted(own, key=lambda name: sha256_bytes(name.encode()))
    return shown.keys() - set().union(*own.values()), [own[slide] for slide in ordered]


def sides(archive: Path, source: tuple[str, int, int]) -> dict[str, set[str]]:
    """Ids of the images of other sources, of the 20 or more that are annotated, and of the rest."""
    others, slides = source_slides(archive, source)
    annotated: set[str] = set()
    for ids in slides:
        if len(annotated) < LEAST_IMAGES:
            annotated |= ids
    return {"others": others, "annotated": annotated, "rest": set().union(*slides) - annotated}


def subset(archive: Path, ids: set[str], to: Path) -> Path:
    """Write a zip with the images of some ids and their masks."""
    if not to.exists():
        with zipfile.ZipFile(archive) as source, zipfile.ZipFile(half := f"{to}.half", "w") as made:
            for name in source.namelist():
                if ids & set(name.split("/")):
                    made.writestr(zipfile.ZipInfo(name), source.read(name))
        os.replace(half, to)
    return to


def done(home: Path, name: str, command: Sequence[str]) -> tuple[str, float]:
    """What a command prints, and its minutes; kept in the home."""
    kept = home / f"{name}.json"
    if not kept.exists():
        print(" ".join(command), flush=True)
        started = time.monotonic()
        printed = subprocess.run(
            [*NUCLEUS, *command], check=True, stdout=subprocess.PIPE, text=True
        )
        minutes = (time.monotonic() - started) / 60
        write_atomically(kept, json.dumps([printed.stdout, minutes]))
    text, minutes = json.loads(kept.read_text())
    return text, minutes


def run_id(printed: str) -> str:
    [found] = re.findall(r"^run +([0-9a-f]{32})$", printed, re.MULTILINE)
    return found


def source_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser of the data set, and of the kind and size of the images that are a source."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("kind", choices=KINDS, help="imaging kind of the source")
    parser.add_argument("height", type=int, help="of its images, in px")
    parser.add_argument("width", type=int)
    return parser


def main() -> None:
    parser = source_parser(__doc__)
    parser.add_argument(
        "--steps", type=int, default=5000, help="of the training without the source"
    )
    chosen = parser.parse_args()
    prepare_environment()
    home = home_folder() / "finetune" / f"{chosen.kind} {chosen.height} {chosen.width}"
    home.mkdir(parents=True, exist_ok=True)
    divided = sides(chosen.archive, (chosen.kind, chosen.height, chosen.width))
    parts = {
        name: subset(chosen.archive, ids, home / f"{name}.zip") for name, ids in divided.items()
    }
    budget = ("--set", f"training.steps_per_epoch={chosen.steps // 25}", "--no-registry")
    base = done(home, "base", ["retrain", "--train", str(parts["others"]), *budget])
    tuning = [
        "retrain",
        "--train",
        str(parts["annotated"]),
        "--recipe",
        "finetune",
        "--no-registry",
    ]
    starts = {"fine-tuned": run_id(base[0]), "from random weights": "none"}
    trained = {"before": base} | {
        name: done(home, name, [*tuning, "--set", f"training.start_from={start}"])
        for name, start in starts.items()
    }
    print({name: len(ids) for name, ids in divided.items()})
    print("| model | minutes of training | score on the rest | AP at 0.50 |\n|---|---|---|---|")
    for name, (printed, minutes) in trained.items():
        out = home / f"rest, {name}"
        model = ["--model", run_id(printed), "--out", str(out)]
        done(home, f"predicted, {name}", ["predict", str(parts["rest"]), *model])
        truth = [str(out / "submission.csv"), str(parts["rest"]), "--json"]
        scores = json.loads(done(home, f"scores, {name}", ["score", *truth])[0])
        ap = scores["by_threshold"][0]["average_precision"]
        print(f"| {name} | {minutes:.1f} | {scores['score']:.3f} | {ap:.3f} |")


if __name__ == "__main__":
    main()
