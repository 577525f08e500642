import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from mlflow import MlflowClient

from nucleus_unet.runs import listing, registry, tracking

OpenRun = Callable[..., AbstractContextManager[tracking.Run]]


def test_nothing_yet(client: MlflowClient) -> None:
    assert listing.recent_runs(5) == []
    assert listing.model_versions() == []


def test_runs_and_versions_the_latest_first(opened: OpenRun, client: MlflowClient) -> None:
    ids = []
    for score in (0.25, 0.5):
        with opened() as run:
            tracking.log_metrics(run, {"validation/score": score})
            tracking.log_tags(run, {"model.verdict": f"It scores {score}."})
            experiment = client.get_run(run.id).info.experiment_id
            model = client.create_logged_model(experiment, "model", source_run_id=run.id)
            registry.register(run, model.model_id, {"recipe": "tiny", "score": str(score)})
            ids.append(run.id)
    registry.challenge(registry.Version("2", ids[1], {}))
    registry.promote_version("1", "ann", "it is ours")
    latest, first = listing.recent_runs(5)
    assert (latest[0], first[0]) == (ids[1], ids[0])
    assert latest[1:6] == ("retrain", "tiny", "", "0.5000", "finished")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", latest[6])
    assert [row[0] for row in listing.recent_runs(1)] == [ids[1]]
    second, promoted = listing.model_versions()
    assert second == ("2", "challenger", "tiny", "0.5000", ids[1], "It scores 0.5.")
    assert promoted[:5] == ("1", "champion", "tiny", "0.2500", ids[0])
    assert promoted[5].endswith(" ann: it is ours")
