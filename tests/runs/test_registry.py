import uuid
from pathlib import Path
from typing import Any

import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty registry, in an MLflow database of its own."""
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from nucleus_unet.runs import registry

    return registry


@pytest.fixture
def versions(registry: Any, tiny: Recipe) -> list[Any]:
    """Three registered models."""
    from mlflow import MlflowClient

    from nucleus_unet.runs import tracking

    made = []
    for index in range(3):
        with tracking.open_run("retrain", tiny, "cells", {}, "", uuid.uuid4().hex) as run:
            experiment = MlflowClient().get_run(run.id).info.experiment_id
            logged = MlflowClient().create_logged_model(experiment, "model", source_run_id=run.id)
            made.append(registry.register(run, logged.model_id, {"score": f"0.{index}"}))
            assert registry.register(run, logged.model_id, {}) == made[-1]  # once
    return made


def test_versions_are_numbered_and_know_their_run(versions: list[Any]) -> None:
    assert [version.number for version in versions] == ["1", "2", "3"]
    assert [version.tags["score"] for version in versions] == ["0.0", "0.1", "0.2"]
    assert len({version.run_id for version in versions}) == 3


def test_the_champion_is_whom_promotion_named_last(registry: Any, versions: list[Any]) -> None:
    assert registry.champion() is None
    registry.promote_version("1", "ann", "the first")
    registry.promote_version("3", "bob", "sees large nuclei")
    found = registry.champion()
    assert (found.number, found.run_id) == ("3", versions[2].run_id)
    assert found.tags["champion.note"].endswith(" bob: sees large nuclei")
    assert registry.run_of("champion") == versions[2].run_id
    assert registry.run_of("a run") == "a run"


def test_rolling_back_goes_back_step_by_step(registry: Any, versions: list[Any]) -> None:
    for number in ("1", "2", "3", "3", "2"):
        registry.promote_version(number, "ann", "better")
    assert registry.restore_champion("bob", "merges").number == "3"
    assert registry.champion().tags["champion.note"].endswith(" bob: merges")
    assert registry.restore_champion("bob", "merges too").number == "2"
    assert registry.restore_champion("bob", "and that").number == "1"
    with pytest.raises(NucleusError, match="no version was the champion before"):
        registry.restore_champion("bob", "and so on")
    assert registry.champion().number == "1"


def test_rolling_back_knows_champions_of_mlflow_s_page_and_passes_over_deleted_ones(
    registry: Any, versions: list[Any]
) -> None:
    from mlflow import MlflowClient

    registry.promote_version("1", "ann", "better")
    MlflowClient().set_registered_model_alias("nucleus-unet", "champion", "2")
    registry.promote_version("3", "ann", "better")
    assert registry.restore_champion("bob", "merges").number == "2"
    registry.promote_version("3", "ann", "better")
    MlflowClient().delete_model_version("nucleus-unet", "2")
    assert registry.restore_champion("bob", "merges").number == "1"


@pytest.mark.parametrize("cut", ["_remember", "_crown"])
def test_a_rollback_that_was_cut_short_is_done_by_the_next(
    registry: Any, versions: list[Any], monkeypatch: pytest.MonkeyPatch, cut: str
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


def test_a_challenger_leaves_the_champion(registry: Any, versions: list[Any]) -> None:
    from mlflow import MlflowClient

    registry.promote_version("1", "ann", "the first")
    registry.challenge(versions[1])
    assert registry.champion().number == "1"
    assert MlflowClient().get_model_version_by_alias("nucleus-unet", "challenger").version == 2
    registry.promote_version("2", "ann", "better after all")
    assert list(MlflowClient().get_registered_model("nucleus-unet").aliases) == ["champion"]


def test_who_may_not_delete_aliases_promotes_all_the_same(
    registry: Any, versions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def refuse(*_: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    registry.promote_version("1", "ann", "the first")
    registry.challenge(versions[1])
    monkeypatch.setattr(MlflowClient, "delete_registered_model_alias", refuse)
    registry.promote_version("2", "bob", "better after all")
    assert registry.champion().number == "2"
    assert registry.restore_champion("ann", "merges").number == "1"


def test_a_registry_that_fails_is_not_taken_for_one_that_has_the_model(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("the disk is full")

    monkeypatch.setattr(MlflowClient, "create_registered_model", fail)
    with pytest.raises(MlflowException, match="the disk is full"):
        registry.register(registry.Run("0" * 32, ""), "m", {})


def test_what_is_not_there_is_named(registry: Any, versions: list[Any]) -> None:
    with pytest.raises(NucleusError, match=r"^no version 7 of .*: there are 1, 2, 3$"):
        registry.promote_version("7", "ann", "why not")
    with pytest.raises(NucleusError, match="there is no champion"):
        registry.run_of("champion")
    with pytest.raises(NucleusError, match="no version was the champion before"):
        registry.restore_champion("ann", "why not")
