"""Cached steps: the output of a step lies in a folder named by the digest of all it depends on."""

import ast
import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from nucleus_unet.engine.isolation import raise_if_abandoned
from nucleus_unet.engine.switches import kernel_switches
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, sha256_bytes, sha256_file, write_atomically
from nucleus_unet.recipe import digest_of

RECORD = "stage.json"
"""File in a stage's folder: what the output depends on, and the SHA-256 of each of its files."""
_PACKAGE = "nucleus_unet"
DECIDES_NOTHING = {
    f"{_PACKAGE}.{name}"
    for name in (
        *("errors", "files", "recipe", "engine.home", "engine.stages", "engine.isolation"),
        *("engine.interruption", "engine.delivery", "engine.servers", "engine.progress"),
        "engine.switches",
    )
}
"""Modules that do not count as code of an output: how work runs and how files are written. The values
that an output takes from them are among its inputs. So a reworded error never retrains a network."""

_CALLED_BY_NAME = re.compile(rf"({_PACKAGE}(?:\.\w+)+):\w+")
"""How a function is named that another process calls."""
_NUMPY_WROTE_LESS = re.compile(r"\d+ requested and \d+ written")
"""All that NumPy says if the disk is full."""
_PARSING = threading.Lock()
"""CPython 3.11 counts the parser's depth for all threads together, and fails if two threads parse."""


@dataclass(frozen=True)
class Stage:
    """A complete output."""

    folder: Path
    """``<home>/stages/<name>/<digest>``."""
    digest: str
    cached: bool
    """Whether the output existed before."""
    seconds: float

    # Not fields, because Prefect follows results by the identity of what they hold: a name or a home
    # that two stages hold would draw arrows between tasks that have nothing to do with each other.
    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.folder.parent.name

    @property
    def home(self) -> Path:
        """The home that the output lies in."""
        return self.folder.parents[2]


def damaged_files(folder: Path) -> list[str]:
    """Names of the files of a stage's folder that are missing or changed; empty if it is complete."""
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return [RECORD]
    return [
        name
        for name, digest in files.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]


def run_stage(
    home: Path,
    name: str,
    inputs: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    code: Sequence[str],
    libraries: Sequence[str] = (),
    resumable: bool = False,
    damage: Callable[[Path], Sequence[str]] = damaged_files,
    on_wait: Callable[[], None] = lambda: None,
    on_damage: Callable[[Sequence[str]], None] = lambda _: None,
) -> Stage:
    """Return the output of a stage, and build it if it is missing or damaged.

    Parameters
    ----------
    home : Path
        Outputs lie in ``<home>/stages/<name>/<digest>``.
    name : str
        Name of the stage.
    inputs : mapping of str to JSON values
        All that the output depends on: digests of inputs, and the part of the recipe that is read. The
        kernel switches of the environment are added.
    build : callable
        Fills the empty folder that it is given. The folder is renamed into place when it returns.
    code : sequence of str
        Modules that compute the output. Modules of this package are named by their place in it, such as
        ``data.rle``, and count together with all modules of the package that they import. Other modules
        are named completely, such as ``tasks.split``, and count alone.
    libraries : sequence of str
        Distributions whose version changes the output.
    resumable : bool
        Whether the folder of an unfinished or damaged output is given to `build` again, without its
        damaged files. If not, it is removed.
    damage : callable
        Returns what is damaged in an existing folder, by default `damaged_files`.
    on_wait : callable
        Called if another process builds the same output and this one waits for it.
    on_damage : callable
        Called with what is damaged, before the output is rebuilt.

    Raises
    ------
    Exception
        What `build` raised.
    NucleusError
        If the disk is full.
    StoppedError
        If the run failed or was stopped while this process waited.
    """
    started = time.monotonic()
    key = {
        "stage": name,
        "inputs": dict(inputs),
        "switches": kernel_switches(),
        "code": code_digest(*code),
        "libraries": _versions(libraries),
    }
    digest = digest_of(key)
    folder = home / "stages" / name / digest[:20]
    with locked(home / "locks" / f"{name}-{digest[:20]}", on_wait, raise_if_abandoned):
        damaged = damage(folder) if folder.exists() else None
        if damaged:
            on_damage(damaged)
            for name in damaged if resumable else ():
                (folder / name).unlink(missing_ok=True)
        cached = damaged is not None and not damaged
        if not cached:
            _build(folder, key, build, resumable)
    return Stage(folder, digest, cached, time.monotonic() - started)


def code_digest(*modules: str, libraries: Sequence[str] = ()) -> str:
    """SHA-256 over the syntax of modules and the versions of libraries.

    Comments, docstrings, layout and the modules of `DECIDES_NOTHING` do not count.

    Parameters
    ----------
    modules, libraries
        As ``code`` and ``libraries`` of `run_stage`.
    """
    found = {module: _syntax_digest(module) for module in code_modules(*modules)}
    return digest_of(found | _versions(libraries))


def code_modules(*modules: str) -> set[str]:
    """The complete names of modules and of all modules of the package that they import.

    An import inside a function counts, and so does a name that a package exports, and a function that is
    named as ``module:function`` for another process.
    """
    waiting = [f"{_PACKAGE}.{name}" if _path(f"{_PACKAGE}.{name}") else name for name in modules]
    assert all(map(_path, waiting)), waiting
    found: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in found or module in DECIDES_NOTHING or not _path(module):
            continue
        found.add(module)
        if module.startswith(_PACKAGE):
            waiting += _imports(module)
    return found


def _imports(module: str) -> Iterator[str]:
    """What a module of the package imports from the package, modules and names alike."""
    for node in ast.walk(_parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            origin = str(node.module)
            exports = _exports(origin)
            yield origin
            yield from (exports.get(a.name, f"{origin}.{a.name}") for a in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _CALLED_BY_NAME.findall(node.value)


def _exports(package: str) -> dict[str, str]:
    """Each name that a folder exports in its ``__init__.pyi``, and the module that defines it."""
    stub = _root().joinpath(*package.split("."), "__init__.pyi")
    if not stub.exists():
        return {}
    with _PARSING:
        tree = ast.parse(stub.read_bytes())
    lines = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {
        alias.name: resolve_name("." * line.level + str(line.module), package)
        for line in lines
        for alias in line.names
    }


def _syntax_digest(module: str) -> str:
    tree = _parse(module)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [line for line in body if not _is_docstring(line)]
    return sha256_bytes(ast.dump(tree).encode())


def _parse(module: str) -> ast.Module:
    path = _path(module)
    assert path
    with _PARSING:
        return ast.parse(path.read_bytes())


def _path(module: str) -> Path | None:
    """The source of a module; None for a folder, or for a name that is not a module."""
    path = _root().joinpath(*module.split(".")).with_suffix(".py")
    return path if path.exists() else None


def _root() -> Path:
    return Path(__file__).parents[2]


def _build(
    folder: Path, key: dict[str, Any], build: Callable[[Path], None], resumable: bool
) -> None:
    """Fill a folder next to the final one, write its record and rename it into place."""
    started = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    elif folder.exists() and not partial.exists():
        folder.rename(partial)  # its undamaged checkpoints are used
    partial.mkdir(parents=True, exist_ok=True)
    try:
        build(partial)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and _NUMPY_WROTE_LESS.fullmatch(str(error)):
            error.errno, error.strerror = errno.ENOSPC, os.strerror(errno.ENOSPC)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NucleusError(
                f"{folder} cannot be written ({error.strerror}). Free some disk space, or set "
                "NUCLEUS_HOME to a folder on another disk."
            ) from error
        raise
    seconds = time.monotonic() - started
    files = {
        str(path.relative_to(partial)): sha256_file(path)
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    record = key | {"files": files, "seconds": round(seconds, 3)}
    write_atomically(partial / RECORD, json.dumps(record, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    return {library: metadata.version(library) for library in libraries}


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
