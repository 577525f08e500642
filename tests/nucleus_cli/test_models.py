from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from click import Choice
from click.testing import CliRunner

from nucleus_cli.main import main
from nucleus_cli.models import export
from nucleus_unet.network import ExportFormat
from nucleus_unet.network.builtin import BUILTIN_CARD


def test_the_formats_of_an_export_are_those_that_can_be_written() -> None:
    [form] = (option for option in export.params if option.name == "form")
    assert isinstance(form.type, Choice)
    assert tuple(form.type.choices) == get_args(ExportFormat)


@pytest.mark.slow
def test_export(tmp_path: Path, bare: Path) -> None:
    pytest.importorskip("onnx", reason="needs make install EXTRAS=export")
    out = tmp_path / "out"
    # Without a champion it is the built-in model.
    done = CliRunner().invoke(main, ["export", "champion", "--to", "onnx", "--out", str(out)])
    assert done.exit_code == 0, done.output
    model, *written = done.stdout.splitlines()
    assert model.startswith("model    the built-in model: best of revision ")
    assert written == [f"written  {out}/README.md", f"written  {out}/network.onnx"]
    assert BUILTIN_CARD.read_text().splitlines()[0] in (out / "README.md").read_text()


def test_a_package_for_bioimageio_without_a_licence(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    command = ["export", "builtin", "--to", "bioimageio", "--out", tmp_path / "out"]
    assert refused(*command).startswith("Error: --to bioimageio needs --license and --author.")
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_an_unknown_run(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["export", "0" * 32, "--to", "savedmodel", "--out", str(out)])
    assert done.exit_code == 2
    # MLflow reports that it makes its database.
    assert done.stderr.splitlines()[-1].startswith(f"Error: There is no run {'0' * 32} at sqlite:")
    assert not out.exists()
