"""The publisher's files of a data set: fetched whole, resumed when cut, their hashes on record."""

import os
import re
import time
import zipfile
from collections.abc import Callable
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

DownloadProgress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes there so far, and the bytes in all where they are known."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_TIMEOUT_S = 30.0


def download_dataset(
    name: str, to: Path, base_url: str = PUBLISHER, progress: DownloadProgress | None = None
) -> list[Path]:
    """Fetch a data set's files into a folder, and hold them to the hashes of the first fetch.

    A file that is there and has its recorded hash is not downloaded again. A download that was
    cut goes on from ``<file>.part`` if the server still has the same file, and starts over if not.
    A file gets its name once it is whole and its hash stands in ``SHA256SUMS`` (`sha256sum -c`
    reads it); none that is there is ever overwritten.

    Parameters
    ----------
    name : str
        A key of `FILES`.
    to : Path
        Folder of the files and of ``SHA256SUMS``; made where it is missing.
    base_url : str, optional
        Where the files lie.
    progress : callable, optional
        Called as ``progress(file, done_bytes, total_bytes or None)`` as bytes arrive, and once
        for a file that is there already.

    Returns
    -------
    list of Path
        The files, in the order of `FILES`.

    Raises
    ------
    NucleusError
        If the name is unknown, the server cannot be reached or refuses, the folder cannot be
        written, another fetch into it is under way, or a file is not the one of the first fetch.
    """
    if name not in FILES:
        raise NucleusError(f"data set {name!r} is not known: choose one of {', '.join(FILES)}")

    def busy() -> None:
        raise NucleusError(f"{to}: another fetch into it is under way: wait for its end")

    report = progress or (lambda file, done, total: None)
    paths = [to / file for file in FILES[name]]
    try:
        with (
            locked(to / ".nucleus-fetch.lock", busy),
            httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client,
        ):
            for path in paths:
                if path.exists():
                    _check_hash(path, path, "delete it to fetch it again")
                    report(path.name, path.stat().st_size, path.stat().st_size)
                else:
                    _fetch_one(client, f"{base_url.rstrip('/')}/{path.name}", path, report)
    except OSError as error:
        raise NucleusError(
            f"cannot write {error.filename or to}: {error.strerror}; "
            "make room there or choose another folder"
        ) from error
    return paths


def _fetch_one(client: httpx.Client, url: str, path: Path, report: DownloadProgress) -> None:
    """Download one file, check it, record its hash, and only then give it its name."""
    part = path.with_name(f"{path.name}.part")
    _download(client, url, part, report)
    sums = _read_sums(path.parent)
    try:
        _check_form(url, part)
        if path.name in sums:
            _check_hash(part, path, f"remove its line from {SUMS} to accept the new one")
        else:
            sums[path.name] = sha256_file(part)
            lines = [f"{digest}  {file}\n" for file, digest in sums.items()]
            write_atomically(path.parent / SUMS, "".join(lines))
    except NucleusError:  # it is another file, and not to be gone on with
        part.unlink()
        _tag_of(part).unlink(missing_ok=True)
        raise
    os.replace(part, path)
    _tag_of(part).unlink(missing_ok=True)


def _download(client: httpx.Client, url: str, part: Path, report: DownloadProgress) -> None:
    """Bring `part` to completion through broken connections; every gain renews the patience."""
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
                    f"cannot fetch {url}: {_one_line(error)}; check the network and run the same "
                    "command again, it goes on from where it stopped"
                ) from error
            time.sleep(pause)
        except httpx.HTTPError as error:
            raise NucleusError(
                f"cannot fetch {url}: {_one_line(error)}; try again later"
            ) from error


def _stream(client: httpx.Client, url: str, part: Path, report: DownloadProgress) -> None:
    """One request: append to `part` where the server vouches for the same file, else start over."""
    tag = _tag_of(part)
    offset = part.stat().st_size if part.exists() and tag.exists() else 0
    validator = tag.read_text() if offset else ""
    headers = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file itself
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with client.stream("GET", url, headers=headers) as response:
        span = response.headers.get("Content-Range", "")
        # RFC 9110 lets an answer to If-Range leave Last-Modified out
        same_file = _validator(response) in (validator, "")
        right_place = bool(offset) and span.startswith(f"bytes {offset}-")
        resumed = response.status_code == 206 and right_place and same_file
        if offset and response.status_code == 416 and span == f"bytes */{offset}" and same_file:
            return  # it was whole already
        if offset and not resumed and response.status_code in (206, 416):
            part.unlink()
            _stream(client, url, part, report)
            return
        if response.status_code != 200 and not resumed:
            raise NucleusError(
                f"{url}: the server answered {response.status_code} {response.reason_phrase}; "
                "try again later, or fetch the file by hand from the source page"
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
        raise httpx.RemoteProtocolError(f"{done} bytes came of {total}")


def _validator(response: httpx.Response) -> str:
    """What If-Range may carry: a strong ETag, else the date; empty where the server gives none."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _check_form(url: str, part: Path) -> None:
    """Refuse what is not the kind of file its name says, such as a proxy's page of HTML."""
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
            f"{url}: what came is not a whole {url.rpartition('.')[2]} file; "
            "check what answers at this address (a proxy?) and fetch again"
        )


def _check_hash(content: Path, path: Path, way_out: str) -> None:
    """Refuse content that is not what stands in the record under the name of `path`."""
    recorded = _read_sums(path.parent).get(path.name)
    if recorded is None:
        raise NucleusError(
            f"{path} is there without a recorded hash: move it away, or accept it as it is by "
            f"`sha256sum {path.name} >> {SUMS}` in its folder"
        )
    if (found := sha256_file(content)) != recorded:
        raise NucleusError(
            f"{path}: its SHA-256 is {found}, the first fetch recorded {recorded}; {way_out}"
        )


def _read_sums(folder: Path) -> dict[str, str]:
    """Read the hashes by file name; empty where there is no record yet."""
    path, sums = folder / SUMS, {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise NucleusError(
                f"{path}, line {number}: not `<sha256>  <file>` as sha256sum writes it; "
                "mend or remove the line"
            )
        sums[match[2]] = match[1]
    return sums


def _tag_of(part: Path) -> Path:
    """Where the validator of a partial file is kept."""
    return part.with_name(f"{part.name}.etag")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
