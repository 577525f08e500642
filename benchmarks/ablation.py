"""Train the recipe "best" with single parts changed or switched off, and compare the scores.

    python benchmarks/ablation.py --train ZIP      # 5 to 10 minutes per run on two cores
    python benchmarks/ablation.py                  # only writes the table again

Trains once for each change, logs the runs to MLflow, and writes the table in benchmarks/ablation.md. It
skips runs that are already finished, so always use the same data. If the recipe "best" or the budget
changes, it starts a new experiment and a new table.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nucleus_unet.engine import prepare_environment
from nucleus_unet.network import resolve
from nucleus_unet.recipe import load_recipe

PAGE = Path(__file__).with_suffix(".md")
NUCLEUS = (sys.executable, "-m", "nucleus_cli.main")
EPOCHS, STEPS_PER_EPOCH = 10, 50
PARTS = (
    (),
    ("training.seed=11",),  # shows how much chance changes a score
    ("augmentation.scale_range=[1, 1]",),
    ("data.balance=0",),
    ("augmentation.stain_range=0",),
    ("network.outputs=mask", "inference.large_cutoff=none"),
    ("training.schedule=constant",),
    ("data.normalize=false",),
    ("inference.flips=false",),
    ("inference.tune=false",),
    ("inference.scales=[1]",),
    ("inference.large_cutoff=none",),
)
IGNORED = ("training.threads", "training.precision", "training.deterministic")


def experiment() -> str:
    return (
        f"ablation, {EPOCHS * STEPS_PER_EPOCH:,} steps, recipe {load_recipe('best').digest()[:7]}"
    )


def train(data: Path) -> None:
    """Train with each change, unless that run is already finished."""
    budget = (f"training.epochs={EPOCHS}", f"training.steps_per_epoch={STEPS_PER_EPOCH}")
    done = {run.data.tags["recipe.digest"] for run in finished_runs()}
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
            env=os.environ | {"MLFLOW_EXPERIMENT_NAME": experiment()},
            check=True,
        )


def finished_runs() -> list[Any]:
    """Find the finished runs of this recipe and budget, in the order of their start."""
    from mlflow import MlflowClient

    client = MlflowClient()
    if (found := client.get_experiment_by_name(experiment())) is None:
        return []
    finished = "attributes.status = 'FINISHED'"
    return list(client.search_runs([found.experiment_id], finished, order_by=["start_time ASC"]))


def table(runs: list[Any]) -> str:
    """Format runs as a Markdown table."""
    from mlflow import MlflowClient

    kinds = sorted({key for r in runs for key in r.data.metrics if "/score of " in key})
    head = ["changed", "score", *(kind.partition("/score of ")[2] for kind in kinds)]
    head += ["mean of kinds", "AP at 0.50", "AP at 0.80", "minutes", "source"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in runs:
        metrics, params = one.data.metrics, one.data.params
        history = MlflowClient().get_metric_history(one.info.run_id, "by epoch/seconds")
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
    return ", ".join(changed) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="training set: train on it and log the runs")
    prepare_environment()
    if data := parser.parse_args().train:
        train(data)
    if not (runs := finished_runs()):
        raise SystemExit(
            f"there is no finished run in {experiment()!r}. Train first, with --train ZIP."
        )
    text, _, _ = PAGE.read_text().partition("\n## ")
    PAGE.write_text(f"{text.rstrip()}\n\n## {experiment().capitalize()}\n\n{table(runs)}\n")


if __name__ == "__main__":
    main()
