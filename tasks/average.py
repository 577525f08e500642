"""Join the networks of all folds into one, whose maps are the mean of theirs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nucleus_unet.engine import EVENTS, EventLog, Stage, epochs, run_in_worker
from nucleus_unet.files import sha256_file
from nucleus_unet.network import KERAS_LIBRARIES
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import tracking
from tasks.reporting import StageResult, cached_stage, finished, uncached_task
from tasks.train import BY_EPOCH, NETWORK_FILE


@uncached_task("join the folds of {recipe.name}")
def average(recipe: Recipe, models: Sequence[Stage], run: tracking.Run) -> StageResult:
    """Join the networks, and log the mean of their curves to MLflow."""
    networks, threads = [one.folder / NETWORK_FILE for one in models], recipe.training.cpu_threads
    events = [EventLog(one.folder / EVENTS).new() for one in models]

    def build(folder: Path) -> None:
        job = (networks, threads, folder / NETWORK_FILE)
        run_in_worker(threads, "nucleus_unet.network.ensemble:write_mean", *job)
        log = EventLog(folder / EVENTS)
        for event in mean_events(events):
            log.tell(**event)

    stage = cached_stage(
        models[0].home,
        "average",
        {"networks": [sha256_file(network) for network in networks]},
        build,
        code=["network.ensemble", "engine.events", __name__],
        libraries=KERAS_LIBRARIES,
    )
    for epoch in epochs(EventLog(stage.folder / EVENTS).new()):
        metrics = {f"{BY_EPOCH}/{key}": epoch[key] for key in epoch.keys() - {"event", "epoch"}}
        tracking.log_metrics(run, metrics, step=epoch["epoch"])
    return finished(stage, f"joined {len(models)} networks")


def mean_events(events: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The events of several trainings as those of one: mean curves, added times, largest memory.

    An epoch that not all trainings reached is left out.
    """
    starts, ends = (
        [next(e for e in own if e["event"] == kind) for own in events] for kind in ("start", "end")
    )
    made = []
    for together in zip(*(epochs(own) for own in events), strict=False):
        keys = together[0].keys() - {"event", "epoch", "seconds"}
        means = {key: sum(one[key] for one in together) / len(together) for key in keys}
        seconds = sum(one["seconds"] for one in together)
        made.append({"event": "epoch", "epoch": together[0]["epoch"], **means, "seconds": seconds})
    last = max(end["kept_epoch"] for end in ends)
    peak = max(end["peak_memory_bytes"] for end in ends)
    parameters = sum(start["parameters"] for start in starts)
    return [
        {**starts[0], "parameters": parameters},
        *made,
        {"event": "end", "kept_epoch": last, "peak_memory_bytes": peak},
    ]
