"""Lists of logged runs and of versions of the model, as rows of text."""

from datetime import datetime

from nucleus_unet.runs import registry
from nucleus_unet.runs.records import data_name
from nucleus_unet.runs.store import PatientClient, experiment_id

RUN_COLUMNS = ("run", "kind", "recipe", "data", "score", "state", "started")
VERSION_COLUMNS = ("version", "place", "recipe", "score", "run", "why")


def recent_runs(most: int) -> list[tuple[str, ...]]:
    """The latest runs, the latest first.

    Parameters
    ----------
    most : int
        Largest number of runs.

    Returns
    -------
    list of tuple of str
        One row for each run, with the `RUN_COLUMNS`. Only a training has a score.
    """
    client = PatientClient()
    found = client.search_runs([experiment_id(client)], max_results=most)
    return [
        (
            run.info.run_id,
            run.data.tags.get("kind", ""),
            run.data.tags.get("recipe", ""),
            data_name(run),
            _score(run.data.metrics.get("validation/score")),
            run.info.status.lower(),
            f"{datetime.fromtimestamp(run.info.start_time / 1000):%Y-%m-%d %H:%M}",
        )
        for run in found
    ]


def model_versions() -> list[tuple[str, ...]]:
    """All versions of the registered model, the latest first.

    Returns
    -------
    list of tuple of str
        One row for each version, with the `VERSION_COLUMNS`. The reason is why the version became the
        champion, or the verdict of its run.
    """
    client = PatientClient()
    found = client.search_model_versions(f"name = '{registry.NAME}'")
    if not found:
        return []
    places = client.get_registered_model(registry.NAME).aliases
    by_number = {str(number): place for place, number in places.items()}
    return [
        (
            str(one.version),
            by_number.get(str(one.version), ""),
            one.tags.get("recipe", ""),
            _score(one.tags.get("score")),
            str(one.run_id),
            one.tags.get(registry.NOTE)
            or client.get_run(str(one.run_id)).data.tags.get("model.verdict", ""),
        )
        for one in sorted(found, key=lambda one: -int(one.version))
    ]


def _score(value: float | str | None) -> str:
    return "" if value is None else f"{float(value):.4f}"
