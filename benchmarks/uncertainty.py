"""Is the uncertainty of a model of several folds of use on a source that it does not know?

    python benchmarks/uncertainty.py stage1_train.zip fluorescence 360 360

Leaves a source of the 2018 Data Science Bowl out (the images of one kind and size) and trains three
folds of `best` on the others. Prints how the uncertainty of the images of the source correlates with
their error (1 - score). Then half of the slides of the source are a pool. The recipe `finetune`
trains on half of the pool, once the images that `nucleus suggest` names and three times images by
chance, and is scored on the other slides. Half an hour on two cores; each step is kept in the home, so
that an interrupted measurement continues.
"""

import csv
import json
from pathlib import Path

import numpy as np
from finetune import done, run_id, source_parser, source_slides, subset
from scipy.stats import spearmanr

from nucleus_unet.engine import home_folder, prepare_environment

TRIALS = 3
BUDGET = ("--set", "training.epochs=5", "--set", "training.steps_per_epoch=200", "--no-registry")


def scored(home: Path, name: str, model: str, images: Path) -> dict[str, float]:
    """The score of each image."""
    out = home / f"found, {name}"
    done(home, f"predicted, {name}", ["predict", str(images), "--model", model, "--out", str(out)])
    command = ["score", str(out / "submission.csv"), str(images), "--json"]
    table = json.loads(done(home, f"scores, {name}", command)[0])
    return {row["id"]: row["score"] for row in table["by_image"]}


def main() -> None:
    chosen = source_parser(__doc__).parse_args()
    prepare_environment()
    home = home_folder() / "uncertainty" / f"{chosen.kind} {chosen.height} {chosen.width}"
    home.mkdir(parents=True, exist_ok=True)
    others, slides = source_slides(chosen.archive, (chosen.kind, chosen.height, chosen.width))
    pool, rest = (set().union(*slides[side::2]) for side in (0, 1))
    parts = {"others": others, "source": pool | rest, "pool": pool, "rest": rest}
    zips = {name: subset(chosen.archive, ids, home / f"{name}.zip") for name, ids in parts.items()}

    train = ["retrain", "--train", str(zips["others"]), *BUDGET]
    ensemble = run_id(done(home, "folds", [*train, "--folds", "3"])[0])
    start = run_id(done(home, "start", train)[0])
    scores = scored(home, "source", ensemble, zips["source"])
    with (home / "found, source" / "images.csv").open(newline="") as file:
        uncertainty = {row["image"]: float(row["uncertainty"]) for row in csv.DictReader(file)}
    ids = sorted(scores)
    found = spearmanr([uncertainty[id_] for id_ in ids], [1 - scores[id_] for id_ in ids])
    print(f"{len(ids)} images, mean score {np.mean([*scores.values()]):.3f}")
    print(
        f"rank correlation of uncertainty and error: {found.statistic:.2f} (p = {found.pvalue:.1g})"
    )

    half = len(pool) // 2
    out = ["--out", str(home / "suggested")]
    command = ["suggest", str(zips["pool"]), "--n", str(half), "--model", ensemble, *out]
    lines = done(home, "suggestions", command)[0].strip().splitlines()[-half:]
    halves = {"suggested": {line.split()[1] for line in lines}}
    for trial in range(TRIALS):
        drawn = np.random.default_rng(trial).choice(sorted(pool), half, replace=False)
        halves[f"by chance {trial}"] = set(drawn.tolist())
    print(
        f"| {half} images for training | score on {len(rest)} images of other slides |\n|---|---|"
    )
    for name, images in halves.items():
        annotated = subset(chosen.archive, images, home / f"{name}.zip")
        tune = ["retrain", "--train", str(annotated), "--recipe", "finetune", "--no-registry"]
        printed, _ = done(home, name, [*tune, "--set", f"training.start_from={start}"])
        mean = np.mean([*scored(home, f"rest, {name}", run_id(printed), zips["rest"]).values()])
        print(f"| {name} | {mean:.3f} |", flush=True)


if __name__ == "__main__":
    main()
