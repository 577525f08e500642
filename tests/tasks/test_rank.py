"""What becomes of a model in the registry, where it was cut short."""

import json
from pathlib import Path
from types import SimpleNamespace
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


def test_slides_that_either_model_was_trained_on_do_not_count(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stub(name: str, value: Any) -> None:
        monkeypatch.setattr(module, name, value)

    # The image of each run's training, by the id it had there; "began" is where "tuned" started from.
    trained = {"champion": ("old", "1"), "tuned": ("t", "2"), "began": ("b", "3")}

    def record(run_id: str) -> Any:
        id_, digest = trained[run_id]
        data = SimpleNamespace(files=[{"id": id_, "image_sha256": digest}])
        start = "began" if run_id == "tuned" else None
        return SimpleNamespace(data={"training": data}, recipe={"training": {"start_from": start}})

    def artifact(run_id: str, name: str) -> Path:
        path = tmp_path / f"{run_id}-{name}"
        path.write_text(json.dumps({"training": [{"id": trained[run_id][0]}]}))
        return path

    stub("records", SimpleNamespace(fetch_record=record, fetch_artifact=artifact))
    # Slide A holds the champion's image under another id, B that of "tuned", C that of "began".
    digests = {"a": "1", "a2": "9", "b": "2", "c": "3", "d": "4", "d2": "5", "e": "6"}
    entries = [SimpleNamespace(id=id_, source_sha256=sha) for id_, sha in digests.items()]
    stub("images_of", lambda _: entries)
    validation = ["a", "a2", "b", "c", "d2", "e"]
    stub("samples", lambda *_: [SimpleNamespace(id=id_) for id_ in validation])
    rows = {id_: {"id": id_, "slide": id_[0].upper()} for id_ in digests}
    sides = {"training": [rows["d"]], "validation": [rows[id_] for id_ in validation]}
    (tmp_path / module.SPLIT).write_text(json.dumps(sides))
    stage = Stage("split", tmp_path, "d" * 64, cached=False, seconds=1.0)
    champion: Any = SimpleNamespace(run_id="champion")
    tuned = tiny.with_overrides(["training.start_from=tuned"])
    for recipe, unseen in ((tuned, ["e"]), (tiny, ["b", "c", "e"])):
        slides, found = module._unseen(champion, recipe, stage, stage, stage)
        assert [sample.id for sample in found] == unseen
        assert (slides["a2"], slides["d"]) == ("A", "D")
