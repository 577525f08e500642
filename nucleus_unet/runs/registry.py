"""Versions of the model in MLflow's registry, and which of them is the champion."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from nucleus_unet.engine.home import without_credentials
from nucleus_unet.errors import NucleusError
from nucleus_unet.runs.tracking import ABSENT, Run

NAME = "nucleus-unet"
CHAMPION, CHALLENGER, COPY = "champion", "challenger", "copy"
"""What a version is; a copy has the champion's weights and cutoffs."""
CHAMPIONS = "champions"
"""Tag of the registered model: the numbers of its champions so far, in JSON, the latest last."""
NOTE = "champion.note"
"""Tag of a version that is or was the champion: when, by whom and why."""


@dataclass(frozen=True)
class Version:
    """A registered model: its number, the run that trained it, and its tags."""

    number: str
    run_id: str
    tags: Mapping[str, str]


def register(run: Run, model_id: str, tags: Mapping[str, str]) -> Version:
    """Register a logged model; once, however often it is asked for."""
    client = MlflowClient()
    try:
        client.create_registered_model(NAME, description="Finds cell nuclei in microscope images.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{NAME}' and run_id = '{run.id}'"):
        return _version(found)
    uri = f"models:/{model_id}"
    made = client.create_model_version(NAME, uri, run.id, dict(tags), model_id=model_id)
    return _version(made)


def champion() -> Version | None:
    """The version that predicts unless another is asked for; None before any."""
    found = _if_there(lambda: MlflowClient().get_model_version_by_alias(NAME, CHAMPION))
    return _version(found) if found else None


def had_champion() -> bool:
    """Whether a version was the champion, be it deleted since."""
    return bool(_champions())


def run_of(model: str) -> str:
    """The run that logged a model, which is named by it, or is the ``champion``.

    Raises
    ------
    NucleusError
        There is no champion.
    """
    if model != CHAMPION:
        return model
    if found := champion():
        return found.run_id
    raise NucleusError(
        f"there is no champion at {without_credentials(mlflow.get_tracking_uri())}: retrain, promote a "
        "version, name a run with --model, or set NUCLEUS_HOME to where one is"
    )


def challenge(version: Version) -> None:
    """Mark a version as the latest that is not better than the champion."""
    MlflowClient().set_registered_model_alias(NAME, CHALLENGER, version.number)


def promote_version(number: str, who: str, why: str) -> Version:
    """Make a version the champion, and note who did so, when and why.

    Raises
    ------
    NucleusError
        There is no such version.
    """
    version, now, before = require_version(number), champion(), _champions()
    _crown(number, who, why)
    for one in (now.number if now else number, number):  # MLflow's page can make champions too
        if before[-1:] != [one]:
            before.append(one)
    _remember(before)
    _unmark(number)
    return version


def restore_champion(who: str, why: str) -> Version:
    """Make that version the champion which was so before; again and again it goes further back.

    Raises
    ------
    NucleusError
        None was before it.
    """
    now, there = champion(), _versions()
    before = [number for number in _champions() if number in there]
    while now and before[-1:] == [now.number]:
        before.pop()
    if not before:
        raise NucleusError("no version was the champion before: choose one for nucleus promote")
    _remember(before)  # first: cut short after it, the next one does the same
    _crown(before[-1], who, why)
    _unmark(before[-1])
    return there[before[-1]]


def require_version(number: str) -> Version:
    """A version by its number.

    Raises
    ------
    NucleusError
        There is no such version.
    """
    found = _versions()
    if number not in found:
        numbers = ", ".join(sorted(found, key=int)) or "none yet"
        raise NucleusError(f"no version {number} of the model {NAME}: there are {numbers}")
    return found[number]


def _versions() -> dict[str, Version]:
    found = MlflowClient().search_model_versions(f"name = '{NAME}'")
    return {str(one.version): _version(one) for one in found}


def _crown(number: str, who: str, why: str) -> None:
    client, now = MlflowClient(), datetime.now(UTC).isoformat(timespec="seconds")
    client.set_registered_model_alias(NAME, CHAMPION, number)
    client.set_model_version_tag(NAME, number, NOTE, f"{now} {who}: {why}")


def _unmark(number: str) -> None:
    """Take the mark of a challenger from a champion, if the user may delete it."""
    client = MlflowClient()
    if str(client.get_registered_model(NAME).aliases.get(CHALLENGER)) == number:
        try:
            client.delete_registered_model_alias(NAME, CHALLENGER)
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise


def _champions() -> list[str]:
    model = _if_there(lambda: MlflowClient().get_registered_model(NAME))
    return list(json.loads(model.tags.get(CHAMPIONS, "[]"))) if model else []


def _remember(champions: Sequence[str]) -> None:
    MlflowClient().set_registered_model_tag(NAME, CHAMPIONS, json.dumps(champions))


def _if_there(read: Callable[[], Any]) -> Any:
    """What MLflow has, or None."""
    try:
        return read()
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def _version(found: ModelVersion) -> Version:
    return Version(str(found.version), str(found.run_id), dict(found.tags))
