"""The manual as a site: it builds, loads nothing from outside, and stays short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import robustness
from nucleus_unet.recipe import Recipe

ROOT = Path(__file__).parents[2]
MOST_WORDS = 11_100
MOST_LINES_OF_README = 150
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]*"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|icon)\b[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]*"""
    r"""|url\(["']?(?:https?:)?//[^)]*|@import\s+["'](?:https?:)?//[^"']*"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, or a page that the navigation lacks, fails the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_outside(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 10
    found = {page.name: LOADED.findall(page.read_text()) for page in pages}
    assert {name: loaded for name, loaded in found.items() if loaded} == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/a.js">',
        '<link href="a.png" rel="icon"><link rel="stylesheet" href="//example.org/a.css">',
        "@font-face { src: url(https://example.org/a.woff2) }",
    ],
)
def test_what_comes_from_outside_is_recognised(text: str) -> None:
    assert len(LOADED.findall(text)) == 1


def test_every_recipe_key_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "recipe.html").read_text()
    keys = [key for key in Recipe(name="").flat() if key != "name"]
    assert [key for key in keys if f"<code>{key}</code>" not in page] == []


def test_every_folder_of_the_library_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text()
    folders = [path.parent.name for path in ROOT.glob("nucleus_unet/*/__init__.py")]
    wanted = [f"nucleus_unet.{name}" for name in folders if name not in ("recipes", "builtin")]
    assert len(wanted) >= 6
    assert [name for name in wanted if f'id="{name}"' not in page] == []


def test_readme_and_docs_are_short() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {page.name: re.sub(r"<!--.*?-->", "", page.read_text()) for page in pages}
    del shown["files.md"], shown["robustness.md"]  # tables of the program and its tests
    words = {name: len(text.split()) for name, text in shown.items()}
    assert sum(words.values()) <= MOST_WORDS, words
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_README


def test_the_messages_of_troubleshooting_are_those_of_the_program() -> None:
    code = "".join(
        path.read_text()
        for folder in ("nucleus_cli", "flows", "tasks", "nucleus_unet")
        for path in (ROOT / folder).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", code) + (ROOT / "Makefile").read_text()
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [
        part.strip()
        for row in re.findall(r"^\| ([^|]*`[^|]*) \|", page, re.MULTILINE)
        for message in re.findall(r"`([^`]+)`", row)
        for part in message.split("…")
        if part.strip() and message != "nucleus: command not found"
    ]
    assert len(quoted) > 20
    assert [part for part in quoted if part not in joined] == []


def test_the_page_of_faults_is_that_of_the_tests() -> None:
    assert robustness.PAGE.read_text() == robustness.page()
