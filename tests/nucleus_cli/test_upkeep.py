import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nucleus_cli.main import main
from nucleus_unet.engine import home_in_use

Refused = Callable[..., str]
TABLE = """\
can be freed        number  size   made again by
results of predict  1       100 B  the next run that needs them
results of split    2       4 B    the next run that needs them
total               3       104 B

kept                    number  size  because
unfinished trainings    1       3 B   they can be continued
"""


def output(*args: str, exit_code: int = 0) -> str:
    done = CliRunner().invoke(main, args)
    assert done.exit_code == exit_code, done.output
    return done.stdout


@pytest.fixture
def home(bare: Path) -> Path:
    """A home with results of four stages."""
    sizes = {"split/a/x": 1, "split/b/x": 3, "predict/c/deep/x": 100, "train/d.partial/x": 3}
    for name, size in sizes.items():
        path = bare / "stages" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    return bare


def rows(text: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_clean_removes_nothing_until_it_is_told_to(home: Path) -> None:
    stages = set((home / "stages").rglob("x"))
    last = ["Nothing was removed. Type nucleus clean --yes to free the space."]
    assert rows(output("clean")) == [*rows(TABLE), [""], last]
    assert set((home / "stages").rglob("x")) == stages
    assert rows(output("clean", "--yes")) == rows(TABLE.replace("can be freed", "freed"))
    assert [*(home / "stages").rglob("x")] == [home / "stages/train/d.partial/x"]
    assert rows(output("clean"))[:2] == [
        ["can be freed", "number", "size", "made again by"],
        ["total", "0", "0 B"],
    ]


def test_clean_removes_unfinished_work_that_is_old_enough(home: Path) -> None:
    output("clean", "--yes", "--unfinished", "0")
    assert [*(home / "stages").rglob("x")] == []


def test_clean_leaves_a_home_in_use(refused: Refused, home: Path) -> None:
    output("clean")  # makes MLflow's database
    with home_in_use():
        assert f"{home} is in use by a command or a flow run." in refused("clean", "--yes")
        assert "when no command or flow run uses the home." in output("clean")
    assert (home / "stages/split/a/x").exists()


def test_doctor_prints_rows(bare: Path) -> None:
    printed = dict(row for row in rows(output("doctor", "--quick")) if len(row) == 2)
    assert printed["Python"].startswith("3.")
    assert printed["home"].startswith(f"{bare}, ")
    assert printed["Prefect server"] == "none: the database is in the home"


def test_doctor_ends_with_1_if_a_server_does_not_answer(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    printed = output("doctor", "--quick", exit_code=1)
    assert "http://127.0.0.1:9, does not answer\n" in printed
    assert "- MLFLOW_TRACKING_URI=http://127.0.0.1:9 does not respond (ConnectError)." in printed


def test_doctor_ends_with_1_if_the_home_cannot_be_written(bare: Path) -> None:
    bare.write_text("in the way")
    printed = output("doctor", exit_code=1)
    assert f"- {bare} cannot be created (File exists). Set NUCLEUS_HOME" in printed


@pytest.mark.slow
def test_a_run_is_reproduced_after_a_clean(retrained: Any, tmp_path: Path) -> None:
    place = retrained.place.elsewhere(tmp_path / "home")
    shutil.copytree(retrained.place.home, place.home)
    place.nucleus("predict", place.test, "--out", tmp_path / "out", "--model", retrained.run_id)
    cleaned = place.nucleus("clean", "--yes")
    assert cleaned.returncode == 0, cleaned.stderr
    assert {"results of train", "prepared images", "files fetched from MLflow", "total"} <= {
        row[0] for row in rows(cleaned.stdout)
    }
    assert [*place.home.glob("stages/*/*"), *place.home.glob("images/*")] == []
    done = place.nucleus("reproduce", retrained.run_id)
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout


@pytest.mark.slow
def test_doctor_measures_the_speed(bare: Path) -> None:
    assert "- Training with the recipe best takes about " in output("doctor")
