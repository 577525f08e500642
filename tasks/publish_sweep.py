"""Log the trials of a sweep and its best recipe."""

from collections.abc import Sequence

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import parallel_coordinates
from nucleus_unet.runs import Trial, tracking
from tasks.reporting import show, uncached_task


@uncached_task("log the trials of the sweep")
def publish_sweep(trials: Sequence[Trial], best: Trial, winner: Recipe, run: tracking.Run) -> None:
    """Log a table and a picture of the trials, and the recipe of the best trial as a file."""
    rows = [
        {
            **trial.values,
            "epochs": trial.epochs,
            "score": "failed" if trial.failed else round(trial.score, 4),
            "run": trial.run_id or "",
        }
        for trial in trials
    ]
    create_table_artifact(rows, key="sweep", description="Trials in the order in which they ran")
    tracking.log_json(run, "trials.json", rows)
    lines = [
        ([*trial.values.values(), str(trial.epochs)], trial.score)
        for trial in trials
        if not trial.failed
    ]
    picture = parallel_coordinates([*best.values, "epochs"], lines)
    show(picture, "trials", "One line for each trial; better trials are brighter")
    tracking.log_bytes(run, "trials.png", picture)
    tracking.log_bytes(run, "winner.toml", winner.to_toml().encode())
    tracking.log_metrics(run, {"best score": best.score})
    get_run_logger().info("best of %d trials: %s", len(trials), " ".join(best.changes))
