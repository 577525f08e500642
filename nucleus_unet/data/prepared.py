"""The prepared form: decoded images and merged labels as arrays on disk, made once.

An entry is a ``.npy`` file named by the digest of all that it was made from, and a record of the
same name beside it. An index lists the entries of one data set.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nucleus_unet.data.images import decode_image, decode_labels, decode_mask, decode_values
from nucleus_unet.data.masks import (
    DataProblem,
    Merged,
    check_label_image,
    merge_into_labels,
    relabel,
    size_text,
)
from nucleus_unet.data.raw import RawDataset, RawSample, open_raw
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes, sha256_file, write_atomically, writing

DECODERS = ("opencv-python-headless", "tifffile", "imagecodecs", "numpy")
"""Distributions that decide pixels beside our code."""

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Record):
    """An array in the store."""

    folder: ClassVar[str]

    id: str
    digest: str
    """The entry's name: of the source and the code that decides the pixels, and of labels' size."""
    sha256: str
    """Of the ``.npy`` file."""
    source_sha256: str
    """Of the image file, or of the names and contents of the annotation files."""
    height: int
    width: int

    def path(self, store: Path) -> Path:
        """The entry's ``.npy`` file."""
        return store / self.folder / f"{self.digest}.npy"


class ImageEntry(Entry):
    """A decoded image."""

    folder: ClassVar[str] = "images"

    source: str
    """Where the image was read: the raw data set's path and the member in it."""


class LabelsEntry(Entry):
    """Merged labels."""

    folder: ClassVar[str] = "labels"

    nuclei: int
    problems: tuple[DataProblem, ...]


class Images(_Record):
    """The images of a data set, sorted by id."""

    entries: tuple[ImageEntry, ...]


class Labels(_Record):
    """The labels of a data set, sorted by id."""

    entries: tuple[LabelsEntry, ...]

    @property
    def problems(self) -> tuple[DataProblem, ...]:
        """Of all entries, the image's id before each file name."""
        return tuple(
            DataProblem(f"{entry.id}/{problem.file}", problem.kind, problem.detail)
            for entry in self.entries
            for problem in entry.problems
        )


AnyEntry = TypeVar("AnyEntry", ImageEntry, LabelsEntry)
Index = TypeVar("Index", Images, Labels)
Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare_images(
    raws: Sequence[Path],
    store: Path,
    code: str,
    progress: Progress | None = None,
    *,
    annotated: bool = False,
) -> Images:
    """Decode the images of raw data sets into the store, but for those that are whole there.

    Parameters
    ----------
    raws : sequence of Path
        Data sets as `open_raw` takes them. An id that several of them hold with the same content
        is taken once.
    store : Path
        The folder of entries, made where absent.
    code : str
        Digest of the code, with `DECODERS`, that decides the pixels; another makes other entries.
    progress : Progress, optional
        Told how many are done, of how many.
    annotated : bool
        Demand annotation of every image, before anything is decoded.

    Raises
    ------
    NucleusError
        As `open_raw` and `decode_image`, and for one id with different contents.
    """

    def entry(item: tuple[RawDataset, RawSample]) -> ImageEntry:
        raw, sample = item
        content = raw.read(sample.image)
        source_sha256 = sha256_bytes(content)
        digest = sha256_bytes(f"image {code} {source_sha256}".encode())
        source = str(raw.path if raw.path.name == sample.image else raw.path / sample.image)
        found = _stored(ImageEntry, store, digest)
        if found is not None:
            return found.model_copy(update={"id": sample.id, "source": source})
        decoded = decode_image(content, source)
        made = ImageEntry(
            id=sample.id,
            digest=digest,
            sha256="",
            source_sha256=source_sha256,
            height=decoded.image.shape[0],
            width=decoded.image.shape[1],
            source=source,
        )
        return _store(store, made, decoded.image)

    with _samples(raws, annotated) as samples:
        return Images(entries=_one_each(in_threads(entry, samples, progress)))


def prepare_labels(
    raws: Sequence[Path],
    images: Images,
    store: Path,
    code: str,
    progress: Progress | None = None,
) -> Labels:
    """Merge the masks of each image into labels in the store, but for those that are whole there.

    Parameters
    ----------
    raws, store, code, progress
        As for `prepare_images`.
    images : Images
        What `prepare_images` made of the same data sets.

    Raises
    ------
    NucleusError
        An image is not annotated or not among `images`, a mask is truncated, a label image has
        another size than its image, or one id has different contents.
    """
    shapes = {image.id: (image.height, image.width) for image in images.entries}

    def entry(item: tuple[RawDataset, RawSample]) -> LabelsEntry:
        raw, sample = item
        if sample.id not in shapes:
            raise NucleusError(
                f"{raw.path}: image {sample.id} is new since the images were read: start again"
            )
        height, width = shapes[sample.id]
        files = [(file, raw.read(name)) for file, name in sample.annotation]
        listing = "".join(f"{file} {sha256_bytes(content)}\n" for file, content in files)
        source_sha256 = sha256_bytes(listing.encode())
        digest = sha256_bytes(f"labels {code} {height} {width} {source_sha256}".encode())
        found = _stored(LabelsEntry, store, digest)
        if found is not None:
            return found.model_copy(update={"id": sample.id})
        merged = _merge(files, (height, width), f"{raw.path}: {sample.id}", sample)
        made = LabelsEntry(
            id=sample.id,
            digest=digest,
            sha256="",
            source_sha256=source_sha256,
            height=height,
            width=width,
            nuclei=int(merged.labels.max(initial=0)),
            problems=merged.problems,
        )
        smallest = np.uint16 if made.nuclei <= np.iinfo(np.uint16).max else np.int32
        return _store(store, made, merged.labels.astype(smallest))

    with _samples(raws, annotated=True) as samples:
        return Labels(entries=_one_each(in_threads(entry, samples, progress)))


def originals(
    raws: Sequence[Path], entries: Sequence[ImageEntry]
) -> Iterator[tuple[ImageEntry, NDArray[Any]]]:
    """Images of raw data sets with the values of their files, as `decode_values` gives them.

    Raises
    ------
    NucleusError
        A file is gone or another than `prepare_images` read.
    """
    with _samples(raws, annotated=False) as samples:
        files = {sample.id: (raw, sample.image) for raw, sample in samples}
        for entry in entries:
            raw, name = files.get(entry.id, (None, ""))
            content = raw.read(name) if raw else b""
            if sha256_bytes(content) != entry.source_sha256:
                raise NucleusError(f"{entry.source}: changed since it was read: start again")
            yield entry, decode_values(content, entry.source)


def load_image(store: Path, entry: ImageEntry) -> NDArray[np.uint8]:
    """A stored image, (H, W, 3) uint8 RGB, mapped read-only; holds a file open while in use."""
    return _load(store, entry)


def load_labels(store: Path, entry: LabelsEntry) -> NDArray[np.integer[Any]]:
    """Stored labels, (H, W) uint16 or int32, mapped read-only; hold a file open while in use."""
    return _load(store, entry)


def damaged_entries(store: Path, entries: Iterable[Entry]) -> list[str]:
    """Ids of the entries whose arrays are missing from the store or not the bytes recorded."""
    return [entry.id for entry in entries if not _is_whole(store, entry)]


def write_index(path: Path, index: Images | Labels) -> None:
    """Write the list of entries as JSON."""
    write_atomically(path, index.model_dump_json(indent=1))


def read_index(path: Path, kind: type[Index]) -> Index:
    """Read what `write_index` wrote.

    Raises
    ------
    NucleusError
        The file is missing or not such an index.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise NucleusError(
            f"{path}: no index of prepared {kind.__name__.lower()}: prepare the data again"
        ) from error


def dataset_digest(images: Images, labels: Labels | None) -> str:
    """SHA-256 over the ids and the contents of their files, the same for a folder and its zip."""
    digest = hashlib.sha256()
    for entries in (images.entries, labels.entries if labels else ()):
        for entry in entries:
            digest.update(f"{entry.folder} {entry.id} {entry.source_sha256}\n".encode())
    return digest.hexdigest()


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None
) -> Iterator[Result]:
    """Results in the order of the items; decoding and hashing leave Python's lock alone."""
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(function, items), 1):
            yield result
            if progress is not None:
                progress(done, len(items))


def _merge(
    files: list[tuple[str, bytes]], shape: tuple[int, int], name: str, sample: RawSample
) -> Merged:
    if sample.label_image is None:
        return merge_into_labels(
            ((file, decode_mask(content, f"{name}/{file}")) for file, content in files), shape
        )
    [(file, content)] = files
    labels = decode_labels(content, f"{name}/{file}")
    if labels.shape != shape:
        raise NucleusError(
            f"{name}/{file}: {size_text(labels.shape)} where the image is {size_text(shape)}: save "
            "it at the size of the image"
        )
    return Merged(relabel(labels), check_label_image(file, labels))


@contextmanager
def _samples(raws: Sequence[Path], annotated: bool) -> Iterator[list[tuple[RawDataset, RawSample]]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(open_raw(path, annotated=annotated)) for path in raws]
        yield [(raw, sample) for raw in opened for sample in raw.samples]


def _one_each(entries: Iterable[AnyEntry]) -> tuple[AnyEntry, ...]:
    by_id: dict[str, AnyEntry] = {}
    for entry in entries:
        first = by_id.setdefault(entry.id, entry)
        if first.source_sha256 != entry.source_sha256:
            raise NucleusError(
                f"{entry.id}: two data sets hold this id with different {entry.folder}: rename "
                "one, or leave one of the data sets out"
            )
    return tuple(by_id[id_] for id_ in sorted(by_id))


def _store(store: Path, entry: AnyEntry, array: NDArray[Any]) -> AnyEntry:
    """Write the array, then the record that says that it is whole."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    entry = entry.model_copy(update={"sha256": sha256_bytes(content)})
    path = entry.path(store)
    with writing(path, "free the disk or set NUCLEUS_HOME"):
        write_atomically(path, content)
        write_atomically(path.with_suffix(".json"), entry.model_dump_json())
    return entry


def _stored(kind: type[AnyEntry], store: Path, digest: str) -> AnyEntry | None:
    """The entry of this digest, if its array is whole."""
    try:
        record = (store / kind.folder / f"{digest}.json").read_bytes()
        entry = kind.model_validate_json(record)
    except (OSError, ValidationError):
        return None
    return entry if entry.digest == digest and _is_whole(store, entry) else None


def _is_whole(store: Path, entry: Entry) -> bool:
    try:
        return sha256_file(entry.path(store)) == entry.sha256
    except OSError:
        return False


def _load(store: Path, entry: Entry) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(entry.path(store), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise NucleusError(
            f"{entry.path(store)}: the prepared {entry.folder} of {entry.id} are missing or "
            "damaged: start again, and they are made anew"
        ) from error
    return array
