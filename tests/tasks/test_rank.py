"""What becomes of a model in a real registry, also if a run is interrupted or somebody else decides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from nucleus_unet.data.sample import Sample
from nucleus_unet.engine.isolation import OutOfMemoryError
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import evaluation
from nucleus_unet.reports.champion import Comparison
from nucleus_unet.runs import registry, tracking
from tasks import rank as module
from tasks.evaluate import SCORES
from tasks.publish_model import LoggedModel, Trained

BETTER = Comparison(0.5, 0.6, low=0.05, high=0.15, images=20, slides=12)
WORSE = Comparison(0.6, 0.5, low=-0.15, high=-0.05, images=20, slides=12)
REASON = (
    "The difference in score is +0.1000; allowing for chance it lies between +0.0500 and +0.1500. It "
    "was measured on 20 images of 12 slides, by networks that do not know them."
)


class Registry:
    """Runs with models on a real tracking database; `rank` compares them as `compared` says."""

    def __init__(self, folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe, self.events = recipe, list[tuple[str, Any]]()
        self.compared: Callable[[], Comparison | str] = lambda: BETTER
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        monkeypatch.setattr(module, "create_markdown_artifact", lambda *_, **__: None)
        monkeypatch.setattr(
            module, "emit_event", lambda event, payload, **_: self.events.append((event, payload))
        )
        counts = dict.fromkeys(("true", "predicted", "split", "merged"), 1)
        table = {
            "score": 0.25,
            "interval": [0.2, 0.3],
            "by_threshold": [],
            "by_kind": {},
            "by_size": [],
        } | counts
        table |= {"losses": {}, "radius_bias_px": None}
        stages = folder / "home" / "stages" / "evaluate" / "digest"
        stages.mkdir(parents=True)
        (stages / SCORES).write_text(json.dumps(table))
        self.made = Trained(*[Stage(stages, "d" * 64, cached=False, seconds=1.0)] * 5)

    def rank(
        self, name: str, attempts: int = 1, of_sample: bool = False, weights: str = ""
    ) -> list[str]:
        """Rank the model of a new run; returns the place after each attempt."""
        with tracking.open_run("retrain", self.recipe, name, {}, "", name) as run:
            tracking.log_tags(run, {"weights.sha256": weights or name})
            experiment = MlflowClient().get_run(run.id).info.experiment_id
            model = MlflowClient().create_logged_model(experiment, "model", source_run_id=run.id)
            logged = LoggedModel(model.model_id, f"# Card of {name}")
            arguments = (self.recipe, self.made, logged, run)
            ranks = (module.rank.fn(*arguments, of_sample=of_sample) for _ in range(attempts))
            return [verdict.place for verdict in ranks]


@pytest.fixture
def ranked(home: Path, tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry(tmp_path, tiny, monkeypatch)
    monkeypatch.setattr(module, "_compared", lambda *_: made.compared())
    monkeypatch.setattr(module.records, "fetch_model", lambda _: (tiny, Path("model.keras")))
    return made


def champion() -> str | None:
    found = registry.champion()
    return found.number if found else None


def test_the_first_model_becomes_the_champion_if_it_is_better(ranked: Registry) -> None:
    ranked.compared = lambda: WORSE
    assert ranked.rank("worse") == ["challenger"]
    assert champion() is None


def test_the_first_champion_is_noted_once(ranked: Registry) -> None:
    assert ranked.rank("first", attempts=2) == ["champion", "champion"]
    [run] = MlflowClient().search_runs(["1"])
    tags = run.data.tags
    assert (tags["model.version"], tags["model.place"]) == ("1", "champion")
    assert tags["model.verdict"] == REASON  # also after the second attempt
    payload = {"said": f"Version 1: {REASON}", "url": ranked.events[0][1]["url"]}
    assert ranked.events == [("nucleus.champion.new", payload)]


def test_a_better_model_succeeds_the_champion_and_a_worse_one_does_not(ranked: Registry) -> None:
    ranked.rank("first")
    assert ranked.rank("better") == ["champion"]
    ranked.compared = lambda: WORSE
    assert ranked.rank("worse") == ["challenger"]
    assert champion() == "2"
    [version] = MlflowClient().search_model_versions("run_id = '" + _run_of("better") + "'")
    assert version.tags[registry.NOTE].endswith(f" retrain: {REASON}")
    assert version.description == "# Card of better"


def test_a_model_of_the_built_in_sample_is_not_compared(ranked: Registry) -> None:
    ranked.compared = lambda: pytest.fail("compared")
    assert ranked.rank("sample", of_sample=True) == ["challenger"]


def test_a_copy_of_the_champion_is_not_compared(ranked: Registry) -> None:
    ranked.rank("first")
    ranked.compared = lambda: pytest.fail("compared")
    assert ranked.rank("again", weights="first") == ["copy"]
    tags = MlflowClient().get_run(_run_of("again")).data.tags
    assert tags["model.verdict"] == "It has the same weights and settings as the champion."
    aliases = MlflowClient().get_registered_model(registry.NAME).aliases
    assert {name: str(number) for name, number in aliases.items()} == {"champion": "1"}


def test_a_promotion_by_hand_is_kept(ranked: Registry) -> None:
    ranked.rank("first")
    registry.promote_version("1", "ann", "by hand")
    found = registry.champion()
    assert found
    assert found.tags[registry.NOTE].endswith(" ann: by hand")


def test_a_rollback_is_kept_by_another_attempt(ranked: Registry) -> None:
    ranked.rank("first")
    places: list[str] = []
    with tracking.open_run("retrain", ranked.recipe, "second", {}, "", "second") as run:
        tracking.log_tags(run, {"weights.sha256": "second"})
        experiment = MlflowClient().get_run(run.id).info.experiment_id
        model = MlflowClient().create_logged_model(experiment, "model", source_run_id=run.id)
        for _ in range(2):
            logged = LoggedModel(model.model_id, "")
            verdict = module.rank.fn(ranked.recipe, ranked.made, logged, run)
            places.append(verdict.place)
            if len(places) == 1:
                registry.restore_champion("ann", "it merges nuclei")
    assert places == ["champion", "challenger"]
    assert champion() == "1"


def test_a_deleted_champion_is_not_replaced(ranked: Registry) -> None:
    ranked.rank("first")
    MlflowClient().delete_model_version(registry.NAME, "1")
    assert ranked.rank("second") == ["challenger"]
    assert champion() is None


def test_a_model_that_became_champion_during_the_comparison_is_compared_too(
    ranked: Registry,
) -> None:
    ranked.rank("first")
    compared = iter((BETTER, WORSE))

    def meanwhile() -> Comparison:
        if champion() == "1":  # a run on another machine, with another home
            _register("other")
            registry.promote_version("3", "retrain", "it is better")
        return next(compared)

    ranked.compared = meanwhile
    assert ranked.rank("second") == ["challenger"]
    assert next(compared, None) is None  # the second comparison was with the other model
    assert champion() == "3"


def test_a_promotion_in_the_last_moment_is_withdrawn_and_compared(
    ranked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked.rank("first")
    compared = iter((BETTER, WORSE))
    ranked.compared = lambda: next(compared)
    promote = registry.promote_version

    def late(number: str, who: str, why: str) -> registry.Version:
        if champion() == "1":
            _register("other")
            promote("3", "retrain", "it is better")
        return promote(number, who, why)

    monkeypatch.setattr(module.registry, "promote_version", late)
    assert ranked.rank("second") == ["challenger"]
    assert champion() == "3"
    assert [event for event, _ in ranked.events] == ["nucleus.champion.new"]  # of the first model


def test_a_champion_that_cannot_be_read_makes_a_challenger(
    ranked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked.rank("first")

    def fetch_model(run_id: str) -> None:
        raise NucleusError("Run x was made by another version of the code.")

    monkeypatch.setattr(module.records, "fetch_model", fetch_model)
    assert ranked.rank("second") == ["challenger"]
    tags = MlflowClient().get_run(_run_of("second")).data.tags
    assert tags["model.verdict"] == (
        "Version 1, the champion, cannot be compared: Run x was made by another version of the code."
    )


def test_too_little_memory_is_not_a_verdict(
    ranked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails, and another attempt compares the models."""
    ranked.rank("first")

    def fetch_model(run_id: str) -> None:
        raise OutOfMemoryError("The device has too little memory.")

    monkeypatch.setattr(module.records, "fetch_model", fetch_model)
    with pytest.raises(OutOfMemoryError):
        ranked.rank("second")


@pytest.mark.parametrize(("tune", "champion_scores"), [(True, 1), (False, 0)])
def test_both_models_are_scored_on_the_same_images_and_tuned_alike(
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

    def write_maps(
        _: Recipe, network: Path, images: Any, folder: Path, progress: object
    ) -> list[Path]:
        # The champion sees the nucleus less clearly than its cutoff of 0.5 asks for.
        sure = {"champion": 0.42, "new": 0.9}[network.read_text()]
        np.save(folder / "a.npy", (sure * (labels > 0))[..., None].astype(np.float32))
        assert [*images] == ["a"]
        return [folder / "a.npy"]

    monkeypatch.setattr(evaluation, "write_maps", write_maps)
    recipe = tiny.with_overrides([f"inference.tune={str(tune).lower()}"])
    for name in ("champion", "new"):
        (tmp_path / name).write_text(name)
    folder = home / "stages" / "merge_masks" / "digest"
    stage = Stage(folder, "d" * 64, cached=False, seconds=1.0)
    made = module._evaluated(
        {
            "champion": module._computing_like(recipe, (tiny, tmp_path / "champion"), tune=tune),
            "new": (recipe, tmp_path / "new"),
        },
        [sample],
        stage,
    )
    found = json.loads((made.folder / module.SCORES_OF_BOTH).read_text())
    assert found == {"champion": {"a": champion_scores}, "new": {"a": 1}}
    names = {path.name for path in made.folder.iterdir()}
    assert names == {"scores.json", "disagreement.png", "stage.json"}


def _run_of(name: str) -> str:
    [run] = MlflowClient().search_runs(["1"], f"tags.work = '{name}'")
    return str(run.info.run_id)


def _register(name: str) -> None:
    """Register the model of a run that another process made."""
    run = MlflowClient().create_run("1")
    model = MlflowClient().create_logged_model("1", "model", source_run_id=run.info.run_id)
    made = tracking.Run(run.info.run_id, "")
    tracking.log_tags(made, {"weights.sha256": name})
    registry.register(made, model.model_id, {})
