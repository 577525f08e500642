"""Imports point one way, and nothing happens at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path
    for package in ("nucleus_cli", "flows", "tasks", "nucleus_unet")
    for path in ROOT.glob(f"{package}/**/*.py")
)
HEAVY = {"tensorflow", "keras", "mlflow", "prefect", "cv2", "sklearn", "skimage", "pandas"}
each_module = pytest.mark.parametrize(
    "path", MODULES, ids=[path.relative_to(ROOT).as_posix() for path in MODULES]
)


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


LAYERS = (
    *("nucleus_cli", "flows", "tasks"),
    *(
        f"nucleus_unet.{name}"
        for name in ("runs", "reports", "network", "nuclei", "data", "engine")
    ),
    *("nucleus_unet.recipe", "nucleus_unet.extras", "nucleus_unet.files", "nucleus_unet.errors"),
)
"""Each may import those after it."""


def layer(module: str) -> int | None:
    """The place of a module in `LAYERS`; None for one of another project."""
    return next((k for k, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}.")), None)


def imported_modules(path: Path) -> set[str]:
    """What a module imports, each name as if it were a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@each_module
def test_imports_go_one_way(path: Path) -> None:
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is not None:  # else it holds no code
        found = {name: layer(name) for name in imported_modules(path)}
        assert {name for name, place in found.items() if place is not None and place < own} == set()


@each_module
def test_the_library_does_not_know_prefect(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "nucleus_unet":
        assert "prefect" not in imported(path)


@each_module
def test_mlflow_is_imported_only_where_runs_are_kept(path: Path) -> None:
    if path.relative_to(ROOT).parts[:2] != ("nucleus_unet", "runs"):
        assert "mlflow" not in imported(path)


@each_module
def test_no_module_does_anything_at_import(path: Path) -> None:
    """But for the one that MLflow runs to make the model."""
    calls = [
        ast.unparse(node)
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ]
    serves = path.name == "served_model.py"
    assert calls == (["mlflow.models.set_model(ServedModel())"] if serves else [])


@pytest.mark.parametrize(
    "code",
    [
        "import nucleus_cli.main",
        "import nucleus_cli.main; nucleus_cli.main.main(['--help'], standalone_mode=False)",
        "import nucleus_cli.main; nucleus_cli.main.main(['retrain', '--help'], standalone_mode=False)",
        "import nucleus_cli.main; nucleus_cli.main.main(['recipe', 'list'], standalone_mode=False)",
    ],
)
def test_help_needs_none_of_the_slow_packages(code: str, tmp_path: Path) -> None:
    printed = python(f"{code}; import sys; print('loaded', *sys.modules)", tmp_path)
    assert HEAVY & set(printed.rpartition("loaded ")[2].split()) == set()


def test_importing_the_flows_loads_no_backend_and_writes_nothing(tmp_path: Path) -> None:
    flows = ", ".join(f"flows.{name}" for name in ("retrain", "predict", "reproduce", "sweep"))
    flows += ", nucleus_cli.ui, nucleus_cli.server"
    code = f"import {flows}, sys; print(*sys.modules)"
    assert {"tensorflow", "keras", "jax"} & set(python(code, tmp_path).split()) == set()
    assert list(tmp_path.iterdir()) == []
