import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import (
    bytes_text,
    file_states,
    is_locked,
    locked,
    make_folder,
    new_folder,
    open_log,
    sha256_bytes,
    sha256_file,
    write_atomically,
)

# SHA-256 of "abc", from FIPS 180-2, B.1
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "abc") == ABC


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nucleus_unet.files.LONGEST_LOG", 3)
    lengths = []
    for _ in range(4):
        with open_log(tmp_path / "log") as log:
            log.write(b"ab")
        lengths.append((tmp_path / "log").stat().st_size)
    assert lengths == [2, 4, 2, 4]


def test_write_atomically_writes_bytes_and_text_and_creates_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a/b/text", "ä\n")
    write_atomically(tmp_path / "a/b/bytes", b"\x00\xff")
    assert (tmp_path / "a/b/text").read_bytes() == "ä\n".encode()
    assert (tmp_path / "a/b/bytes").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["bytes", "text"]


def test_write_atomically_replaces_a_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "long old content")
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_new_folder_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    def write(*, fail: bool) -> None:
        with new_folder(tmp_path / "a/out", "No.") as temporary:
            (temporary / "file").touch()
            assert not fail

    with pytest.raises(AssertionError):
        write(fail=True)
    assert list((tmp_path / "a").iterdir()) == []
    write(fail=False)
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["out", "file"]
    with (
        pytest.raises(NucleusError, match=r"/a/out: the folder is not empty\. Choose another\.$"),
        new_folder(tmp_path / "a/out", "Choose another."),
    ):
        pass
    with (
        pytest.raises(NucleusError, match=r"/file cannot be written \(Not a directory\)\. No\.$"),
        new_folder(tmp_path / "a/out/file", "No."),
    ):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_write_atomically_respects_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_only_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_atomically(tmp_path / "file", "old")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, cut)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_created_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        NucleusError, match=r"file/sub cannot be created \(Not a dir.*\)\. Name another\.$"
    ):
        make_folder(tmp_path / "file" / "sub", "Name another.")
    make_folder(tmp_path / "a" / "b", "Name another.")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_lock_is_held_by_one_at_a_time_and_waiting_is_reported(tmp_path: Path) -> None:
    path, order, waiting = tmp_path / "locks" / "a", [], threading.Event()

    def second() -> None:
        with locked(path, waiting.set):
            order.append("second")

    with locked(path, lambda: pytest.fail("nobody else holds the lock")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_states_of_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(bytes(3))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(4))
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    assert sorted(state.st_size for state in file_states(tmp_path)) == [3, 4, len("nowhere")]
    assert [state.st_size for state in file_states(tmp_path / "a" / "one")] == [3]
    assert [*file_states(tmp_path / "nothing")] == []


def test_a_shared_lock_is_held_by_many_and_keeps_others_out(tmp_path: Path) -> None:
    def refuse() -> None:
        raise TimeoutError

    path = tmp_path / "a"
    assert not is_locked(path)
    with locked(path, shared=True), locked(path, refuse, shared=True):
        assert is_locked(path)
        with pytest.raises(TimeoutError), locked(path, refuse):
            pytest.fail("others share the lock")
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        with pytest.raises(TimeoutError), locked(path, refuse, shared=True):
            pytest.fail("somebody holds the lock alone")


def test_waiting_for_a_lock_can_be_ended(tmp_path: Path) -> None:
    def give_up() -> None:
        raise TimeoutError

    def try_it() -> None:
        with pytest.raises(TimeoutError), locked(tmp_path / "a", meanwhile=give_up):
            pytest.fail("somebody else holds the lock")

    with locked(tmp_path / "a"), ThreadPoolExecutor() as threads:
        threads.submit(try_it).result(30)


def test_the_longest_name_that_a_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("\N{MICROSCOPE}" * 62 + ".png")  # 252 bytes
    write_atomically(path, "x")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_260_000, "1.3 MB"),
        (2_000_000_000, "2.0 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_bytes_in_a_readable_unit(count: float, text: str) -> None:
    assert bytes_text(count) == text
