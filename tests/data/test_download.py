import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus_unet.data import download
from nucleus_unet.data.download import FILES, SOURCE, SUMS, download_dataset
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked

ZIP, CSV = "stage1_train.zip", "stage1_solution.csv"


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("id/images/id.png", content)
    return buffer.getvalue()


class Publisher(ThreadingHTTPServer):
    """A local server whose files, validators and faults a test can set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/bbbc"
        self.reset()

    def reset(self) -> None:
        self.files = {ZIP: zipped(bytes(range(256)) * 40), CSV: b"ImageId,EncodedPixels\na,1 2\n"}
        self.etag: str | None = '"v1"'
        self.cuts: list[int] = []  # for each answer, after how many bytes the connection breaks
        self.ranges, self.if_range, self.length = True, True, True
        self.requests: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Publisher

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        publisher, name = self.server, self.path.rpartition("/")[2]
        span = self.headers["Range"]
        publisher.requests.append((name, span))
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"/bbbc/{name}" if "loop" not in self.path else self.path)
            return self.end_headers()
        if name not in publisher.files:
            return self.send_error(404)
        body, start = publisher.files[name], 0
        if span and publisher.ranges:
            known = not publisher.if_range or self.headers["If-Range"] == publisher.etag
            start = int(span.removeprefix("bytes=").removesuffix("-")) if known else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if publisher.etag:
            self.send_header("ETag", publisher.etag)
        if publisher.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = publisher.cuts.pop(0) if publisher.cuts else len(body)
        self.wfile.write(body[start:][:cut])


@pytest.fixture(scope="module")
def running() -> Iterator[Publisher]:
    with Publisher() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def publisher(running: Publisher, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    running.reset()
    monkeypatch.setitem(FILES, "dsb2018", (ZIP, CSV))
    monkeypatch.setattr(download, "_PAUSES_S", (0.0, 0.0))
    return running


def sums(publisher: Publisher) -> str:
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in publisher.files.items()
    )


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".nucleus-fetch.lock")


def test_the_files_the_address_and_the_licence_of_the_data_set() -> None:
    assert FILES["dsb2018"] == (
        "stage1_train.zip",
        "stage1_test.zip",
        "stage2_test_final.zip",
        "stage1_solution.csv",
        "stage2_solution_final.csv",
    )
    assert download.PUBLISHER == "https://data.broadinstitute.org/bbbc/BBBC038/"
    assert all(word in SOURCE for word in ("BBBC038v1", "CC0", "Caicedo", "2019"))
    assert "\n" not in SOURCE


def test_a_second_download_into_the_same_folder_is_an_error(
    publisher: Publisher, tmp_path: Path
) -> None:
    refused = pytest.raises(NucleusError, match="another download into this folder is running")
    with locked(tmp_path / ".nucleus-fetch.lock"), refused:
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert left_in(tmp_path) == []
    assert publisher.requests == []


def test_files_are_downloaded_once_and_their_hashes_recorded(
    publisher: Publisher, tmp_path: Path
) -> None:
    calls: list[tuple[str, int, int | None]] = []
    paths = download_dataset(
        "dsb2018", tmp_path / "new", publisher.url, lambda *call: calls.append(call)
    )
    assert paths == [tmp_path / "new" / ZIP, tmp_path / "new" / CSV]
    assert {path.name: path.read_bytes() for path in paths} == publisher.files
    assert (tmp_path / "new" / SUMS).read_text() == sums(publisher)
    assert left_in(tmp_path / "new") == [SUMS, CSV, ZIP]
    size = len(publisher.files[CSV])
    assert calls[-1] == (CSV, size, size)
    assert len(publisher.requests) == 2

    calls.clear()
    assert (
        download_dataset(
            "dsb2018", tmp_path / "new", publisher.url, lambda *call: calls.append(call)
        )
        == paths
    )
    assert len(publisher.requests) == 2
    assert calls == [(path.name, path.stat().st_size, path.stat().st_size) for path in paths]


def test_a_redirect_is_followed(publisher: Publisher, tmp_path: Path) -> None:
    download_dataset("dsb2018", tmp_path, publisher.url.replace("bbbc", "moved/"))
    assert (tmp_path / SUMS).read_text() == sums(publisher)


def test_an_interrupted_download_continues_where_it_stopped(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.cuts = [4000, 0, 0, 1000]
    with pytest.raises(
        NucleusError, match=rf"{publisher.url}/{ZIP}: the download failed .*continues where"
    ):
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / f"{ZIP}.part").read_bytes() == publisher.files[ZIP][:4000]
    assert not (tmp_path / ZIP).exists()
    download_dataset("dsb2018", tmp_path, publisher.url)
    spans = [span for name, span in publisher.requests if name == ZIP]
    assert spans == [None, *["bytes=4000-"] * 3, "bytes=5000-"]
    assert (tmp_path / SUMS).read_text() == sums(publisher)
    assert left_in(tmp_path) == [SUMS, CSV, ZIP]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_on_the_server_is_downloaded_from_its_start(
    publisher: Publisher, tmp_path: Path, if_range: bool
) -> None:
    publisher.cuts = [4000, 0, 0]
    with pytest.raises(NucleusError, match="the download failed"):
        download_dataset("dsb2018", tmp_path, publisher.url)
    publisher.files[ZIP], publisher.etag = zipped(b"new" * 3000), '"v2"'
    publisher.if_range = if_range
    download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / ZIP).read_bytes() == publisher.files[ZIP]


@pytest.mark.parametrize("etag", ['"v1"', 'W/"weak"', None])
def test_a_server_without_ranges_sends_the_complete_file_again(
    publisher: Publisher, tmp_path: Path, etag: str | None
) -> None:
    publisher.etag, publisher.ranges, publisher.cuts = etag, False, [4000, 3000]
    download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / ZIP).read_bytes() == publisher.files[ZIP]
    asked = publisher.requests[1][1]
    assert asked == ("bytes=4000-" if etag == '"v1"' else None)


@pytest.mark.parametrize(("more", "requests"), [(b"", 1), (b"more", 2)])
def test_a_complete_part_is_used_and_a_longer_one_is_downloaded_again(
    publisher: Publisher, tmp_path: Path, more: bytes, requests: int
) -> None:
    (tmp_path / f"{ZIP}.part").write_bytes(publisher.files[ZIP] + more)
    (tmp_path / f"{ZIP}.part.etag").write_text('"v1"')
    download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / SUMS).read_text() == sums(publisher)
    assert [name for name, _ in publisher.requests].count(ZIP) == requests
    assert not list(tmp_path.glob("*.etag"))


def test_a_download_stopped_after_the_last_byte_is_kept(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(download, "sha256_file", stop)
        with pytest.raises(KeyboardInterrupt):
            download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / f"{ZIP}.part").read_bytes() == publisher.files[ZIP]
    download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / SUMS).read_text() == sums(publisher)


def test_a_file_with_another_hash_than_the_first_is_an_error(
    publisher: Publisher, tmp_path: Path
) -> None:
    download_dataset("dsb2018", tmp_path, publisher.url)
    first = hashlib.sha256(publisher.files[CSV]).hexdigest()

    (tmp_path / CSV).write_bytes(b"ImageId,mine\n")
    mine = hashlib.sha256(b"ImageId,mine\n").hexdigest()
    with pytest.raises(
        NucleusError, match=rf"{CSV}: .* {mine}, .* {first} .* Delete the file to download"
    ):
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / CSV).read_bytes() == b"ImageId,mine\n"

    (tmp_path / CSV).unlink()
    publisher.files[CSV] = b"ImageId,theirs\n"
    theirs = hashlib.sha256(b"ImageId,theirs\n").hexdigest()
    with pytest.raises(NucleusError, match=rf"{CSV}: .* {theirs}, .* {first} .* Remove its line"):
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert left_in(tmp_path) == [SUMS, ZIP]


def test_a_file_without_a_recorded_hash_is_an_error(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / ZIP).write_bytes(b"mine")
    with pytest.raises(
        NucleusError, match=rf"{ZIP} exists, but {SUMS} does not contain its hash\. Move the file"
    ):
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / ZIP).read_bytes() == b"mine"


def test_other_lines_of_the_record_are_kept_and_wrong_ones_are_an_error(
    publisher: Publisher, tmp_path: Path
) -> None:
    line = f"{'0' * 64}  other.zip\n"
    (tmp_path / SUMS).write_text(line)
    download_dataset("dsb2018", tmp_path, publisher.url)
    assert (tmp_path / SUMS).read_text() == line + sums(publisher)
    (tmp_path / SUMS).write_text(line + "nonsense\n")
    with pytest.raises(NucleusError, match=rf"{SUMS}, line 2: not .* Correct or remove"):
        download_dataset("dsb2018", tmp_path, publisher.url)


def test_an_unknown_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NucleusError, match=r"unknown data set 'dsb2019'\. Choose one of: dsb2018"):
        download_dataset("dsb2019", tmp_path)


def test_a_file_that_the_server_does_not_have_is_an_error_at_once(
    publisher: Publisher, tmp_path: Path
) -> None:
    del publisher.files[ZIP]
    with pytest.raises(NucleusError, match=rf"{publisher.url}/{ZIP}: the server answered 404"):
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert len(publisher.requests) == 1
    assert left_in(tmp_path) == []


def test_a_missing_network_is_an_error(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(
        NucleusError, match=r"http://127.0.0.1:9/.*the download failed .*Check the network"
    ):
        download_dataset("dsb2018", tmp_path, "http://127.0.0.1:9/")


def test_redirects_in_a_circle_are_an_error(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(NucleusError, match=r"loop.*: the download failed .*Try again later"):
        download_dataset("dsb2018", tmp_path, publisher.url.replace("bbbc", "moved/loop"))


@pytest.mark.parametrize("name", [ZIP, CSV])
def test_an_html_page_instead_of_the_file_is_an_error(
    publisher: Publisher, tmp_path: Path, name: str
) -> None:
    publisher.files[name] = b"<html>please log in</html>"
    with pytest.raises(
        NucleusError, match=f"{name}: the downloaded file is not a complete (zip|csv) file"
    ):
        download_dataset("dsb2018", tmp_path, publisher.url)
    assert not [left for left in left_in(tmp_path) if left.startswith(name)]


def test_a_truncated_zip_of_unknown_length_is_an_error(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.length, publisher.cuts = False, [4000]
    with pytest.raises(NucleusError, match="not a complete zip file"):
        download_dataset("dsb2018", tmp_path, publisher.url)


def test_a_folder_that_cannot_be_written_is_an_error(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        NucleusError, match=r"file: cannot be written \(File exists\)\. Free some disk space or"
    ):
        download_dataset("dsb2018", tmp_path / "file", publisher.url)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / f"{ZIP}.part").symlink_to("/dev/full")
    with pytest.raises(
        NucleusError, match=r"\(No space left on device\)\. Free some disk space or choose"
    ):
        download_dataset("dsb2018", tmp_path, publisher.url)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 4000), max_size=6), ranges=st.booleans())
def test_broken_connections_do_not_change_the_downloaded_bytes(
    running: Publisher, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ranges: bool
) -> None:
    running.reset()
    running.cuts, running.ranges = cuts, ranges
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FILES, "dsb2018", (ZIP,))
        patch.setattr(download, "_PAUSES_S", (0.0,) * 6)
        (path,) = download_dataset("dsb2018", tmp_path_factory.mktemp("cuts"), running.url)
    assert path.read_bytes() == running.files[ZIP]


@pytest.mark.fault(
    "Security",
    "a download that redirects from https to http",
    "refused in one line",
    simulated=True,
)
def test_a_redirect_to_an_address_without_encryption_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = httpx.MockTransport(
        lambda request: httpx.Response(302, headers={"Location": "http://b"})
    )
    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=moved))
    with pytest.raises(
        NucleusError, match=r"^https://a: redirects to http://b, which is not encrypted"
    ):
        download_dataset("dsb2018", tmp_path / "data", "https://a")
    assert not [path for path in (tmp_path / "data").iterdir() if path.suffix != ".lock"]
