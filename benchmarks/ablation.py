"""Train the recipe "best" with single parts changed or switched off, and compare the scores.

    python benchmarks/ablation.py ZIP      # 10 to 20 minutes for each row, on two cores

Trains once for each change, logs the runs to MLflow, and adds a row to the table in
benchmarks/ablation.md after each. Rows that the table has are not measured again, also on another
machine, so always use the same data. If the file of the recipe "best" or the budget changes, it starts a
new table.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from nucleus_unet.data import KINDS
from nucleus_unet.engine import prepare_environment
from nucleus_unet.files import write_atomically
from nucleus_unet.recipe import digest_of

if TYPE_CHECKING:
    from mlflow.entities import Run

PAGE = Path(__file__).with_suffix(".md")
NUCLEUS = (sys.executable, "-m", "nucleus_cli.main")
EPOCHS, STEPS_PER_EPOCH = 10, 50
PARTS = (
    (),
    ("inference.flips=false",),
    ("inference.tune=false",),
    ("inference.scales=[1]",),
    (
        "network.half_resolution=false",
        "network.base_filters=16",
        "network.depth=4",
        "network.dropout=[0, 0, 0, 0, 0]",
    ),
    ("training.seed=11",),  # shows how much chance changes a score
    ("data.normalize=false",),
    ("network.outputs=mask",),
    ("augmentation.stain_range=0",),
    ("augmentation.scale_range=[1, 1]",),
    ("augmentation.dim_range=0",),
    ("data.balance=0",),
    ("training.schedule=constant",),
)
HEAD = (
    "changed",
    "score",
    *KINDS,
    "mean of kinds",
    "AP at 0.50",
    "AP at 0.80",
    "minutes",
    "source",
)
EMPTY = (f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|")


def heading() -> str:
    values = tomllib.loads((resources.files("nucleus_unet.recipes") / "best.toml").read_text())
    steps = EPOCHS * STEPS_PER_EPOCH
    return f"Ablation, {steps:,} steps, recipe {digest_of(values)[:7]}"


def train(data: Path, part: Sequence[str]) -> "Run":
    """Train with a change, and return the run in MLflow."""
    from mlflow import MlflowClient

    budget = (f"training.epochs={EPOCHS}", f"training.steps_per_epoch={STEPS_PER_EPOCH}")
    overrides = [word for value in (*budget, *part) for word in ("--set", value)]
    name = f"{heading()}, {row_name(part)}"
    subprocess.run(
        [*NUCLEUS, "retrain", "--train", data, "--recipe", "best", "--no-registry", *overrides],
        env=os.environ | {"MLFLOW_EXPERIMENT_NAME": name},
        check=True,
    )
    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    finished = "attributes.status = 'FINISHED'"
    return client.search_runs([experiment.experiment_id], finished)[0]


def row_name(part: Sequence[str]) -> str:
    return ", ".join(part) or "nothing"


def row(part: Sequence[str], run: "Run") -> str:
    """A row of the table, in Markdown."""
    from mlflow import MlflowClient

    history = MlflowClient().get_metric_history(run.info.run_id, "by epoch/seconds")
    metrics, seconds = run.data.metrics, sum(point.value for point in history)
    of_kinds = [metrics[f"validation/score of {kind}"] for kind in KINDS]
    cells = [row_name(part), f"{metrics['validation/score']:.4f}"]
    cells += [f"{score:.3f}" for score in (*of_kinds, sum(of_kinds) / len(of_kinds))]
    cells += [f"{metrics[f'validation/AP at {t}']:.3f}" for t in ("0.50", "0.80")]
    cells += [f"{seconds / 60:.1f}", run.data.tags["source.commit"][:7]]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="training set")
    data = parser.parse_args().data
    prepare_environment()
    for part in PARTS:
        text, _, table = PAGE.read_text().partition("\n## ")
        lines = table.splitlines() if table.startswith(heading()) else [heading(), "", *EMPTY]
        if not any(line.startswith(f"| {row_name(part)} |") for line in lines):
            print("best", row_name(part), flush=True)
            lines.append(row(part, train(data, part)))
            write_atomically(PAGE, "\n## ".join((text, "\n".join([*lines, ""]))))


if __name__ == "__main__":
    main()
