"""Versions of the model in MLflow's registry, and which version is the champion."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from nucleus_unet.errors import NucleusError
from nucleus_unet.network import BUILTIN, ModelOrigin, builtin_model
from nucleus_unet.network.builtin import BUILTIN_CARD
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.records import data_name, fetch_artifact, require_model, require_run
from nucleus_unet.runs.store import ABSENT, PatientClient
from nucleus_unet.runs.tracking import Run

NAME = "nucleus-unet"
CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases: the version that predicts, and the latest version that was not better."""
CHAMPIONS = "champions"
"""Tag of the registered model: the numbers of all champions so far as JSON, the latest last."""
NOTE = "champion.note"
"""Tag of a version that is or was the champion: when, by whom and why it became the champion."""


@dataclass(frozen=True)
class Version:
    """A registered version of the model: its number, the run that trained it, and its tags."""

    number: str
    run_id: str
    tags: Mapping[str, str]


def register(run: Run, model_id: str, tags: Mapping[str, str], card: str = "") -> Version:
    """Register the model of a run. If it is registered already, its version is returned."""
    client = PatientClient()
    try:
        client.create_registered_model(NAME, description="Finds cell nuclei in microscope images.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{NAME}' and run_id = '{run.id}'"):
        return _version(found)
    uri = f"models:/{model_id}"
    made = client.create_model_version(
        NAME, uri, run.id, dict(tags), description=card, model_id=model_id
    )
    return _version(made)


def champion() -> Version | None:
    """The version that predicts if no other is named; None if there is no champion."""
    found = _if_there(lambda: PatientClient().get_model_version_by_alias(NAME, CHAMPION))
    return _version(found) if found else None


def had_champion() -> bool:
    """Whether there ever was a champion, even if it was deleted."""
    return bool(_champions())


def run_of(model: str) -> str:
    """The run that trained a model, or `BUILTIN`.

    Parameters
    ----------
    model : str
        The id of that run, `BUILTIN`, or ``champion``; without a champion that is the built-in model.
    """
    if model != CHAMPION:
        return model
    found = champion()
    return found.run_id if found else BUILTIN


def describe_model(run_id: str) -> str:
    """Say in a few words which model this is, what it was trained on and how it scores.

    Parameters
    ----------
    run_id : str
        Id of the run that trained the model, or `BUILTIN`.

    Raises
    ------
    NucleusError
        If this tracking server has no such run, or if the run logged no model.
    """
    if run_id == BUILTIN:
        return str(builtin_model())
    tags, run = require_model(run_id), PatientClient().get_run(run_id)
    now, name = champion(), f"run {run_id}"
    if now and now.run_id == run_id:
        name = f"the champion, version {now.number}"
    return (
        f"{name}: {tags['recipe']}, trained on {data_name(run)}, score "
        f"{run.data.metrics['validation/score']:.3f} on its validation images"
    )


def fetch_origin(run_id: str) -> ModelOrigin:
    """Fetch what people should know who get a model: its origin, score and model card.

    Parameters
    ----------
    run_id : str
        As for `describe_model`.

    Raises
    ------
    NucleusError
        If this tracking server has no such run, or if the run logged no model card.
    """
    if run_id == BUILTIN:
        model = builtin_model()
        return ModelOrigin(BUILTIN, str(model), model.commit, BUILTIN_CARD.read_text())
    tags = require_run(run_id)
    card = fetch_artifact(run_id, "model_card.md").read_text()
    changed = " with uncommitted changes" * (tags["source.dirty"] == "true")
    return ModelOrigin(run_id, describe_model(run_id), tags["source.commit"] + changed, card)


def with_start(recipe: Recipe) -> Recipe:
    """Name the run of the champion in a recipe whose training starts from the champion."""
    if recipe.training.start_from != CHAMPION:
        return recipe
    training = recipe.training.model_copy(update={"start_from": run_of(CHAMPION)})
    return recipe.model_copy(update={"training": training})


def challenge(version: Version) -> None:
    """Mark a version as the challenger."""
    PatientClient().set_registered_model_alias(NAME, CHALLENGER, version.number)


def promote_version(number: str, who: str, why: str) -> Version:
    """Make a version the champion, and note when, by whom and why.

    Raises
    ------
    NucleusError
        If there is no such version.
    """
    there = _versions()
    if number not in there:
        numbers = ", ".join(sorted(there, key=int)) or "none yet"
        raise NucleusError(f"The model {NAME} has no version {number}. Its versions: {numbers}.")
    now, before = champion(), _champions()
    _crown(number, who, why)
    # The champion of now is not in the list if it was chosen in MLflow's pages.
    for one in (now.number if now else number, number):
        if before[-1:] != [one]:
            before.append(one)
    _remember(before)
    _unmark(number)
    return there[number]


def restore_champion(who: str, why: str) -> Version:
    """Restore the previous champion. Called again, it goes further back.

    Raises
    ------
    NucleusError
        If there was no champion before.
    """
    now, there = champion(), _versions()
    before = [number for number in _champions() if number in there]
    while now and before[-1:] == [now.number]:
        before.pop()
    if not before:
        raise NucleusError(
            "No version was the champion before. Choose a version with nucleus promote."
        )
    _remember(before)  # first: if this process is killed after it, another try does the same
    _crown(before[-1], who, why)
    _unmark(before[-1])
    return there[before[-1]]


def succeeds(number: str, before: str | None) -> bool:
    """Whether a version is the champion and directly succeeded another one, or was the first."""
    now = champion()
    return bool(now and now.number == number) and [None, None, *_champions()][-2] == before


def _versions() -> dict[str, Version]:
    found = PatientClient().search_model_versions(f"name = '{NAME}'")
    return {str(one.version): _version(one) for one in found}


def _crown(number: str, who: str, why: str) -> None:
    client, now = PatientClient(), datetime.now(UTC).isoformat(timespec="seconds")
    client.set_registered_model_alias(NAME, CHAMPION, number)
    client.set_model_version_tag(NAME, number, NOTE, f"{now} {who}: {why}")


def _unmark(number: str) -> None:
    """Remove the alias of the challenger from a champion, if the user may delete it."""
    client = PatientClient()
    if str(client.get_registered_model(NAME).aliases.get(CHALLENGER)) == number:
        try:
            client.delete_registered_model_alias(NAME, CHALLENGER)
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise


def _champions() -> list[str]:
    model = _if_there(lambda: PatientClient().get_registered_model(NAME))
    return list(json.loads(model.tags.get(CHAMPIONS, "[]"))) if model else []


def _remember(champions: Sequence[str]) -> None:
    PatientClient().set_registered_model_tag(NAME, CHAMPIONS, json.dumps(champions))


def _if_there(read: Callable[[], Any]) -> Any:
    """What MLflow returns, or None if it does not exist."""
    try:
        return read()
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def _version(found: ModelVersion) -> Version:
    return Version(str(found.version), str(found.run_id), dict(found.tags))
