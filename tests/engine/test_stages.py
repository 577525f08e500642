import errno
import gc
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.engine import stages
from nucleus_unet.engine.stages import (
    Stage,
    code_digest,
    code_modules,
    damaged_files,
    run_stage,
)
from nucleus_unet.engine.switches import SWITCHES
from nucleus_unet.errors import NucleusError


class Build:
    """Writes two files and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "a.txt").write_text("a")
        (folder / "deep" / "b.txt").write_text("b")


def run(home: Path, build: Callable[[Path], None], **changes: Any) -> Stage:
    settings: dict[str, Any] = {"code": ["data.split"], "libraries": ["numpy"]} | changes
    inputs = settings.pop("inputs", {"size": 3})
    return run_stage(home, "cut", inputs, build, **settings)


def test_an_output_is_built_once_and_found_the_second_time(tmp_path: Path) -> None:
    build = Build()
    first = run(tmp_path, build)
    second = run(tmp_path, build)
    assert build.calls == 1
    assert (first.cached, second.cached) == (False, True)
    assert (first.folder, first.digest) == (second.folder, second.digest)
    assert first.folder == tmp_path / "stages" / "cut" / first.digest[:20]
    assert first.home == tmp_path
    assert (first.folder / "deep" / "b.txt").read_text() == "b"
    assert [p.name for p in first.folder.parent.iterdir()] == [first.folder.name]


def test_the_record_says_what_an_output_was_made_of(tmp_path: Path) -> None:
    record = json.loads((run(tmp_path, Build()).folder / "stage.json").read_text())
    assert (record["stage"], record["inputs"]) == ("cut", {"size": 3})
    assert record["libraries"] == {"numpy": metadata.version("numpy")}
    assert record["files"].keys() == {"a.txt", "deep/b.txt"}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "a.txt").write_text("A"), ["a.txt"]),
        (lambda folder: (folder / "deep" / "b.txt").unlink(), ["deep/b.txt"]),
        (lambda folder: (folder / "stage.json").unlink(), ["stage.json"]),
        (lambda folder: (folder / "stage.json").write_text('{"files"'), ["stage.json"]),
        (lambda folder: (folder / "stage.json").write_text("{}"), ["stage.json"]),
    ],
    ids=["changed file", "missing file", "no record", "half a record", "empty record"],
)
@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.fault(
    "Damaged results",
    "a stored result is damaged",
    "a warning that names the file; it is made again",
)
def test_a_damaged_output_is_reported_and_rebuilt(
    tmp_path: Path, damage: Callable[[Path], None], named: list[str], resumable: bool
) -> None:
    build = Build()
    reported: list[Sequence[str]] = []

    def again() -> Stage:
        return run(tmp_path, build, resumable=resumable, on_damage=reported.append)

    folder = again().folder
    assert (damaged_files(folder), reported) == ([], [])
    damage(folder)
    assert damaged_files(folder) == named
    rebuilt = again()
    assert (build.calls, rebuilt.cached, rebuilt.folder) == (2, False, folder)
    assert damaged_files(folder) == []
    assert again().cached
    assert reported == [named]


def test_a_damaged_resumable_output_is_rebuilt_from_what_is_left(tmp_path: Path) -> None:
    found: list[list[str]] = []

    def train(folder: Path) -> None:
        found.append(sorted(path.name for path in folder.iterdir()))
        (folder / "checkpoint").write_text("c")
        (folder / "model").write_text("m")

    folder = run(tmp_path, train, resumable=True).folder
    (folder / "model").write_text("damaged")
    again = run(tmp_path, train, resumable=True)
    assert found == [[], ["checkpoint", "stage.json"]]  # without what was damaged
    assert (again.cached, again.folder, (folder / "model").read_text()) == (False, folder, "m")
    assert list(folder.parent.iterdir()) == [folder]


def test_a_damaged_output_stays_if_rebuilding_it_fails(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        raise KeyboardInterrupt

    folder = run(tmp_path, Build()).folder
    (folder / "a.txt").write_text("damaged")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fail)
    assert (folder / "deep" / "b.txt").read_text() == "b"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"size": 4}},
        {"inputs": {"length": 3}},
        {"code": ["nuclei.scoring"]},
        {"libraries": ["numpy", "opencv-python-headless"]},
    ],
)
def test_another_dependency_gives_another_folder(tmp_path: Path, change: Any) -> None:
    build = Build()
    assert run(tmp_path, build).folder != run(tmp_path, build, **change).folder
    assert build.calls == 2


def test_another_version_of_a_library_gives_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(tmp_path, Build())
    monkeypatch.setattr(metadata, "version", lambda _: "0.0")
    assert run(tmp_path, Build()).folder != before.folder


def test_kernel_switches_give_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(**environment: str) -> str:
        with monkeypatch.context() as patch:
            for name in SWITCHES:
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            return run(tmp_path, Build()).digest

    plain = digest()
    assert digest(TF_ENABLE_ONEDNN_OPTS="1") == plain  # the default
    assert digest(CUDA_VISIBLE_DEVICES="3", OMP_NUM_THREADS="2") == plain
    others = {digest(TF_ENABLE_ONEDNN_OPTS="0"), digest(XLA_FLAGS="--x"), digest(XLA_FLAGS="--y")}
    assert len(others | {plain}) == 4


def test_the_order_of_inputs_does_not_matter(tmp_path: Path) -> None:
    first = run(tmp_path, Build(), inputs={"a": 1, "b": 2})
    assert run(tmp_path, Build(), inputs={"b": 2, "a": 1}).folder == first.folder


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fail)
    assert list(tmp_path.glob("stages/*/*")) == []
    assert not run(tmp_path, Build()).cached


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("1000 requested and 260 written"),  # NumPy's
    ],
)
@pytest.mark.fault(
    "Disks and databases",
    "no room for a result",
    "one line; nothing half written is left",
    simulated=True,
)
def test_a_full_disk(tmp_path: Path, error: OSError) -> None:
    def build(folder: Path) -> None:
        raise error

    with pytest.raises(NucleusError) as raised:
        run_stage(tmp_path, "s", {}, build, code=["data.rle"])
    assert re.fullmatch(
        rf"{tmp_path}/stages/s/[0-9a-f]{{20}} cannot be written \(No space left on device\)\. Free "
        r"some disk space, or set NUCLEUS_HOME to a folder on another disk\.",
        str(raised.value),
    )
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC


def test_a_resumable_stage_continues_in_the_folder_of_the_interrupted_attempt(
    tmp_path: Path,
) -> None:
    def part(folder: Path) -> None:
        with (folder / "log").open("a") as file:
            file.write("x")
        if (folder / "log").read_text() == "x":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, part, resumable=True)
    stage = run(tmp_path, part, resumable=True)
    assert (stage.folder / "log").read_text() == "xx"


def test_files_of_a_killed_attempt_are_removed(tmp_path: Path) -> None:
    folder = run(tmp_path, Build()).folder
    folder.rename(folder.with_name(folder.name + ".partial"))
    (folder.with_name(folder.name + ".partial") / "stale").touch()
    assert not (run(tmp_path, Build()).folder / "stale").exists()


def test_the_caller_may_decide_what_is_damaged(tmp_path: Path) -> None:
    build = Build()
    reported: list[Sequence[str]] = []
    folder = run(tmp_path, build).folder
    again = run(tmp_path, build, damage=lambda _: ["image a"], on_damage=reported.append)
    assert (again.cached, reported) == (False, [["image a"]])
    (folder / "a.txt").write_text("changed, but not damaged")
    assert run(tmp_path, build, damage=lambda _: [], on_damage=reported.append).cached
    assert reported == [["image a"]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that replaces ours: `a` imports `b`, which imports `part.c` inside a function."""
    folder = tmp_path / "nucleus_unet"
    (folder / "part").mkdir(parents=True)
    (folder / "a.py").write_text("from nucleus_unet.b import f\n\ng = f\n")
    (folder / "b.py").write_text(
        '"""Text."""\n\ndef f():\n    """Text."""\n    from nucleus_unet.part import c\n'
        "    return c.x\n"
    )
    (folder / "part" / "c.py").write_text("x = 1\n")
    (folder / "d.py").write_text("y = 1\n")
    monkeypatch.setattr(stages, "__file__", str(folder / "engine" / "stages.py"))
    return folder


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = code_digest("a")
    (package / "b.py").write_text(
        "# A comment\ndef f():\n    '''Other text,\n    longer.'''\n\n"
        "    from nucleus_unet.part import (\n        c,\n    )\n    return (c.x)  # why\n"
    )
    assert code_digest("a") == before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.py", "from nucleus_unet.b import f\n\ng = f()\n"),
        ("b.py", "def f():\n    from nucleus_unet.part import c\n    return -c.x\n"),
        ("part/c.py", "x = 2\n"),
    ],
)
def test_imported_code_counts(package: Path, file: str, text: str) -> None:
    before, of_d = code_digest("a"), code_digest("d")
    (package / file).write_text(text)
    assert code_digest("a") != before
    assert code_digest("d") == of_d


def test_versions_of_libraries_count(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest("a", libraries=["numpy"])
    assert len({before, code_digest("a"), code_digest("a", libraries=["scipy"])}) == 3
    monkeypatch.setattr(stages.metadata, "version", lambda _: "0")
    assert code_digest("a", libraries=["numpy"]) != before


def test_other_modules_do_not_count(package: Path) -> None:
    before = code_digest("a")
    (package / "d.py").write_text("y = 2\n")
    assert code_digest("a") == before
    assert code_digest("a", "d") != before


def test_a_module_of_another_package_counts_alone(package: Path) -> None:
    (package.parent / "tasks").mkdir()
    task = package.parent / "tasks" / "cut.py"
    task.write_text("from nucleus_unet.d import y\n")
    before = code_digest("a", "tasks.cut")
    (package / "d.py").write_text("y = 2\n")
    assert code_digest("a", "tasks.cut") == before
    task.write_text("from nucleus_unet.d import y\n\nz = y\n")
    assert code_digest("a", "tasks.cut") != before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import nucleus_unet.part.c\n", {"part.c"}),
        ("import nucleus_unet.part.c as c, nucleus_unet.d\n", {"part.c", "d"}),
        ("from nucleus_unet.part import c\n", {"part.c"}),
        ("from nucleus_unet.part.c import x\n", {"part.c"}),
        ("from nucleus_unet import d, part\n", {"d"}),
        ("from nucleus_unet.part import x\n", {"part.c"}),
        ("from nucleus_unet.part import x as renamed, z\n", {"part.c", "part.e"}),
        ("def f():\n    import nucleus_unet.d\n", {"d"}),
        ("call('nucleus_unet.part.c:x')\n", {"part.c"}),
        ("FUNCTIONS = {'one': 'nucleus_unet.d:y'}\n", {"d"}),
        ("import os.path, numpy\nfrom pathlib import Path\n", set()),
        ("NAME = 'nucleus_unet.part.c'\n", set()),
    ],
)
def test_every_way_to_use_another_module_counts(package: Path, text: str, found: set[str]) -> None:
    (package / "part" / "__init__.pyi").write_text("from .c import x as x\nfrom .e import z as z\n")
    (package / "part" / "e.py").write_text("z = 1\n")
    (package / "a.py").write_text(text)
    assert code_modules("a") == {f"nucleus_unet.{name}" for name in {"a", *found}}


def test_a_module_that_does_not_exist_is_refused(package: Path) -> None:
    with pytest.raises(AssertionError, match="no_such"):
        code_modules("no_such")


def test_many_threads_at_once() -> None:
    def collected(*_: Any) -> None:  # in the middle of parsing, when another thread takes over
        time.sleep(0.0001)

    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(200)
    try:
        with ThreadPoolExecutor(4) as pool:
            digests = set(pool.map(code_digest, ["data.rle"] * 40))
    finally:
        gc.callbacks.remove(collected)
        gc.set_threshold(*before)
    assert digests == {code_digest("data.rle")}


def test_training_depends_on_what_shapes_its_weights() -> None:
    training = "network.training"
    assert code_digest(training) != code_digest(training, "nuclei.submission")
    modules = [f"network.{name}" for name in ("augment", "unet", "losses", "metrics", "backend")]
    for module in (*modules, "nuclei.scoring"):
        assert code_digest(training) == code_digest(training, module) != code_digest(module)


@pytest.mark.parametrize("module", ["errors", "files", "recipe", "engine.home", "engine.switches"])
def test_modules_that_decide_nothing_do_not_count(module: str) -> None:
    assert code_digest(module) == code_digest()
