"""Print settings, times and scores of logged runs: python benchmarks/runs.py RUN_ID ..."""

import argparse
from typing import Any

from nucleus_unet.engine import prepare_environment

STAGES = ("ingest", "merge_masks", "evaluate", "predict", "upsample", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_ids", nargs="+", metavar="RUN_ID")
    run_ids = parser.parse_args().run_ids
    prepare_environment()
    from mlflow import MlflowClient

    client = MlflowClient()
    runs = [client.get_run(run_id) for run_id in run_ids]
    rows = {"recipe": [run.data.tags["recipe"] for run in runs]}
    for name in ("training.epochs", "training.steps_per_epoch", "training.batch_size"):
        rows[name] = [run.data.params[name] for run in runs]
    rows["precision"] = [run.data.params["training.precision"] for run in runs]
    for stage in STAGES:
        rows[f"{stage}, s"] = [_number(run, f"seconds/{stage}", ".1f") for run in runs]
    # Includes all attempts of a training that was interrupted.
    rows["all epochs, s"] = [f"{sum(_history(run, 'by epoch/seconds')):.0f}" for run in runs]
    rows["peak memory of training, GB"] = [
        _number(run, "training/peak_memory_gb", ".1f") for run in runs
    ]
    rows["kept epoch"] = [_number(run, "training/kept_epoch", ".0f") for run in runs]
    rows["validation mean IoU, original size"] = [
        _number(run, "validation/mean_iou", ".3f") for run in runs
    ]
    kinds = sorted({key for run in runs for key in run.data.metrics if "/score of " in key})
    for key in ("validation/score", *kinds):
        rows[key.replace("/", " ")] = [_number(run, key, ".3f") for run in runs]
    rows["nuclei submitted"] = [_number(run, "submission/nuclei", ".0f") for run in runs]
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")
        if name == "recipe":
            print("|---" * (len(runs) + 1) + "|")
    for run in runs:
        curve = " ".join(f"{value:.3f}" for value in _history(run, "by epoch/val_mean_iou"))
        print(f"\n{run.data.tags['recipe']}, validation mean IoU by epoch: {curve}")


def _history(run: Any, metric: str) -> list[float]:
    from mlflow import MlflowClient

    return [point.value for point in MlflowClient().get_metric_history(run.info.run_id, metric)]


def _number(run: Any, metric: str, form: str) -> str:
    value = run.data.metrics.get(metric)
    return "" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
