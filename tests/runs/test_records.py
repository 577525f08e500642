import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs import records
from nucleus_unet.runs.records import (
    fetch_artifact,
    fetch_submission,
    recipe_of,
    reproduction_script,
)
from nucleus_unet.runs.reproduction import Record


def test_a_logged_recipe(tiny: Recipe) -> None:
    assert recipe_of("abc", tiny.model_dump(mode="json")) == tiny


def test_a_recipe_of_another_version_names_the_way_to_it(tiny: Recipe) -> None:
    values = tiny.model_dump(mode="json")
    values["training"]["ema"] = 0.99
    message = (
        "run abc is of another version of the code (its recipe: unknown key training.ema): choose one "
        "of this version, or repeat it in its own: nucleus reproduce abc --in-env | sh"
    )
    with pytest.raises(NucleusError, match=re.escape(message) + "$"):
        recipe_of("abc", values)


def test_a_reproduction_script_has_the_places_and_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"python": "3.11.7"}
    logged = Record("abc", {}, machine, {}, commit=40 * "c", diff="", data={}, tags={})
    monkeypatch.setattr(records, "fetch_record", lambda run_id: logged)
    monkeypatch.setattr(
        records, "MlflowClient", lambda: SimpleNamespace(list_artifacts=lambda run_id: [])
    )
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for uri in ("sqlite:////srv/mlflow.db", "postgresql://ann:secret@db/mlflow"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        script = reproduction_script("abc", ["reproduce", "abc"])
        assert f"export NUCLEUS_HOME={tmp_path}\n" in script
        assert (f"export MLFLOW_TRACKING_URI={uri}\n" in script) == uri.startswith("sqlite")
        assert "secret" not in script
        assert f"git checkout --quiet {logged.commit}" in script
        assert script.rstrip().endswith("reproduce abc")


def test_a_submission_is_only_taken_as_it_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(b"ImageId,EncodedPixels\n")
    monkeypatch.setattr(records, "fetch_artifact", lambda run_id, name: path)
    tags = {"submission.sha256": sha256_file(path)}
    logged = Record("abc", {}, {}, {}, commit="", diff="", data={}, tags=tags)
    assert fetch_submission(logged) == path
    path.write_bytes(b"ImageId\n")
    with pytest.raises(NucleusError, match=r"^run abc: its artifact submission\.csv is damaged"):
        fetch_submission(logged)


def test_what_a_killed_fetch_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(uri: str, dst_path: str) -> str:
        (Path(dst_path) / "model").mkdir()
        (Path(dst_path) / "model" / "MLmodel").write_text(uri)
        return f"{dst_path}/model"

    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    fetched = tmp_path / "fetched" / "abc"
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    (fetched / ".killed" / "model").mkdir(parents=True)
    assert fetch_artifact("abc", "model") == fetched / "model"
    assert [path.name for path in fetched.iterdir()] == ["model"]
    assert (fetched / "model" / "MLmodel").read_text() == "runs:/abc/model"
