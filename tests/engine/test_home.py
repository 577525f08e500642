import contextlib
import os
import subprocess
import sys
from contextvars import copy_context
from pathlib import Path
from threading import Thread

import pytest

from nucleus_unet.engine.home import (
    fresh_home,
    home_folder,
    home_id,
    home_in_use,
    home_unused,
    prepare_environment,
    ui_url,
    without_credentials,
)
from nucleus_unet.errors import NucleusError


@pytest.fixture(autouse=True)
def bare(nothing_set: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)


def test_the_home_is_made_in_the_working_directory(tmp_path: Path) -> None:
    assert home_folder() == tmp_path / ".nucleus"
    assert home_folder().is_dir()


def test_the_home_is_the_folder_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", "deep/below")
    assert home_folder() == tmp_path / "deep" / "below"
    assert home_folder().is_dir()


def test_an_empty_variable_means_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", "")
    assert home_folder() == tmp_path / ".nucleus"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_home_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUCLEUS_HOME", place)
    with pytest.raises(NucleusError) as caught:
        home_folder()
    why = "Not a directory" if place == "file/below" else "File exists"
    assert str(caught.value) == (
        f"{tmp_path / place} cannot be created ({why}). Set NUCLEUS_HOME to a folder that you can "
        "write."
    )


def test_a_home_that_cannot_hold_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", "runs?")
    with pytest.raises(NucleusError) as caught:
        home_folder()
    assert str(caught.value) == (
        f"{tmp_path}/runs? cannot hold databases, because its path has a question mark. Set "
        "NUCLEUS_HOME to another folder."
    )


@pytest.mark.fault(
    "Disks and databases",
    "a home that cannot be written",
    "one line: set NUCLEUS_HOME",
    simulated=True,
)
def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind root, which tests may run as.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NucleusError) as caught:
        home_folder()
    assert str(caught.value) == (
        f"{tmp_path}/.nucleus is not writable. Set NUCLEUS_HOME to a folder that you can write."
    )


def test_without_servers_everything_lies_below_the_home(tmp_path: Path) -> None:
    prepare_environment()
    folder = tmp_path / ".nucleus"
    assert os.environ["NUCLEUS_HOME"] == str(folder)
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{folder}/mlflow.db"
    assert os.environ["PREFECT_HOME"] == str(folder / "prefect")


def test_empty_variables_count_as_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("PREFECT_API_URL", "PREFECT_PROFILE", "KERAS_BACKEND")
    for name in ("NUCLEUS_HOME", "MLFLOW_TRACKING_URI", *others):
        monkeypatch.setenv(name, "")
    test_without_servers_everything_lies_below_the_home(tmp_path)
    assert not os.environ.keys() & set(others)


@pytest.mark.parametrize("port", ["abc", "0", "99999", "-1", "80.5"])
def test_a_value_that_is_not_a_port(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    assert ui_url("mlflow") == "http://127.0.0.1:5000"
    monkeypatch.setenv("NUCLEUS_MLFLOW_PORT", port)
    with pytest.raises(NucleusError) as caught:
        ui_url("mlflow")
    said = f"NUCLEUS_MLFLOW_PORT={port} is not a port. Set it to a number from 1 to 65535."
    assert str(caught.value) == said


def test_telemetry_is_off() -> None:
    prepare_environment()
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["DO_NOT_TRACK"] == os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("lower", "upper", "together"),
    [
        (None, None, "127.0.0.1,localhost"),
        (None, "a.org", "a.org,127.0.0.1,localhost"),
        ("b.org", "a.org", "b.org,127.0.0.1,localhost"),
        ("127.0.0.1,b.org", None, "127.0.0.1,b.org"),
        ("*", None, "*"),
    ],
)
def test_own_servers_are_not_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, lower: str | None, upper: str | None, together: str
) -> None:
    for name, value in {"no_proxy": lower, "NO_PROXY": upper}.items():
        monkeypatch.setenv(name, value or "")
    prepare_environment()
    prepare_environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == together


@pytest.mark.parametrize("profile", [None, "team"])
def test_a_named_prefect_server_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, profile: str | None
) -> None:
    named = {"PREFECT_API_URL": "http://prefect:4200/api", "PREFECT_HOME": "/theirs"}
    named |= {"PREFECT_PROFILE": profile} if profile else {}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    prepare_environment()
    assert named.items() <= os.environ.items()


def test_a_profile_alone_names_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_PROFILE", "team")
    with pytest.raises(NucleusError) as caught:
        prepare_environment()
    assert str(caught.value) == (
        "PREFECT_PROFILE=team is not used. Set PREFECT_API_URL and the login to the values that "
        "prefect profile inspect team shows, or unset PREFECT_PROFILE."
    )


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "postgresql://ann:secret@host/mlflow"])
def test_a_named_mlflow_server_or_database_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    prepare_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING=USER:PASSWORD"),
        ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ],
)
@pytest.mark.fault(
    "Security",
    "a password in the address of a server",
    "refused in one line, without the password",
)
def test_a_login_does_not_belong_in_an_address(
    monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    monkeypatch.setenv(name, "https://ann:secret@host:9/api")
    with pytest.raises(NucleusError) as caught:
        prepare_environment()
    assert str(caught.value) == (
        f"{name} holds a login, which would be shown and logged. Set {name} to https://host:9/api "
        f"and put the login into {where}."
    )


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://mlflow:5000/", "http://mlflow:5000/"),
        ("https://mlflow/team?of=ann", "https://mlflow/team?of=ann"),
        ("http://ann:s%40cret@mlflow:5000", "http://mlflow:5000"),
        (
            "postgresql+psycopg2://ann:s@cret@[::1]/db?sslmode=on",
            "postgresql+psycopg2://[::1]/db",
        ),
        ("postgresql:///db?host=/run&user=ann&password=secret", "postgresql:///db"),
        ("postgresql:///db?user=ann&password=s@cret", "postgresql://..."),
        ("postgresql://ann:s?cret@db/mlflow", "postgresql://..."),
        ("postgresql://ann:s/cret@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("sqlite:////home/ann@corp/mlflow.db", "sqlite:////home/ann@corp/mlflow.db"),
        ("sqlite+pysqlite:////home/ann@corp/m.db", "sqlite+pysqlite:////home/ann@corp/m.db"),
        ("https://ann:secret@host/team@lab/api", "https://host/team@lab/api"),
        ("http://mlflow/team@lab?of=ann@corp", "http://mlflow/team@lab?of=ann@corp"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_without_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


@pytest.mark.parametrize("server", [None, "http://prefect:4200/api"])
@pytest.mark.fault(
    "Security",
    "a Prefect profile with the key of another account",
    "the key is not used",
)
def test_an_active_profile_is_not_used(tmp_path: Path, server: str | None) -> None:
    profiles = tmp_path / "theirs" / "profiles.toml"
    profiles.parent.mkdir()
    elsewhere = 'PREFECT_API_URL = "https://cloud.example/api"\nPREFECT_API_KEY = "secret"\n'
    profiles.write_text(f'active = "cloud"\n[profiles.cloud]\n{elsewhere}')
    show = (
        "from prefect.settings import get_current_settings as s; key = s().api.key;"
        "print(s().api.url, key and key.get_secret_value())"
    )
    environment = os.environ | {
        "PREFECT_HOME": str(profiles.parent),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment |= {"PREFECT_API_URL": server} if server else {}

    def url_and_key(prepare: str) -> str:
        command = [sys.executable, "-c", prepare + show]
        return subprocess.check_output(command, env=environment, text=True).strip()

    # Prefect alone would use it.
    assert url_and_key("") == f"{server or 'https://cloud.example/api'} secret"
    prepare = "from nucleus_unet.engine.home import *; prepare_environment();"
    assert url_and_key(prepare) == f"{server} None"


def test_a_home_keeps_its_id_and_another_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path / "a"))
    first = home_id()
    assert home_id() == first
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path / "b"))
    assert home_id() != first


def test_within_a_fresh_home_nothing_of_the_other_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    before = home_id()
    with fresh_home("one"):
        assert home_folder() == tmp_path / "fresh" / "one"
        assert home_id() != before
    assert home_folder() == tmp_path
    assert not (tmp_path / "fresh" / "one").exists()
    with contextlib.suppress(RuntimeError), fresh_home("two"):
        (home_folder() / "checkpoint").touch()
        raise RuntimeError
    assert home_folder() == tmp_path
    with fresh_home("two"):  # another attempt finds what the first left
        assert (home_folder() / "checkpoint").exists()


def test_a_fresh_home_is_of_its_block_and_not_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    before = dict(os.environ)
    seen: list[Path] = []

    def look() -> None:
        seen.append(home_folder())

    with fresh_home("one"):
        assert dict(os.environ) == before
        # A thread of this run, and a thread of another run in the same process.
        for thread in (Thread(target=copy_context().run, args=(look,)), Thread(target=look)):
            thread.start()
            thread.join()
        with fresh_home("two"):
            look()
        look()
    one = tmp_path / "fresh" / "one"
    assert seen == [one, tmp_path, one / "fresh" / "two", one]


def test_a_home_in_use_is_not_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))
    with home_in_use(), home_in_use():
        with pytest.raises(NucleusError) as caught, home_unused():
            pytest.fail("the home is in use")
        assert str(caught.value) == (
            f"{tmp_path} is in use by a command or a flow run. Wait until it has ended, or stop it."
        )
    with home_unused():
        pass


def test_work_waits_while_a_home_is_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path))

    def give_up() -> None:
        raise TimeoutError

    with home_unused(), pytest.raises(TimeoutError), home_in_use(give_up):
        pytest.fail("the home is being cleaned")
