"""What becomes of a model in the registry, where it was cut short."""

import json
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.recipe import Recipe
from nucleus_unet.stages import Stage
from tasks import rank as module


def test_an_attempt_after_the_promotion_leaves_it_as_it_is(
    home: Path, tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow import MlflowClient

    from nucleus_unet import registry, tracking

    pages: list[str] = []
    monkeypatch.setattr(module, "create_markdown_artifact", lambda page, **_: pages.append(page))
    events: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(
        module, "emit_event", lambda event, payload, **_: events.append((event, payload))
    )
    (tmp_path / module.BY_IMAGE).write_text(json.dumps([{"id": "a", "score": 0.25}]))
    scores = Stage("evaluate", tmp_path, "d" * 64, cached=False, seconds=1.0)
    with tracking.open_run("retrain", tiny, "cells", {}, "", "work") as run:
        experiment = MlflowClient().get_run(run.id).info.experiment_id
        logged = MlflowClient().create_logged_model(experiment, "model", source_run_id=run.id)
        arguments: Any = (tiny, None, None, None, scores, scores, logged.model_id, run)
        assert module.rank.fn(*arguments) == registry.CHAMPION
        registry.promote("1", "ann", "by hand")
        assert module.rank.fn(*arguments) == registry.CHAMPION
    found = registry.champion()
    assert found is not None
    assert found.tags["champion.note"].endswith(" ann: by hand")
    assert pages == ["# Version 1: champion\n\nIt is the first."]
    told = {"said": "Version 1: It is the first.", "url": run.url}
    assert events == [("nucleus.champion.new", told)]
    assert MlflowClient().get_run(run.id).data.tags["model.place"] == "champion"
