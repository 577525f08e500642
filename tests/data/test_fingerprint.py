import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nucleus_unet.data.fingerprint import fingerprint


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "a" / "images").mkdir(parents=True)
    (folder / "a" / "images" / "a.png").write_bytes(b"image")
    (folder / "b.png").write_bytes(b"other")
    (folder / "gone").symlink_to("../nowhere")
    (folder / "itself").symlink_to("itself")
    return folder


def touch(raw: Path) -> None:
    os.utime(raw / "b.png", ns=(1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file was added": lambda raw: (raw / "a" / "images" / "c.png").write_bytes(b""),
    "a file has gone": lambda raw: (raw / "b.png").unlink(),
    "a file was renamed": lambda raw: (raw / "b.png").rename(raw / "c.png"),
    "a file was moved": lambda raw: (raw / "b.png").rename(raw / "a" / "b.png"),
    "a file has another size": lambda raw: (raw / "b.png").write_bytes(b"longer"),
    "a file was written again": touch,
    "a link to nowhere leads somewhere": lambda raw: (raw / "../nowhere").write_bytes(b""),
    "all is gone": lambda raw: raw.rename(raw.with_name("elsewhere")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(raw: Path, change: str) -> None:
    before = fingerprint([raw])
    assert fingerprint([raw]) == before
    CHANGES[change](raw)
    assert fingerprint([raw]) != before


@pytest.mark.parametrize("link", ["gone", "itself"])
def test_a_link_to_nowhere_or_to_itself_is_absent(raw: Path, link: str) -> None:
    before = fingerprint([raw])
    (raw / link).unlink()
    assert fingerprint([raw]) == before


def test_what_is_passed_over_does_not_count(raw: Path) -> None:
    before = fingerprint([raw])
    (raw / ".nucleus").mkdir()
    (raw / ".nucleus" / "mlflow.db").write_bytes(b"grows")
    (raw / "a" / ".DS_Store").write_bytes(b"")
    assert fingerprint([raw]) == before


def test_a_link_to_its_own_folder_ends(raw: Path) -> None:
    (raw / "again").symlink_to(".")
    assert fingerprint([raw]) == fingerprint([raw])


def test_a_single_file_and_what_is_not_there(raw: Path) -> None:
    file, absent = raw / "b.png", raw / "absent"
    prints = {fingerprint(paths) for paths in ([], [file], [absent], [file, absent], [raw])}
    assert len(prints) == 5
    touched = fingerprint([file])
    touch(raw)
    assert fingerprint([file]) != touched
