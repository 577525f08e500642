"""What becomes of a model in the registry, where it was cut short."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nucleus_unet.data.sample import Sample
from nucleus_unet.engine.isolation import OutOfMemoryError
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe
from tasks import evaluate, split
from tasks import rank as module
from tasks.evaluate import SCORES
from tasks.publish import Trained
from tasks.split import validation_seen

RUN: Any = SimpleNamespace(id="0" * 32)


def test_an_attempt_after_the_promotion_leaves_it_as_it_is(
    home: Path, tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow import MlflowClient

    from nucleus_unet.runs import registry, tracking

    pages: list[str] = []
    monkeypatch.setattr(module, "create_markdown_artifact", lambda page, **_: pages.append(page))
    events: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(
        module, "emit_event", lambda event, payload, **_: events.append((event, payload))
    )
    counts = dict.fromkeys(("true", "predicted", "split", "merged"), 1)
    table = {"score": 0.25, "by_threshold": [], "by_kind": {}} | counts
    (tmp_path / SCORES).write_text(json.dumps(table))
    scores = Stage("evaluate", tmp_path, "d" * 64, cached=False, seconds=1.0)
    with tracking.open_run("retrain", tiny, "cells", {}, "", "work") as run:
        experiment = MlflowClient().get_run(run.id).info.experiment_id
        logged = MlflowClient().create_logged_model(experiment, "model", source_run_id=run.id)
        made = Trained(scores, scores, scores, scores, scores)
        arguments = (tiny, made, logged.model_id, run)
        assert module.rank.fn(*arguments) == registry.CHAMPION
        registry.promote_version("1", "ann", "by hand")
        assert module.rank.fn(*arguments) == registry.CHAMPION
    found = registry.champion()
    assert found is not None
    assert found.tags["champion.note"].endswith(" ann: by hand")
    assert pages == ["# Version 1: champion\n\nIt is the first."]
    told = {"said": "Version 1: It is the first.", "url": run.url}
    assert events == [("nucleus.champion.new", told)]
    tags = MlflowClient().get_run(run.id).data.tags
    assert (tags["model.version"], tags["model.place"]) == ("1", "champion")
    assert tags["model.verdict"].endswith(" ann: by hand")


def test_what_an_operator_took_back_is_not_done_again(
    home: Path, tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow import MlflowClient

    from nucleus_unet.runs import registry, tracking

    monkeypatch.setattr(module, "create_markdown_artifact", lambda page, **_: None)
    monkeypatch.setattr(module, "emit_event", lambda event, **_: told.append(event))
    monkeypatch.setattr(module, "_verdict", lambda *_: ("champion", "Difference +0.05"))
    monkeypatch.setattr(module, "scores_of", lambda _: {"score": 0.25})
    told: list[str] = []
    stage = Stage("evaluate", tmp_path, "d" * 64, cached=False, seconds=1.0)
    places = []
    for attempts in (1, 2, 1):
        with tracking.open_run("retrain", tiny, "cells", {}, "", str(len(places))) as run:
            experiment = MlflowClient().get_run(run.id).info.experiment_id
            model = MlflowClient().create_logged_model(experiment, "model", source_run_id=run.id)
            for _ in range(attempts):
                place = module.rank.fn(tiny, Trained(*[stage] * 5), model.model_id, run)
                places.append(place)
                if len(places) == 2:
                    registry.restore_champion("ann", "merges")
                if len(places) == 3:
                    MlflowClient().delete_model_version(registry.NAME, "1")
    # The first; better; rolled back since; the champion is gone.
    assert places == ["champion", "champion", "challenger", "challenger"]
    assert len(told) == 2
    assert registry.champion() is None
    verdict = MlflowClient().get_run(run.id).data.tags["model.verdict"]
    assert verdict == "The champion was deleted: promote a version, or roll back."


def test_the_champion_itself_is_not_compared(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Stage("train", tmp_path / "made", "d" * 64, cached=True, seconds=1.0)
    monkeypatch.setattr(module.records, "fetch_model", lambda _: (tiny, tmp_path / "model.keras"))
    weights = {"champion": "those", RUN.id: "those"}
    monkeypatch.setattr(
        module.records, "require_run", lambda run_id: {"weights.sha256": weights[run_id]}
    )
    unseen: list[str] = []
    monkeypatch.setattr(module, "_unseen", lambda *_: ({}, unseen))
    champion: Any = SimpleNamespace(run_id="champion")
    other = tiny.with_overrides(["inference.cutoff=0.4"])
    for recipe, place, said in (
        (tiny, "copy", "the champion once more"),
        (other, "challenger", "trained on each validation"),
    ):
        found, why = module._verdict(champion, recipe, Trained(*[made] * 5), RUN)
        assert found == place
        assert said in why
    weights[RUN.id] = "others"
    assert "trained on each" in module._verdict(champion, tiny, Trained(*[made] * 5), RUN)[1]


def test_too_little_memory_is_no_verdict(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails, and another attempt compares them."""

    def fetch_model(run_id: str) -> None:
        raise OutOfMemoryError("not enough memory")

    monkeypatch.setattr(module.records, "fetch_model", fetch_model)
    stage = Stage("train", tmp_path, "d" * 64, cached=True, seconds=1.0)
    champion: Any = SimpleNamespace(run_id="champion")
    with pytest.raises(OutOfMemoryError):
        module._verdict(champion, tiny, Trained(*[stage] * 5), RUN)


@pytest.mark.parametrize(("tune", "champion_scores"), [(True, 1), (False, 0)])
def test_both_are_judged_on_the_same_images_with_cutoffs_tuned_on_these(
    home: Path,
    tiny: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tune: bool,
    champion_scores: int,
) -> None:
    labels = np.zeros((8, 9), np.uint16)
    labels[2:6, 2:6] = 1
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "image.npy", np.zeros((8, 9, 3), np.uint8))
    sample = Sample("a", tmp_path / "image.npy", tmp_path / "labels.npy", "fluorescence")

    def write_maps(_: Recipe, network: Path, images: Any, to: Path) -> list[Path]:
        # The champion sees the nucleus less clearly than its cutoff of 0.5 asks for.
        sure = {"champion": 0.42, "new": 0.9}[network.read_text()]
        np.save(to / "a.npy", np.float32(sure * (labels > 0))[..., None])
        assert [*images] == ["a"]
        return [to / "a.npy"]

    monkeypatch.setattr(evaluate, "write_maps", write_maps)
    recipe = tiny.with_overrides([f"inference.tune={str(tune).lower()}"])
    for name in ("champion", "new"):
        (tmp_path / name).write_text(name)
    stage = Stage("merge_masks", tmp_path, "d" * 64, cached=False, seconds=1.0)
    made = module._evaluated(
        (tiny, tmp_path / "champion"), (recipe, tmp_path / "new"), [sample], stage
    )
    found = json.loads((made.folder / module.SCORES_OF_BOTH).read_text())
    assert found == {"champion": {"a": champion_scores}, "new": {"a": 1}}
    names = {path.name for path in made.folder.iterdir()}
    assert names == {"scores.json", "disagreement.png", "stage.json"}


def test_slides_that_either_model_was_trained_on_do_not_count(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    logged = SimpleNamespace(fetch_record=record, fetch_artifact=artifact)
    monkeypatch.setattr(split, "records", logged)
    # Slide A holds the champion's image under another id, B that of "tuned", C that of "began".
    digests = {"a": "1", "a2": "9", "b": "2", "c": "3", "d": "4", "d2": "5", "e": "6"}
    entries = [SimpleNamespace(id=id_, source_sha256=sha) for id_, sha in digests.items()]
    monkeypatch.setattr(split, "images_of", lambda _: entries)
    validation = ["a", "a2", "b", "c", "d2", "e"]
    held_out = [SimpleNamespace(id=id_) for id_ in validation]
    monkeypatch.setattr(module, "samples", lambda *_: held_out)
    rows = {id_: {"id": id_, "slide": id_[0].upper()} for id_ in digests}
    sides = {"training": [rows["d"]], "validation": [rows[id_] for id_ in validation]}
    (tmp_path / split.SPLIT_FILE).write_text(json.dumps(sides))
    stage = Stage("split", tmp_path, "d" * 64, cached=False, seconds=1.0)
    champion: Any = SimpleNamespace(run_id="champion")
    tuned = tiny.with_overrides(["training.start_from=tuned"])
    for recipe, unseen in ((tuned, ["e"]), (tiny, ["b", "c", "e"])):
        slides, found = module._unseen(champion, recipe, Trained(*[stage] * 5))
        assert [sample.id for sample in found] == unseen
        assert (slides["a2"], slides["d"]) == ("A", "D")
    assert validation_seen(stage, stage, None) is None
    assert validation_seen(stage, stage, "began") == (
        "1 of 6 validation images are of slides of which run began was trained, from which this "
        "training starts: scores are flattered"
    )
    assert str(validation_seen(stage, stage, "tuned")).startswith("2 of 6 ")

    def gone(_: str) -> Any:
        raise NucleusError("no run began at http://127.0.0.1:5000")

    logged.fetch_record = gone
    assert str(validation_seen(stage, stage, "began")).endswith(
        "run began was trained on: no run began at http://127.0.0.1:5000"
    )
