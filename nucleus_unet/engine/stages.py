"""A stage's output lies in a folder named by the digest of all that it depends on."""

import ast
import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nucleus_unet.engine.interruption import raise_if_abandoned
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, sha256_bytes, sha256_file, write_atomically
from nucleus_unet.recipe import digest_of

_PACKAGE = "nucleus_unet"
RECORD = "stage.json"
DECIDES_NOTHING = {f"{_PACKAGE}.{module}" for module in ("errors", "files", "recipe")}
"""What an output takes of these modules is in its stage's inputs; the rest is how it is written, and
texts: a reworded error never retrains a network."""

_NUMPY_WROTE_LESS = re.compile(r"\d+ requested and \d+ written")
"""All that it says of a full disk."""
_PARSING = threading.Lock()
"""CPython 3.11 counts how deep all threads are in one number, and fails where two parse at once."""


@dataclass(frozen=True)
class Stage:
    """A whole output: its folder, the digest that names it, and whether it was there before."""

    name: str
    folder: Path
    digest: str
    cached: bool
    seconds: float


def is_whole(folder: Path) -> bool:
    """Whether a stage's folder holds every file that was written, unchanged."""
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == digest
        for name, digest in files.items()
    )


def run_stage(
    home: Path,
    name: str,
    inputs: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    code: Sequence[str],
    libraries: Sequence[str] = (),
    resumable: bool = False,
    whole: Callable[[Path], bool] = is_whole,
    on_wait: Callable[[], None] = lambda: None,
) -> Stage:
    """Return the output of a stage, building it where it is missing or damaged.

    Parameters
    ----------
    home : Path
        Outputs lie in ``<home>/stages/<name>/<digest>``.
    name : str
        Of the stage.
    inputs : mapping of str to JSON values
        All that the output depends on: digests of inputs, the part of the recipe that is read.
    build : callable
        Fills the empty folder it is given, which is renamed into place when it returns.
    code : sequence of str
        Modules that compute the output: of this package by their names in it, with those that they
        import; others by their whole names, alone.
    libraries : sequence of str
        Distributions whose version changes the output.
    resumable : bool
        Whether a folder cut short is kept, and given to `build` again, instead of removed.
    whole : callable, optional
        Whether a folder may be used again; by default `is_whole`.
    on_wait : callable, optional
        Called where another process builds the same output, and this one waits for it.

    Returns
    -------
    Stage

    Raises
    ------
    Exception
        What `build` raised; `NucleusError` where the disk is full; `StoppedError` while it waits,
        where the run that it is done for has ended.
    """
    started = time.monotonic()
    key = {
        "stage": name,
        "inputs": dict(inputs),
        "code": code_digest(*code),
        "libraries": _versions(libraries),
    }
    digest = digest_of(key)
    folder = home / "stages" / name / digest[:20]
    with locked(home / "locks" / f"{name}-{digest[:20]}", on_wait, raise_if_abandoned):
        if cached := whole(folder):
            return Stage(name, folder, digest, cached, time.monotonic() - started)
        _build(folder, key, build, resumable)
    return Stage(name, folder, digest, cached, time.monotonic() - started)


def code_digest(*modules: str, libraries: Sequence[str] = ()) -> str:
    """SHA-256 over the syntax of modules, as `run_stage` takes them.

    Comments, docstrings, layout and `DECIDES_NOTHING` do not count. The versions of `libraries` do.
    """
    found: dict[str, str] = {}
    waiting = [f"{_PACKAGE}.{module}" for module in modules]
    waiting = [w if _source_of(w).exists() else w.removeprefix(f"{_PACKAGE}.") for w in waiting]
    assert all(_source_of(module).exists() for module in waiting), waiting
    while waiting:
        module = waiting.pop()
        if module in found or module in DECIDES_NOTHING:
            continue
        path = _source_of(module)
        if not path.exists():
            continue  # a package, or a name that a module defines
        with _PARSING:
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and module.startswith(_PACKAGE):
                origin = node.module or ""
                if origin.startswith(_PACKAGE):
                    waiting += [origin, *(f"{origin}.{name.name}" for name in node.names)]
            if isinstance(body := getattr(node, "body", None), list):
                body[:] = [line for line in body if not _is_docstring(line)]
        found[module] = sha256_bytes(ast.dump(tree).encode())
    return digest_of(found | _versions(libraries))


def _build(
    folder: Path, key: dict[str, Any], build: Callable[[Path], None], resumable: bool
) -> None:
    """Fill a folder beside, write its record and rename it into place."""
    started = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        build(partial)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and _NUMPY_WROTE_LESS.fullmatch(str(error)):
            error.errno, error.strerror = errno.ENOSPC, os.strerror(errno.ENOSPC)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"{folder}: {error.strerror}: free the disk or set NUCLEUS_HOME"
            raise NucleusError(full) from error
        raise
    seconds = time.monotonic() - started
    files = {str(p.relative_to(partial)): sha256_file(p) for p in _files(partial)}
    record = key | {"files": files, "seconds": round(seconds, 3)}
    write_atomically(partial / RECORD, json.dumps(record, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _source_of(module: str) -> Path:
    return Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    return {library: metadata.version(library) for library in libraries}


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
