"""The figures of logged runs, as the README's table: python benchmarks/runs.py RUN_ID ..."""

import argparse

from nucleus_unet.home import prepare_environment

STAGES = ("ingest", "merge_masks", "train", "evaluate", "predict", "upsample", "encode")


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
    rows["peak memory of training, GB"] = [_number(run, "peak_memory_gb", ".1f") for run in runs]
    rows["best epoch"] = [_number(run, "best_epoch", ".0f") for run in runs]
    rows["validation mean IoU, original size"] = [
        _number(run, "validation/mean_iou", ".3f") for run in runs
    ]
    rows["nuclei submitted"] = [_number(run, "submission/nuclei", ".0f") for run in runs]
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")
        if name == "recipe":
            print("|---" * (len(runs) + 1) + "|")
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "val_mean_iou")
        values = " ".join(f"{point.value:.3f}" for point in history)
        print(f"\n{run.data.tags['recipe']}, validation mean IoU by epoch: {values}")


def _number(run, metric, form):  # type: ignore[no-untyped-def]
    value = run.data.metrics.get(metric)
    return "" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
