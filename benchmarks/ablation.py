"""Parts of the recipe best on and off, at a small budget, from runs logged to MLflow.

    python benchmarks/ablation.py --train ZIP      # 10 to 15 minutes a part on two cores
    python benchmarks/ablation.py                  # writes benchmarks/ablation.md

What has been run is not run again: always give the same data. Another recipe best, or another budget,
is another experiment. A table for each experiment whose name starts with "ablation", of which each row
names what its recipe has other than the first run's; those of experiments that this home does not have
stay as they were written.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nucleus_unet.backend import resolve
from nucleus_unet.home import prepare_environment
from nucleus_unet.recipe import load_recipe

EXPERIMENT = "ablation"
TABLES = Path(__file__).with_suffix(".md")
NUCLEUS = (sys.executable, "-m", "flows.cli")
EPOCHS, STEPS_PER_EPOCH = 10, 100
PARTS = (
    (),
    ("training.seed=11",),  # what chance does
    ("augmentation.scale_range=[1, 1]",),
    ("data.balance=0",),
    ("augmentation.intensity_range=0",),
    ("augmentation.stain_range=0",),
    ("augmentation.zoom_range=0",),
    ("network.outputs=mask", "inference.large_cutoff=none"),
    ("training.schedule=constant",),
    ("data.normalize=false",),
    (
        "augmentation.scale_range=[1, 1]",
        "augmentation.intensity_range=0",
        "augmentation.stain_range=0",
        "data.balance=0",
    ),
    ("inference.flips=false",),
    ("inference.tune=false",),
    ("inference.scales=[1]",),
    ("inference.large_cutoff=none",),
)
HEADING = """# Parts of the recipe best, on and off

Written by `python benchmarks/ablation.py` from runs logged to MLflow, of the Data Science Bowl's
training set as corrected (664 images) on 2 cores, 2,500 steps each, 10,000 at the full budget of then,
or as the table's name says: mean average precision on the validation images, of slides that the network
never saw, overall and by imaging kind, which the mean of kinds weighs alike; average precision at two
thresholds; minutes of training, most of them on a machine that did other work besides. The row of
another `training.seed` says how far chance moves a score; rows that change inference alone are of the
first row's own weights. The last epoch is kept; in the oldest table, and in the first row of the full
budget, the one of the best pixel mean IoU. Absent is what the code has no more.

A key that the recipe does not have was tried and left out, as it gains no more than chance does: `ema`
is a running mean of the weights, `blur_probability` and `noise_probability` spoil images,
`normalization=batch` normalises after each convolution, `mean_level` brightens dark images by a gamma,
`encoder=lite0` is EfficientNet-Lite0 with its weights of ImageNet (1,600 steps, which take as long; it
gains less than the 0.02 for which another package would be worth while), `stem=half` computes at half
the resolution inside. `outputs=without_distance` learns the mask a second time instead of the distance,
`without_border` no borders; the table without the map of distance learns mask and borders alone, in its
row `mask` the mask, with nuclei that grow downhill in mask times 1 - border. The distance stays: both
seeds with it score higher than both without. A mask that counts twice gains as much at this budget, and
is no simpler. Scales, intensities, stains and balance each move the score little more than a seed does;
without balance, or all four, it is even higher at 1,000 steps, by fluorescence, as most images are. But
the kinds of which there are few lose (see their mean), most without stains; for them these parts stay.
The cosine gains at 2,500 steps, and not yet at 1,000. More filters are not in these tables: README has
32, on a GPU, at the full budget.
Warm-up and weight decay are out. Without warm-up the score was higher, without weight decay once lower
(0.5198 beside 0.5282) and once higher; at the full budget, in the last two tables of 5,000 steps, it is
0.5576 without both and 0.5598 with both, on another processor, which is less than a seed does.

Between revisions f470318 and 0e516c3 the map of borders was, by a fault, that of every outline and not
of touching nuclei alone. So trained were the row of the constant schedule, the first table of 1,250
steps, and the full budget without warm-up and weight decay; they compare with each other, and not with
the rest.

In the first table of 1,250 steps `outputs=flow` learns the direction to the middle of the nucleus
instead of the distance; pixels that arrive at one place by following it are one nucleus. It gains no
more than chance does and takes more code than the distance. `outputs=star` learns 16 distances
(star-convex) instead of the borders; polygons are taken from the likeliest middle on, what is left is a
neighbour's by watershed. It was not tuned, which takes long, but tried with two cutoffs of seeds: with
either it splits many more nuclei than the distance does. The rows with `magnification` and
`min_confidence` have the very weights of the first: images are predicted at so many times their size,
nuclei of a lower mean probability, here tuned, are left out.

In the table of 1,250 steps with borders between nuclei all rows have the same weights. Of images at
1.33 times their size the score is no higher, and the mean of kinds lower, than of images as they are, so
`best` takes them as they are; with the fault it gained 0.011. The second row, of the first recipe too,
normalises images after they are magnified; that was taken back.

In the first table of 5,000 steps, the full budget now, all rows have the same weights. `scales=[1.0,
0.5]` predicts images at half their size too, and adds nuclei where none were found. So have those of
the table below it: `large_cutoff` cuts large nuclei at a lower probability than small ones. In the one
after it, of the same weights once more, a nucleus that both scales find is taken from the one that is
likelier and sees it at a usual size; before, the second scale only added nuclei. In the last one of
5,000 steps both rows have the same weights; in the second a nucleus that another parts keeps its
largest piece."""
IGNORED = ("training.threads", "training.precision", "training.deterministic")


def run(data: Path) -> None:
    """Retrain with each part on or off, where that was not done yet."""
    budget = (f"training.epochs={EPOCHS}", f"training.steps_per_epoch={STEPS_PER_EPOCH}")
    steps, recipe = EPOCHS * STEPS_PER_EPOCH, load_recipe("best").digest()[:7]
    experiment = f"{EXPERIMENT}, {steps:,} steps, recipe {recipe}"
    runs = finished().get(experiment, [])
    done = {one.data.tags["recipe.digest"] for one in runs}
    for part in PARTS:
        values = (*budget, *part)
        if resolve(load_recipe("best", values)).digest() in done:
            continue
        print("best", *part, flush=True)
        overrides = [word for value in values for word in ("--set", value)]
        subprocess.run(
            [
                *NUCLEUS,
                "retrain",
                "--train",
                str(data),
                "--recipe",
                "best",
                "--no-registry",
                *overrides,
            ],
            env=os.environ | {"MLFLOW_EXPERIMENT_NAME": experiment},
            check=True,
        )


def finished() -> dict[str, list[Any]]:
    """All finished runs by experiment, in the order of their start."""
    prepare_environment()
    from mlflow import MlflowClient

    client = MlflowClient()
    wanted, order = "attributes.status = 'FINISHED'", ["start_time ASC"]
    found = client.search_experiments(filter_string=f"name LIKE '{EXPERIMENT}%'")
    return {
        one.name: list(client.search_runs([one.experiment_id], wanted, order_by=order))
        for one in sorted(found, key=lambda one: one.name)
    }


def table(runs: list[Any]) -> str:
    """A row for each run, in markdown."""
    from mlflow import MlflowClient

    kinds = sorted({key for r in runs for key in r.data.metrics if "/score of " in key})
    head = ["changed", "score", *(kind.partition("/score of ")[2] for kind in kinds)]
    head += ["mean of kinds", "AP at 0.50", "AP at 0.80", "minutes", "source"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in runs:
        metrics, params = one.data.metrics, one.data.params
        history = MlflowClient().get_metric_history(one.info.run_id, "seconds")
        seconds = sum(point.value for point in history)
        cells = [_changes(runs[0].data.params, params), f"{metrics['validation/score']:.4f}"]
        of_kinds = [metrics.get(kind, float("nan")) for kind in kinds]
        cells += [f"{score:.3f}" for score in (*of_kinds, sum(of_kinds) / len(of_kinds))]
        cells += [f"{metrics[f'validation/AP at {t}']:.3f}" for t in ("0.50", "0.80")]
        cells += [f"{seconds / 60:.1f}", one.data.tags["source.commit"][:7]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _changes(first: dict[str, Any], params: dict[str, Any]) -> str:
    keys = sorted((first.keys() | params.keys()) - set(IGNORED))
    changed = [f"{k}={params.get(k, 'absent')}" for k in keys if params.get(k) != first.get(k)]
    return ", ".join(changed) or "the first"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="run them on this training set")
    if data := parser.parse_args().train:
        run(data)
    else:
        made = {name: table(runs) for name, runs in finished().items() if runs}
        if not made:
            raise SystemExit(f"no experiment {EXPERIMENT} here: run some first, with --train")
        sections = TABLES.read_text().split("\n## ")[1:]
        written = dict(section.rstrip().split("\n\n", 1) for section in sections)
        tables = [f"## {name}\n\n{rows}" for name, rows in sorted((written | made).items())]
        TABLES.write_text("\n\n".join([HEADING, *tables]) + "\n")


if __name__ == "__main__":
    main()
