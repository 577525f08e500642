import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import registry
from nucleus_unet.runs.registry import Version
from nucleus_unet.runs.tracking import Run


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty registry, in an MLflow database of its own."""
    shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def versions() -> list[Version]:
    """Three registered models."""
    client, made = MlflowClient(), []
    experiment = client.create_experiment("models")
    for index in range(3):
        run = Run(client.create_run(experiment).info.run_id, "")
        logged = client.create_logged_model(experiment, "model", source_run_id=run.id)
        made.append(registry.register(run, logged.model_id, {"score": f"0.{index}"}))
        assert registry.register(run, logged.model_id, {}) == made[-1]  # registered once
    return made


NO_OTHER = r"^No version was the champion before\. Choose a version with nucleus promote\.$"


def champion() -> Version:
    found = registry.champion()
    assert found
    return found


def test_versions_are_numbered_and_know_their_run(versions: list[Version]) -> None:
    assert [version.number for version in versions] == ["1", "2", "3"]
    assert [version.tags["score"] for version in versions] == ["0.0", "0.1", "0.2"]
    assert len({version.run_id for version in versions}) == 3


def test_the_champion_is_the_version_that_was_promoted_last(versions: list[Version]) -> None:
    assert registry.champion() is None
    registry.promote_version("1", "ann", "the first")
    registry.promote_version("3", "bob", "sees large nuclei")
    found = champion()
    assert (found.number, found.run_id) == ("3", versions[2].run_id)
    assert found.tags["champion.note"].endswith(" bob: sees large nuclei")
    assert registry.run_of("champion") == versions[2].run_id
    assert registry.run_of("a run") == "a run"


def test_champions_are_restored_step_by_step(versions: list[Version]) -> None:
    for number in ("1", "2", "3", "3", "2"):
        registry.promote_version(number, "ann", "better")
    assert registry.restore_champion("bob", "merges").number == "3"
    assert champion().tags["champion.note"].endswith(" bob: merges")
    assert registry.restore_champion("bob", "merges too").number == "2"
    assert registry.restore_champion("bob", "and that").number == "1"
    with pytest.raises(NucleusError, match=NO_OTHER):
        registry.restore_champion("bob", "and so on")
    assert champion().number == "1"


def test_champions_of_mlflow_s_pages_are_restored_and_deleted_ones_skipped(
    versions: list[Version],
) -> None:
    registry.promote_version("1", "ann", "better")
    MlflowClient().set_registered_model_alias("nucleus-unet", "champion", "2")
    registry.promote_version("3", "ann", "better")
    assert registry.restore_champion("bob", "merges").number == "2"
    registry.promote_version("3", "ann", "better")
    MlflowClient().delete_model_version("nucleus-unet", "2")
    assert registry.restore_champion("bob", "merges").number == "1"


@pytest.mark.parametrize("cut", ["_remember", "_crown"])
def test_an_interrupted_restoration_is_finished_by_the_next(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    registry.promote_version("1", "ann", "the first")
    registry.promote_version("2", "ann", "better")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, cut, killed)
        with pytest.raises(KeyboardInterrupt):
            registry.restore_champion("bob", "merges")
    assert registry.restore_champion("bob", "merges").number == "1"


def test_a_challenger_does_not_replace_the_champion(versions: list[Version]) -> None:
    registry.promote_version("1", "ann", "the first")
    registry.challenge(versions[1])
    assert champion().number == "1"
    assert MlflowClient().get_model_version_by_alias("nucleus-unet", "challenger").version == 2
    registry.promote_version("2", "ann", "better after all")
    assert list(MlflowClient().get_registered_model("nucleus-unet").aliases) == ["champion"]


def test_a_user_who_may_not_delete_aliases_can_promote(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    registry.promote_version("1", "ann", "the first")
    registry.challenge(versions[1])
    monkeypatch.setattr(MlflowClient, "delete_registered_model_alias", refuse)
    registry.promote_version("2", "bob", "better after all")
    assert champion().number == "2"
    assert registry.restore_champion("ann", "merges").number == "1"


def test_a_registry_that_fails_is_not_mistaken_for_one_that_has_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("the disk is full")

    monkeypatch.setattr(MlflowClient, "create_registered_model", fail)
    with pytest.raises(MlflowException, match="the disk is full"):
        registry.register(Run("0" * 32, ""), "m", {})


def test_a_missing_version_is_named(versions: list[Version]) -> None:
    with pytest.raises(NucleusError) as caught:
        registry.promote_version("7", "ann", "why not")
    assert str(caught.value) == "The model nucleus-unet has no version 7. Its versions: 1, 2, 3."


def test_a_missing_version_if_there_is_none() -> None:
    with pytest.raises(NucleusError) as caught:
        registry.promote_version("1", "ann", "why not")
    said = "The model nucleus-unet has no version 1. Its versions: none yet."
    assert str(caught.value) == said


def test_without_a_champion(versions: list[Version], tiny: Recipe) -> None:
    assert registry.run_of("champion") == "builtin"
    from_champion = tiny.with_overrides(["training.start_from=champion"])
    assert registry.with_start(from_champion).training.start_from == "builtin"
    registry.promote_version("2", "ann", "better")
    assert registry.with_start(from_champion).training.start_from == versions[1].run_id
    assert registry.with_start(tiny) is tiny


def test_nothing_to_restore(versions: list[Version]) -> None:
    with pytest.raises(NucleusError, match=NO_OTHER):
        registry.restore_champion("ann", "why not")


def test_whether_there_ever_was_a_champion(versions: list[Version]) -> None:
    assert not registry.had_champion()
    registry.promote_version("1", "ann", "the first")
    assert registry.had_champion()
    MlflowClient().delete_model_version("nucleus-unet", "1")
    assert registry.champion() is None
    assert registry.had_champion()


def test_an_empty_registry_never_had_a_champion() -> None:
    assert registry.champion() is None
    assert not registry.had_champion()


def test_which_champion_a_version_succeeds(versions: list[Version]) -> None:
    registry.promote_version("1", "ann", "the first")
    assert registry.succeeds("1", None)
    assert not registry.succeeds("1", "2")
    assert not registry.succeeds("2", "1")  # it is not the champion
    registry.promote_version("3", "ann", "better")
    assert registry.succeeds("3", "1")
    assert not registry.succeeds("3", "2")
    assert not registry.succeeds("3", None)
    # Somebody promoted version 2 before version 1 became the champion again.
    registry.promote_version("2", "bob", "by hand")
    registry.promote_version("1", "ann", "better")
    assert not registry.succeeds("1", "3")
    assert registry.succeeds("1", "2")


def test_a_champion_of_mlflow_s_pages_is_succeeded_too(versions: list[Version]) -> None:
    registry.promote_version("1", "ann", "the first")
    MlflowClient().set_registered_model_alias("nucleus-unet", "champion", "2")
    registry.promote_version("3", "ann", "better")
    assert registry.succeeds("3", "2")


def test_the_first_champion_may_be_chosen_in_mlflow_s_pages(versions: list[Version]) -> None:
    MlflowClient().set_registered_model_alias("nucleus-unet", "champion", "2")
    assert registry.succeeds("2", None)


def test_where_a_model_comes_from(tmp_path: Path) -> None:
    client = MlflowClient()
    location = f"file://{tmp_path}/artifacts"
    tags = {"recipe": "best", "source.commit": 40 * "c", "source.dirty": "true"}
    tags["model.files"] = "{}"
    run_id = client.create_run(client.create_experiment("models", location), tags=tags).info.run_id
    client.log_metric(run_id, "validation/score", 0.5)
    with pytest.raises(NucleusError, match=rf"^Run {run_id} has no artifact model_card\.md\."):
        registry.fetch_origin(run_id)
    client.log_text(run_id, "# Card", "model_card.md")
    origin = registry.fetch_origin(run_id)
    assert origin.description.startswith(f"run {run_id}: best, trained on ")
    assert origin.description.endswith(", score 0.500 on its validation images")
    assert origin.commit == f"{40 * 'c'} with uncommitted changes"
    assert (origin.run_id, origin.card) == (run_id, "# Card")


def test_where_the_builtin_model_comes_from() -> None:
    origin = registry.fetch_origin("builtin")
    assert origin.description.startswith("the built-in model: best of revision ")
    assert origin.card.startswith("# Nuclei with the recipe best\n")
    assert len(origin.commit) == 40
