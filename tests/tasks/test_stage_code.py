"""The modules that decide a stage's output are all in its key."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_unet.engine.stages import DECIDES_NOTHING, _exports, code_modules

TASKS = Path(__file__).parents[2] / "tasks"
STAGES = sorted(path for path in TASKS.glob("*.py") if "code=[" in path.read_text())


def imported(tree: ast.Module) -> dict[str, str]:
    """Each name that a module imports from the library, and the module that defines it."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nucleus_unet"):
            origin = str(node.module)
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                module = whole if code_modules_of(whole) else _exports(origin).get(alias.name)
                found[alias.asname or alias.name] = module or origin
    return found


def code_modules_of(module: str) -> bool:
    return TASKS.parent.joinpath(*module.split(".")).with_suffix(".py").exists()


def names_in_builds(tree: ast.Module) -> Iterator[str]:
    """What the functions named build use, with the functions of the module that they call."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting: list[ast.AST] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "build"
    ]
    seen = set()
    while waiting:
        for part in ast.walk(waiting.pop()):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value
            if isinstance(part, ast.Name) and part.id not in seen:
                seen.add(part.id)
                yield part.id
                if part.id in functions:
                    waiting.append(functions[part.id])


def code_of(tree: ast.Module, module: str) -> list[str]:
    """The value of the argument ``code``."""
    [keyword] = (
        word
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "code" and isinstance(word.value, ast.List)
    )
    assert isinstance(keyword.value, ast.List)
    return [
        str(part.value) if isinstance(part, ast.Constant) else module for part in keyword.value.elts
    ]


def test_all_stages_are_found() -> None:
    names = {path.stem for path in STAGES}
    assert names == {
        *("ingest", "merge_masks", "split", "train", "average", "evaluate"),
        *("measure", "predict", "upsample", "average", "encode", "rank"),
    }


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_the_code_of_a_stage_covers_what_its_build_calls(path: Path) -> None:
    tree = ast.parse(path.read_text())
    covered = code_modules(*code_of(tree, f"tasks.{path.stem}"))
    modules = imported(tree)
    called = set()
    for name in names_in_builds(tree):
        if name in modules:
            called.add(modules[name])
        elif name.startswith("nucleus_unet.") and ":" in name:
            called.add(name.partition(":")[0])
    assert called
    only_reported = {"nucleus_unet.engine.events"} if path.stem == "train" else set()
    assert called - covered - DECIDES_NOTHING - only_reported == set()
