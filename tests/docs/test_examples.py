"""The examples of README and docs are executed, page by page, in one folder.

A comment on the line before a block says what is special about it:

- ``not executed: REASON``
- ``in the background until URL and URL answer``: it runs until the end of the page

A ``console`` block also shows output: the numbers and file names of each line that it shows are in one
line of the real output. RUN_ID is the last training, RUN_A the first and RUN_B the last.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from nucleus_cli.main import main
from nucleus_unet.data.synthetic import write_synthetic

ROOT = Path(__file__).parents[2]
FIRST = ("README", "getting-started", "your-data", "recipes", "runs", "team")
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md")],
    key=lambda page: (FIRST.index(page.stem) if page.stem in FIRST else len(FIRST), page.stem),
)
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOT_EXECUTED = "not executed: "
BACKGROUND = "in the background until "
QUICK = re.compile(r"nucleus (?:recipe|check|score|--help)\b|cp |export PATH=")
STABLE = re.compile(r"\d[\d.,]*|\w+\.(?:csv|json|toml)")
PATIENCE_S = 240


@dataclass(frozen=True)
class Example:
    """A block of a page."""

    page: str
    mark: str
    kind: str
    text: str

    @property
    def is_shell(self) -> bool:
        return self.kind in ("bash", "console")

    @property
    def is_executed(self) -> bool:
        return self.is_shell and not self.mark.startswith(NOT_EXECUTED)

    @property
    def script(self) -> str:
        """The commands, without the output that a console block shows."""
        if self.kind == "bash":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))

    @property
    def shown(self) -> list[str]:
        """The lines of output that a console block shows."""
        lines = self.text.splitlines() if self.kind == "console" else []
        return [line for line in lines if not line.startswith("$ ")]

    @property
    def is_quick(self) -> bool:
        """Whether it takes seconds."""
        commands = self.script.replace("\\\n", " ").splitlines()
        return self.is_executed and all(QUICK.match(command) for command in commands)


EXAMPLES = [
    Example(page.name, match["mark"] or "", match["kind"], match["text"])
    for page in PAGES
    for match in BLOCK.finditer(page.read_text())
]
EXECUTED = [example for example in EXAMPLES if example.is_executed]


class Reader:
    """Somebody who types the examples, in a folder that looks like a fresh checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[str] = []
        for path in ROOT.iterdir():
            if path.name not in (".git", ".venv", ".nucleus", "site", "data"):
                (folder / path.name).symlink_to(path)
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "installed").touch()  # so that make does not install
        (folder / "user").mkdir()
        ports = {name: str(free_port()) for name in ("4200", "5000")}
        self.ports = ports
        kept = {k: v for k, v in os.environ.items() if k.partition("_")[0] not in OURS}
        self.environment = kept | {
            "HOME": str(folder / "user"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MAKEFLAGS": f"INSTALLED={folder / 'installed'}",
            **{f"{prefix}PREFECT_PORT": ports["4200"] for prefix in ("", "NUCLEUS_")},
            **{f"{prefix}MLFLOW_PORT": ports["5000"] for prefix in ("", "NUCLEUS_")},
        }

    @contextmanager
    def page(self) -> Iterator["Page"]:
        """A shell for one page; what it started in the background ends with the page."""
        with ExitStack() as stack:
            yield Page(self, stack)


class Page:
    """The blocks of a page share their exported variables."""

    def __init__(self, reader: Reader, stack: ExitStack) -> None:
        self.reader, self.stack = reader, stack
        self.exported = reader.folder / "exported"
        self.exported.write_text("")

    def execute(self, example: Example) -> None:
        """Run a block, and see that it ends as the page says."""
        script = self.filled_in(example.script)
        if example.mark.startswith(BACKGROUND):
            self.start(script, re.findall(r"http\S+", self.filled_in(example.mark)))
            return
        keep = f"export -p > {self.exported}"
        done = self.shell(f"{script}\n{keep}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stdout, stderr = done.communicate()
        report = f"{example.page}:\n{script}\n{stdout[-3000:]}\n{stderr[-3000:]}"
        assert done.returncode == 0, report
        if re.search(r"make run|nucleus retrain", script):
            self.reader.runs.append(re.findall(r"\b[0-9a-f]{32}\b", stdout)[-1])
        printed = [STABLE.findall(line) for line in stdout.splitlines()]
        for line in example.shown:
            if wanted_tokens := STABLE.findall(line):
                assert wanted_tokens in printed, f"{line!r} is not what is printed: {report}"

    def filled_in(self, text: str) -> str:
        """Text with the ports of this test, and with run ids."""
        for name, port in self.reader.ports.items():
            text = text.replace(f"127.0.0.1:{name}", f"127.0.0.1:{port}")
        if runs := self.reader.runs:
            ids = {"RUN_ID": runs[-1], "RUN_A": runs[0], "RUN_B": runs[-1]}
            text = re.sub("|".join(ids), lambda match: ids[match[0]], text)
        return text

    def start(self, script: str, urls: list[str]) -> None:
        """Run a block until the end of the page."""
        process = self.shell(script, stdout=None, stderr=None)

        def end() -> None:
            lives = process.poll() is None
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            assert lives, f"ended before its page: {script}"

        self.stack.callback(end)
        deadline = time.monotonic() + PATIENCE_S
        for url in urls:
            while not answers(url):
                assert process.poll() is None, f"ended: {script}"
                assert time.monotonic() < deadline, f"{url} does not answer: {script}"
                time.sleep(0.5)

    def shell(self, script: str, **streams: Any) -> subprocess.Popen[str]:
        command = f"source {self.exported}\nset -eo pipefail\n{script}"
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.reader.folder,
            env=self.reader.environment,
            text=True,
            start_new_session=True,
            **streams,
        )


OURS = ("NUCLEUS", "PREFECT", "MLFLOW", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_block_is_executed_or_says_why_not() -> None:
    """No block hides shell commands under another name, and every mark is one that we know."""
    assert {example.kind for example in EXAMPLES} <= {"bash", "console", "text", "python"}
    for example in EXAMPLES:
        if not example.is_shell:
            assert re.findall(r"^\$? *(?:nucleus|make) ", example.text, re.MULTILINE) == []
        elif example.mark.startswith(NOT_EXECUTED):
            assert len(example.mark.removeprefix(NOT_EXECUTED).split()) >= 3
        elif example.mark:
            assert re.fullmatch(rf"{BACKGROUND}http\S+( and http\S+)* answers?", example.mark)
    assert len(EXECUTED) > 15


def test_getting_started_is_executed_completely() -> None:
    shell = [e for e in EXAMPLES if e.page == "getting-started.md" and e.is_shell]
    assert len(shell) > 5
    assert [e.text for e in shell if not e.is_executed] == []


def commands() -> list[str]:
    """Every command, as it is typed."""
    found = []
    for name in main.list_commands(context := click.Context(main)):
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            found += [f"nucleus {name} {below}" for below in command.list_commands(context)]
        else:
            found.append(f"nucleus {name}")
    return found


@pytest.mark.parametrize("command", sorted(set(commands()) - {"nucleus fetch"}))
def test_every_command_has_an_example_that_is_executed(command: str) -> None:
    """Only `fetch` has none: it downloads from its publisher."""
    assert any(re.search(rf"\b{command}\b", example.script) for example in EXECUTED)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A reader whose home has the built-in sample, and an empty submission for it."""
    folder = tmp_path_factory.mktemp("reader")
    names = ("built-in-sample", "built-in-sample-test")
    train, _ = write_synthetic(folder / ".nucleus" / "sample" / "made", names=names)
    rows = [f"{path.name},\n" for path in sorted(train.iterdir())]
    (folder / "found-2").mkdir()
    (folder / "found-2" / "submission.csv").write_text("ImageId,EncodedPixels\n" + "".join(rows))
    return Reader(folder)


QUICK_EXAMPLES = [example for example in EXECUTED if example.is_quick]


@pytest.mark.parametrize(
    "example", QUICK_EXAMPLES, ids=[e.script.splitlines()[0][:40] for e in QUICK_EXAMPLES]
)
def test_a_quick_example(example: Example, reader: Reader) -> None:
    with reader.page() as page:
        page.execute(example)


@pytest.mark.slow
def test_the_pages_from_first_to_last(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for name in dict.fromkeys(example.page for example in EXECUTED):
        with reader.page() as page:
            for example in EXECUTED:
                if example.page == name:
                    page.execute(example)
    assert len(reader.runs) >= 2
