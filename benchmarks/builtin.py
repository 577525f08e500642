"""Make the model that comes with the package from a run on this machine, and score it.

    nucleus retrain --train stage1_train.zip
    python benchmarks/builtin.py RUN_ID --data "the 2018 Data Science Bowl"

Rounds the weights to half precision, scores them on the validation images of the run, and writes
model.keras, record.json and card.md into nucleus_unet/builtin/, and a picture of the worst validation
images into docs/images/. Run it in the home of the run.
"""

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import h5py
import numpy as np

from nucleus_unet.data import (
    SPLIT_FILE,
    Split,
    describe_training,
    images_code,
    labels_code,
    prepare_images,
    prepare_labels,
    raw_digests,
)
from nucleus_unet.engine import EVENTS, EventLog, home_folder, prepare_environment, reporter
from nucleus_unet.files import sha256_file
from nucleus_unet.network import resolve
from nucleus_unet.network.builtin import (
    BUILTIN_CARD,
    BUILTIN_NETWORK,
    BUILTIN_RECORD,
    BuiltinModel,
)
from nucleus_unet.reports import evaluate_model, model_card, pictures, score_interval

WEIGHTS = "model.weights.h5"
WORST = Path(__file__).parents[1] / "docs" / "images" / "worst.jpg"


def halve(network: Path, to: Path) -> None:
    """Copy a ``model.keras`` with its weights rounded to float16. Equal weights give equal bytes."""
    with TemporaryDirectory() as folder, zipfile.ZipFile(network) as source:
        source.extract(WEIGHTS, folder)
        rounded = Path(folder) / "rounded.h5"
        with h5py.File(Path(folder) / WEIGHTS) as full, h5py.File(rounded, "w") as half:

            def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
                if isinstance(item, h5py.Dataset):
                    half.create_dataset(name, data=np.asarray(item, np.float16), track_times=False)
                    copied = half[name]
                else:
                    copied = half.require_group(name)
                copied.attrs.update(item.attrs)

            full.visititems(copy)
            half.attrs.update(full.attrs)
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as target:
            for name in sorted(source.namelist()):
                content = rounded.read_bytes() if name == WEIGHTS else source.read(name)
                target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def write_jpeg(png: bytes, to: Path) -> None:
    """A picture of two thirds of the size."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    small = cv2.resize(image, None, fx=2 / 3, fy=2 / 3, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(to), small, [cv2.IMWRITE_JPEG_QUALITY, 80])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_id")
    parser.add_argument("--data", required=True, help="name of the training data")
    chosen = parser.parse_args()
    prepare_environment()
    from nucleus_unet.runs import fetch_record, records

    home, record = home_folder(), fetch_record(chosen.run_id)
    recipe, network = records.fetch_model(chosen.run_id)
    # Each machine predicts with all of its cores.
    training = recipe.training.model_copy(update={"threads": "auto"})
    recipe = recipe.model_copy(update={"training": training})
    halve(network, BUILTIN_NETWORK)
    raws = [Path(path) for path in record.data["training"].paths]
    images = prepare_images(raws, home, images_code(), annotated=True)
    labels = prepare_labels(raws, images, home, labels_code())
    split = Split.model_validate_json(
        records.fetch_artifact(chosen.run_id, SPLIT_FILE).read_bytes()
    )
    trained = {image.id for image in split.training}

    def progress(what: str, unit: str) -> Callable[[int, int | None], None]:
        return reporter(what, unit, print)

    fixed = resolve(recipe.with_overrides(["inference.tune=false"]))
    validation = split.samples("validation", images, labels, home)
    with TemporaryDirectory() as maps:
        found = evaluate_model(fixed, [(BUILTIN_NETWORK, validation)], Path(maps), progress)
        write_jpeg(pictures(validation, found)["worst"], WORST)
    made = BuiltinModel(
        recipe=recipe,
        network_sha256=sha256_file(BUILTIN_NETWORK),
        data=chosen.data,
        score=found.scores["score"],
        images=len(validation),
        commit=record.commit,
        trained_on=describe_training(split, labels, home),
        seen=frozenset(entry.pixels_sha256 for entry in images.entries if entry.id in trained),
    )
    values = made.model_dump(mode="json") | {"seen": sorted(made.seen)}
    BUILTIN_RECORD.write_text(json.dumps(values, indent=1) + "\n")
    events = EventLog(home / "stages" / "train" / record.tags["stage.train"][:20] / EVENTS).new()
    small, usual, large = made.trained_on.diameters_px
    scores = {**found.scores, "interval": score_interval(found.by_id, split.slides)}
    by_image = scores.pop("by_image")
    card = model_card(
        recipe, f"{made.data[0].upper()}{made.data[1:]}", split, events, scores, by_image, None
    )
    origin = (
        f"## Origin\n\nTrained at revision {made.commit} with `nucleus retrain --train "
        f"stage1_train.zip` (SHA-256 of the zip: {raw_digests(raws)[0]}); its weights were rounded to "
        "half precision by `benchmarks/builtin.py`. The scores are those of the rounded weights. "
        f"SHA-256 of `model.keras`: {made.network_sha256}. The nuclei of its training images are "
        f"{small:g} to {large:g} px wide (90 % of them), half of them up to {usual:g} px. The images "
        "have no pixel size. They are released as CC0 (BBBC038v1, Caicedo et al., Nature Methods 2019)."
    )
    BUILTIN_CARD.write_text(f"{card}\n\n{origin}\n")
    print(
        f"score {made.score:.4f} with the weights as trained {record.metrics['validation/score']:.4f}"
    )


if __name__ == "__main__":
    main()
