"""Parts of the recipe best on and off, from runs logged to MLflow.

    MLFLOW_EXPERIMENT_NAME=ablation nucleus retrain --train ZIP --recipe best --set KEY=VALUE
    python benchmarks/ablation.py > benchmarks/ablation.md   # all runs of that experiment

Each row names what its recipe has other than the first run's.
"""

import argparse
from typing import Any

EXPERIMENT = "ablation"
HEADING = """# Parts of the recipe best, on and off

Printed by `python benchmarks/ablation.py` from runs logged to MLflow, of the Data Science
Bowl's training set on 2 cores: mean average precision on the validation images, of slides that the
network never saw, overall and by imaging kind; average precision at two thresholds; minutes of
training."""
IGNORED = ("training.threads", "training.precision")


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
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"{HEADING}\n\n{table()}")


if __name__ == "__main__":
    main()
