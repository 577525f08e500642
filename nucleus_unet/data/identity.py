"""What identifies data: digests of files, of data sets, and of the code that reads them."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nucleus_unet.data.layouts import RawSample
from nucleus_unet.data.ome_zarr import zarr_files
from nucleus_unet.data.prepared import (
    DECODERS,
    Entry,
    Images,
    Labels,
    Progress,
    annotation_digest,
    in_threads,
)
from nucleus_unet.data.raw import open_raw, walk
from nucleus_unet.engine import code_digest
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes


def images_code() -> str:
    """Digest of the code and libraries that decide the pixels of decoded images."""
    return code_digest("data.images", libraries=DECODERS)


def labels_code() -> str:
    """Digest of the code and libraries that decide the pixels of merged labels."""
    return code_digest("data.prepared", libraries=DECODERS)


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over the names, sizes and modification times of the files of raw data sets.

    No file is read, so a million files take seconds. Equal fingerprints mean that nothing was written
    in the meantime. Copied or touched files have another fingerprint even if their content is the same.

    Parameters
    ----------
    paths : iterable of Path
        Folders, zips or image files. A path that does not exist counts as absent.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    NucleusError
        If a folder cannot be listed.

    Notes
    -----
    Files that `open_raw` ignores do not count.
    """
    found = [[str(path.absolute()), sorted(_file_states(path))] for path in paths]
    return sha256_bytes(json.dumps(found).encode())


def raw_digests(raws: Iterable[Path]) -> list[str]:
    """Content digest of each raw data set, the same wherever the data set lies."""
    found = []
    for path in raws:
        with open_raw(path) as raw:
            found.append(raw.digest())
    return found


def source_digests(path: Path, progress: Progress | None = None) -> set[str]:
    """The `Entry.source_sha256` of each image and annotation of a raw data set. All files are read.

    Raises
    ------
    NucleusError
        As `open_raw`, or if a file cannot be read.
    """
    with open_raw(path) as raw:

        def digests(sample: RawSample) -> list[str]:
            files = [(file, raw.read(name)) for file, name in sample.annotation]
            ignore = raw.read(sample.ignore) if sample.ignore else None
            annotation = [annotation_digest(files, ignore)] if sample.annotated else []
            return [sha256_bytes(raw.read(sample.image)), *annotation]

        return {one for both in in_threads(digests, raw.samples, progress) for one in both}


def require_unchanged(raws: Sequence[Path], digests: Sequence[str]) -> None:
    """Make sure that raw data sets still have the content digests that were taken before.

    Raises
    ------
    NucleusError
        If a data set changed, so that what was read of it belongs to no digest.
    """
    for path, before, after in zip(raws, digests, raw_digests(raws), strict=True):
        if before != after:
            raise NucleusError(
                f"{path} changed while it was being read. Start again when nothing writes to it."
            )


def identities(entries: Iterable[Entry]) -> list[list[str]]:
    """Id of each prepared entry, and the digest of its content and of the code that read it."""
    return [[entry.id, entry.digest] for entry in entries]


def dataset_digest(images: Images, labels: Labels | None) -> str:
    """SHA-256 over the ids and file contents of a data set, the same for a folder and its zip."""
    digest = hashlib.sha256()
    for entries in (images.entries, labels.entries if labels else ()):
        for entry in entries:
            digest.update(f"{entry.folder} {entry.id} {entry.source_sha256}\n".encode())
    return digest.hexdigest()


def dataset_files(images: Images, labels: Labels | None) -> list[dict[str, Any]]:
    """List the images of a data set.

    Returns
    -------
    list of dict
        ``id``, ``height`` and ``width`` in pixels, ``image_sha256`` of the image file and, if there
        are labels, ``masks_sha256`` of the annotation.
    """
    files: dict[str, dict[str, Any]] = {
        entry.id: {
            "height": entry.height,
            "width": entry.width,
            "image_sha256": entry.source_sha256,
        }
        for entry in images.entries
    }
    for entry in labels.entries if labels else ():
        files[entry.id]["masks_sha256"] = entry.source_sha256
    return [{"id": id_, **digests} for id_, digests in files.items()]


def _file_states(path: Path) -> Iterator[tuple[str, int, int]]:
    for name in _file_names(path):
        with contextlib.suppress(OSError):  # absent, a broken or circular link, or just removed
            stat = (path / name).stat()
            yield name, stat.st_size, stat.st_mtime_ns


def _file_names(path: Path) -> Iterator[str]:
    """Names of the files of a data set, also of those in an OME-Zarr."""
    for name in walk(path) if path.is_dir() else [""]:
        if (path / name).is_dir() and not name.endswith("/"):
            yield from (f"{name}/{file}" for file in zarr_files(path / name))
        elif not name.endswith("/"):
            yield name
