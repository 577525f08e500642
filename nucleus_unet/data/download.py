"""Download a published data set, with resuming and with a record of the hashes of its files."""

import os
import re
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, sha256_file, write_atomically

PUBLISHER = "https://data.broadinstitute.org/bbbc/BBBC038/"
FILES = {
    "dsb2018": (
        "stage1_train.zip",
        "stage1_test.zip",
        "stage2_test_final.zip",
        "stage1_solution.csv",
        "stage2_solution_final.csv",
    )
}
SOURCE = (
    "BBBC038v1, Broad Bioimage Benchmark Collection (https://bbbc.broadinstitute.org/BBBC038), "
    "CC0 1.0; cite Caicedo et al., Nature Methods 16, 1247-1253 (2019)"
)
SUMS = "SHA256SUMS"
"""Name of the file with the hashes, in the format of ``sha256sum``."""

DownloadProgress = Callable[[str, int, int | None], None]
"""Called with the name of a file, its bytes so far, and its size in bytes or None if unknown."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_TIMEOUT_S = 30.0


def download_dataset(
    name: str, to: Path, base_url: str = PUBLISHER, progress: DownloadProgress | None = None
) -> list[Path]:
    """Download the files of a data set into a folder, and check them by their hashes.

    Parameters
    ----------
    name : str
        A key of `FILES`.
    to : Path
        Folder for the files and for ``SHA256SUMS``; it is created if it does not exist.
    base_url : str, optional
        Address of the folder that contains the files.
    progress : callable, optional
        Called as ``progress(file, done_bytes, total_bytes or None)`` while bytes arrive, and once for
        a file that exists already.

    Returns
    -------
    list of Path
        The files, in the order of `FILES`.

    Raises
    ------
    NucleusError
        If the name is unknown, the server cannot be reached or answers with an error, the folder
        cannot be written, another download into it is running, the server redirects from https to
        http, or the hash of a file differs from the one recorded at the first download.

    Notes
    -----
    - A file that exists and has its recorded hash is not downloaded again. Existing files are never
      overwritten.
    - An interrupted download continues from ``<file>.part`` if the server still has the same file,
      and starts again if not.
    - A file gets its final name when it is complete and its hash is recorded in ``SHA256SUMS``, which
      ``sha256sum -c`` can check.
    """
    if name not in FILES:
        raise NucleusError(f"unknown data set {name!r}. Choose one of: {', '.join(FILES)}.")

    def busy() -> None:
        raise NucleusError(
            f"{to}: another download into this folder is running. Wait until it has finished."
        )

    report = progress or (lambda file, done, total: None)
    paths = [to / file for file in FILES[name]]
    try:
        with (
            locked(to / ".nucleus-fetch.lock", busy),
            httpx.Client(
                follow_redirects=True,
                timeout=_TIMEOUT_S,
                event_hooks={"request": [partial(_refuse_downgrade, base_url)]},
            ) as client,
        ):
            for path in paths:
                if path.exists():
                    _check_hash(path, path, "Delete the file to download it again.")
                    report(path.name, path.stat().st_size, path.stat().st_size)
                else:
                    _fetch_one(client, f"{base_url.rstrip('/')}/{path.name}", path, report)
    except OSError as error:
        raise NucleusError(
            f"{error.filename or to}: cannot be written ({error.strerror}). "
            "Free some disk space or choose another folder."
        ) from error
    return paths


def _refuse_downgrade(base_url: str, request: httpx.Request) -> None:
    """Raise if an encrypted address redirects to one that anybody on the way can change."""
    if base_url.startswith("https:") and request.url.scheme != "https":
        raise NucleusError(
            f"{base_url}: redirects to {request.url}, which is not encrypted. Download the file "
            "yourself from the page of the data set."
        )


def _fetch_one(client: httpx.Client, url: str, path: Path, report: DownloadProgress) -> None:
    """Download one file, check it and record its hash before it gets its final name."""
    part = path.with_name(f"{path.name}.part")
    _download(client, url, part, report)
    sums = _read_sums(path.parent)
    try:
        _check_form(url, part)
        if path.name in sums:
            _check_hash(part, path, f"Remove its line from {SUMS} to accept the new file.")
        else:
            sums[path.name] = sha256_file(part)
            lines = [f"{digest}  {file}\n" for file, digest in sums.items()]
            write_atomically(path.parent / SUMS, "".join(lines))
    except NucleusError:  # it is not the expected file, so the download must not continue from it
        part.unlink()
        _tag_of(part).unlink(missing_ok=True)
        raise
    os.replace(part, path)
    _tag_of(part).unlink(missing_ok=True)


def _download(client: httpx.Client, url: str, part: Path, report: DownloadProgress) -> None:
    """Download `part` completely, with pauses after broken connections; progress resets the pauses."""
    pauses, furthest = iter(_PAUSES_S), 0
    while True:
        try:
            return _stream(client, url, part, report)
        except httpx.TransportError as error:
            reached = part.stat().st_size if part.exists() else 0
            if reached > furthest:
                pauses, furthest = iter(_PAUSES_S), reached
            pause = next(pauses, None)
            if pause is None:
                raise NucleusError(
                    f"{url}: the download failed ({_one_line(error)}). Check the network and run the "
                    "command again; it continues where it stopped."
                ) from error
            time.sleep(pause)
        except httpx.HTTPError as error:
            raise NucleusError(
                f"{url}: the download failed ({_one_line(error)}). Try again later."
            ) from error


def _stream(client: httpx.Client, url: str, part: Path, report: DownloadProgress) -> None:
    """Send one request: append to `part` if the server still has the same file, else start again."""
    tag = _tag_of(part)
    offset = part.stat().st_size if part.exists() and tag.exists() else 0
    validator = tag.read_text() if offset else ""
    headers = {"Accept-Encoding": "identity"}  # so that ranges count the bytes of the file itself
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with client.stream("GET", url, headers=headers) as response:
        span = response.headers.get("Content-Range", "")
        # RFC 9110 allows an answer to If-Range without Last-Modified.
        same_file = _validator(response) in (validator, "")
        right_place = bool(offset) and span.startswith(f"bytes {offset}-")
        resumed = response.status_code == 206 and right_place and same_file
        if offset and response.status_code == 416 and span == f"bytes */{offset}" and same_file:
            return  # the file was complete already
        if offset and not resumed and response.status_code in (206, 416):
            part.unlink()
            _stream(client, url, part, report)
            return
        if response.status_code != 200 and not resumed:
            raise NucleusError(
                f"{url}: the server answered {response.status_code} {response.reason_phrase}. "
                "Try again later, or download the file yourself from the page of the data set."
            )
        length = span.rpartition("/")[2] if resumed else response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        done = offset if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            if not resumed:
                tag.unlink(missing_ok=True)
                if validator := _validator(response):
                    tag.write_text(validator)
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                report(part.stem, done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise httpx.RemoteProtocolError(f"received {done} of {total} bytes")


def _validator(response: httpx.Response) -> str:
    """The value for If-Range: a strong ETag or else the date; empty if the server sends neither."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _check_form(url: str, part: Path) -> None:
    """Raise if the content does not fit the name of the file, such as an HTML page of a proxy."""
    try:
        if url.endswith(".zip"):
            zipfile.ZipFile(part).close()
            return
        with part.open("rb") as file:
            right = file.read(7) == b"ImageId"
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        right = False
    if not right:
        raise NucleusError(
            f"{url}: the downloaded file is not a complete {url.rpartition('.')[2]} file. "
            "Check whether a proxy or a log-in page answers at this address, and download again."
        )


def _check_hash(content: Path, path: Path, advice: str) -> None:
    """Raise if the hash of `content` is not the one that is recorded for `path`."""
    recorded = _read_sums(path.parent).get(path.name)
    if recorded is None:
        raise NucleusError(
            f"{path} exists, but {SUMS} does not contain its hash. Move the file away, or accept it by "
            f"running `sha256sum {path.name} >> {SUMS}` in its folder."
        )
    if (found := sha256_file(content)) != recorded:
        raise NucleusError(
            f"{path}: its SHA-256 is {found}, but {SUMS} contains {recorded} from the first download. "
            f"{advice}"
        )


def _read_sums(folder: Path) -> dict[str, str]:
    """Read the recorded hashes by file name; empty if nothing is recorded yet."""
    path, sums = folder / SUMS, {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise NucleusError(
                f"{path}, line {number}: not `<sha256>  <file>` as sha256sum writes it. "
                "Correct or remove the line."
            )
        sums[match[2]] = match[1]
    return sums


def _tag_of(part: Path) -> Path:
    """The file that stores the ETag or date of a partial file."""
    return part.with_name(f"{part.name}.etag")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
