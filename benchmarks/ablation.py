"""Parts of the recipe best on and off, from runs logged to MLflow.

    python benchmarks/ablation.py run TRAIN [KEY=VALUE ...]   # one run: best with these overrides
    python benchmarks/ablation.py table                       # of all runs, as benchmarks/ablation.md

Runs go to the experiment "ablation". Each row names what its recipe has other than the first run's.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

EXPERIMENT = "ablation"
HEADING = """# Parts of the recipe best, on and off

Printed by `python benchmarks/ablation.py table` from runs logged to MLflow, of the Data Science
Bowl's training set on 2 cores: mean average precision on the validation images, of slides that the
network never saw, overall and by imaging kind; average precision at two thresholds; minutes of
training."""
IGNORED = ("training.threads", "training.precision")


def run(train: str, overrides: list[str]) -> int:
    """Retrain once, in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", "retrain", "--train", train, "--recipe", "best"]
    for override in overrides:
        command += ["--set", override]
    environment = os.environ | {"MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    return subprocess.run(command, env=environment, check=False).returncode


def table() -> str:
    """All finished runs in the order of their start, in markdown."""
    from nucleus_unet.home import prepare_environment

    prepare_environment()
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise SystemExit(f"no experiment {EXPERIMENT} here: run some first")
    runs = client.search_runs(
        [experiment.experiment_id], "attributes.status = 'FINISHED'", order_by=["start_time ASC"]
    )
    kinds = sorted({key for r in runs for key in r.data.metrics if "/score of " in key})
    head = ["changed", "score", *(kind.partition("/score of ")[2] for kind in kinds)]
    head += ["AP at 0.50", "AP at 0.80", "minutes", "source"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in runs:
        metrics, params = one.data.metrics, one.data.params
        seconds = sum(p.value for p in client.get_metric_history(one.info.run_id, "seconds"))
        cells = [_changes(runs[0].data.params, params), f"{metrics['validation/score']:.4f}"]
        cells += [f"{metrics.get(kind, float('nan')):.3f}" for kind in kinds]
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
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one run of best with overrides")
    one.add_argument("train")
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    commands.add_parser("table", help="print the table of all runs")
    arguments = parser.parse_args()
    if arguments.command == "run":
        raise SystemExit(run(arguments.train, arguments.overrides))
    print(f"{HEADING}\n\n{table()}")


if __name__ == "__main__":
    main()
