"""Prepared data: decoded images and merged labels as arrays on disk, made once.

An entry is a ``.npy`` file, named by the digest of everything that it was made from, and a record of
the same name next to it. An index lists the entries of one data set.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import filterfalse
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nucleus_unet.data.images import (
    Channels,
    decode_channels,
    decode_image,
    decode_labels,
    decode_mask,
    pixel_digest,
)
from nucleus_unet.data.masks import (
    REFUSED,
    DataProblem,
    Merged,
    merge_into_labels,
    number_label_image,
    size_text,
    with_ignored,
)
from nucleus_unet.data.microscopy import reader_of
from nucleus_unet.data.raw import RawDataset, RawSample, open_raw
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes, sha256_file, write_atomically, writing
from nucleus_unet.recipe import ONLY_PLANE, OnBad, Plane

DECODERS = ("opencv-python-headless", "tifffile", "imagecodecs", "pillow", "numpy")
"""Packages that decide the pixels, besides the code of this project and the readers of `microscopy`."""

Progress = Callable[[int, int], None]
"""Called with the number of finished items and the number of all items."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Record):
    """An array in the store."""

    folder: ClassVar[str]

    id: str
    digest: str
    """Name of the entry: a digest of its source, of the code that decides the pixels, and, for labels,
    of the size."""
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
    """Where the image was read: path of the raw data set, and file in it."""
    pixels_sha256: str
    """As `pixel_digest` gives it."""
    pixel_size_um: float | None
    """As in `DecodedImage`."""
    plane: Plane
    """Which plane of the file it is, if the file is a stack."""


class LabelsEntry(Entry):
    """Merged labels."""

    folder: ClassVar[str] = "labels"

    nuclei: int
    problems: tuple[DataProblem, ...]


class SkippedImage(_Record):
    """An image that could not be read."""

    id: str
    source: str
    """As in `ImageEntry`."""
    reason: str


class Images(_Record):
    """The images of a data set, sorted by id."""

    file: ClassVar[str] = "images.json"

    entries: tuple[ImageEntry, ...]
    skipped: tuple[SkippedImage, ...] = ()
    """Images that could not be read."""


class Labels(_Record):
    """The labels of a data set, sorted by id."""

    file: ClassVar[str] = "labels.json"

    entries: tuple[LabelsEntry, ...]
    skipped: tuple[LabelsEntry, ...] = ()
    """Entries that are not used, because their annotation cannot be right."""

    @property
    def problems(self) -> tuple[DataProblem, ...]:
        """Problems of all entries; each file name begins with the id of its image."""
        return tuple(
            DataProblem(f"{entry.id}/{problem.file}", problem.kind, problem.detail)
            for entry in (*self.entries, *self.skipped)
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
    plane: Plane = ONLY_PLANE,
    on_bad: OnBad = "stop",
) -> Images:
    """Decode the images of raw data sets into the store, except those that it holds already.

    Parameters
    ----------
    raws : sequence of Path
        Data sets as `open_raw` takes them. If several hold the same id with the same content, it
        counts once.
    store : Path
        Folder of the entries. It is created if it does not exist.
    code : str
        Digest of the code and of `DECODERS`, which decide the pixels. Another digest makes other
        entries.
    progress : Progress, optional
        Reports the progress.
    annotated : bool
        Require that every image is annotated, before any is decoded.
    plane : Plane
        Which plane of stacks is the image.
    on_bad : OnBad
        What to do with images that cannot be read: with ``skip`` they are left out.

    Raises
    ------
    NucleusError
        As `open_raw` and `decode_image`, if one id has different contents, or if no image can be read.
    """

    def entry(item: tuple[RawDataset, RawSample]) -> ImageEntry | SkippedImage:
        raw, sample = item
        source = str(raw.path if raw.path.name == sample.image else raw.path / sample.image)
        try:
            content = raw.read(sample.image)
            source_sha256 = sha256_bytes(content)
            made_from = f"image {code} {reader_of(content)} {tuple(plane)} {source_sha256}"
            digest = sha256_bytes(made_from.encode())
            if stored := _stored(ImageEntry, store, digest):
                return stored.model_copy(update={"id": sample.id, "source": source})
            decoded = decode_image(content, source, plane)
        except NucleusError as error:
            if on_bad != "skip":
                raise
            reason = str(error).removeprefix(f"{source}: ")
            return SkippedImage(id=sample.id, source=source, reason=reason)
        made = ImageEntry(
            id=sample.id,
            digest=digest,
            sha256="",
            source_sha256=source_sha256,
            height=decoded.image.shape[0],
            width=decoded.image.shape[1],
            source=source,
            pixels_sha256=pixel_digest(decoded.image),
            pixel_size_um=decoded.pixel_size_um,
            plane=plane,
        )
        return _store(store, made, decoded.image)

    with _samples(raws, annotated) as samples:
        found = [*in_threads(entry, samples, progress)]
    skipped = tuple(image for image in found if isinstance(image, SkippedImage))
    entries = _one_each(image for image in found if isinstance(image, ImageEntry))
    if not entries:
        examples = {image.reason: image for image in skipped}.values()  # one of each kind
        shown = " ".join(f"{image.source}: {image.reason}" for image in [*examples][:2])
        raise NucleusError(f"none of the {len(skipped)} images can be read. {shown}")
    return Images(entries=entries, skipped=skipped)


def prepare_labels(
    raws: Sequence[Path],
    images: Images,
    store: Path,
    code: str,
    progress: Progress | None = None,
    on_bad: OnBad = "stop",
    ignore_value: int | None = None,
) -> Labels:
    """Merge the masks of each image into labels in the store, except those that it holds already.

    Parameters
    ----------
    raws, store, code, progress
        As for `prepare_images`.
    images : Images
        The images of the same data sets, from `prepare_images`.
    on_bad : OnBad
        What to do with annotations that cannot be right: of a kind in `REFUSED`.
    ignore_value : int, optional
        Value in label images of the pixels that nobody annotated.

    Raises
    ------
    NucleusError
        If an image is not annotated or not in `images`, one id has different contents, a file cannot
        be read and `on_bad` is not ``skip``, or an annotation cannot be right and `on_bad` is ``stop``.
    """
    shapes = {image.id: (image.height, image.width) for image in images.entries}

    def entry(item: tuple[RawDataset, RawSample]) -> LabelsEntry:
        raw, sample = item
        if sample.id not in shapes:
            raise NucleusError(
                f"{raw.path}: image {sample.id} was added while the data were being read. "
                "Start again when nothing writes to the data set."
            )
        height, width = shapes[sample.id]
        files = [(file, raw.read(name)) for file, name in sample.annotation]
        ignore = raw.read(sample.ignore) if sample.ignore else None
        source_sha256 = annotation_digest(files, ignore)
        made_from = f"labels {code} {height} {width} {ignore_value} {source_sha256}"
        digest = sha256_bytes(made_from.encode())
        found = _stored(LabelsEntry, store, digest)
        if found is not None:
            return found.model_copy(update={"id": sample.id})
        name = f"{raw.path}: {sample.id}"
        made = LabelsEntry(
            id=sample.id,
            digest=digest,
            sha256="",
            source_sha256=source_sha256,
            height=height,
            width=width,
            nuclei=0,
            problems=(),
        )
        try:
            merged = _merge(files, (height, width), name, sample, ignore_value)
            if ignore is not None:
                mask = _of_size(
                    decode_mask(ignore, f"{name}, ignore"), (height, width), f"{name}, ignore"
                )
                merged = replace(merged, labels=with_ignored(merged.labels, mask != 0))
        except NucleusError as error:
            if on_bad != "skip":
                raise
            first = next((file for file, _ in files), "ignore")
            problem = DataProblem(first, "unreadable", str(error).removeprefix(f"{name}/{first}: "))
            return made.model_copy(update={"problems": (problem,)})
        nuclei, problems = int(merged.labels.max(initial=0)), merged.problems
        made = made.model_copy(update={"nuclei": nuclei, "problems": problems})
        fits = merged.labels.min(initial=0) == 0 and made.nuclei <= np.iinfo(np.uint16).max
        smallest = np.uint16 if fits else np.int32
        return _store(store, made, merged.labels.astype(smallest))

    with _samples(raws, annotated=True) as samples:
        entries = _one_each(in_threads(entry, samples, progress))
    if on_bad == "accept":
        return Labels(entries=entries)
    bad = tuple(filter(_is_refused, entries))
    if bad and on_bad == "stop":
        problem = next(filter(_is_refusal, bad[0].problems))
        raise NucleusError(
            f"{len(bad)} of {len(entries)} annotations cannot be right, for example {bad[0].id}/"
            f"{problem.file}: {problem.detail}. nucleus check lists all of them. Repair them, or train "
            "with --on-bad skip or accept."
        )
    return Labels(entries=tuple(filterfalse(_is_refused, entries)), skipped=bad)


def annotation_digest(files: Iterable[tuple[str, bytes]], ignore: bytes | None = None) -> str:
    """SHA-256 over the annotation files of an image, by name, and its mask of pixels to ignore."""
    listing = "".join(f"{file} {sha256_bytes(content)}\n" for file, content in files)
    if ignore is not None:
        listing += f"ignore {sha256_bytes(ignore)}\n"
    return sha256_bytes(listing.encode())


def _is_refused(entry: LabelsEntry) -> bool:
    return any(map(_is_refusal, entry.problems))


def _is_refusal(problem: DataProblem) -> bool:
    return problem.kind in REFUSED


def originals(
    raws: Sequence[Path], entries: Sequence[ImageEntry]
) -> Iterator[tuple[ImageEntry, Channels]]:
    """Images of raw data sets with the values of their files, as `decode_channels` gives them.

    Raises
    ------
    NucleusError
        If a file has changed or is missing since `prepare_images` read it.
    """
    with _samples(raws, annotated=False) as samples:
        files = {sample.id: (raw, sample.image) for raw, sample in samples}
        for entry in entries:
            raw, name = files.get(entry.id, (None, ""))
            content = raw.read(name) if raw else b""
            if sha256_bytes(content) != entry.source_sha256:
                raise NucleusError(
                    f"{entry.source}: the file has changed since it was read. Start again when nothing "
                    "writes to it."
                )
            yield entry, decode_channels(content, entry.source, entry.plane)


def load_image(store: Path, entry: ImageEntry) -> NDArray[np.uint8]:
    """A stored image, (H, W, 3) uint8 RGB, mapped read-only. A file is open while it is in use."""
    return _load(store, entry)


def load_labels(store: Path, entry: LabelsEntry) -> NDArray[np.integer[Any]]:
    """Stored labels, (H, W) uint16 or int32, mapped read-only. A file is open while they are in use.

    Pixels that nobody annotated are `IGNORED`.
    """
    return _load(store, entry)


def damaged_entries(store: Path, entries: Iterable[Entry]) -> list[str]:
    """Ids of the entries whose arrays are missing from the store or damaged."""
    return [entry.id for entry in entries if not _is_whole(store, entry)]


def write_index(folder: Path, index: Images | Labels) -> None:
    """Write the list of entries into a folder, as ``images.json`` or ``labels.json``."""
    write_atomically(folder / index.file, index.model_dump_json(indent=1))


def read_images(folder: Path) -> Images:
    """Read the list of images that `write_index` wrote into a folder.

    Raises
    ------
    NucleusError
        If the file is missing or is not a list of images.
    """
    return _read_index(folder, Images)


def read_labels(folder: Path) -> Labels:
    """Read the list of labels that `write_index` wrote into a folder.

    Raises
    ------
    NucleusError
        If the file is missing or is not a list of labels.
    """
    return _read_index(folder, Labels)


def _read_index(folder: Path, kind: type[Index]) -> Index:
    path = folder / kind.file
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise NucleusError(
            f"{path} is missing or is not a list of prepared data. Delete its folder and run again."
        ) from error


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None
) -> Iterator[Result]:
    """Results in the order of the items. Threads help, because decoding and hashing release the GIL."""
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(function, items), 1):
            yield result
            if progress is not None:
                progress(done, len(items))


def _merge(
    files: list[tuple[str, bytes]],
    shape: tuple[int, int],
    name: str,
    sample: RawSample,
    ignore_value: int | None,
) -> Merged:
    if sample.label_image is None:
        return merge_into_labels(
            ((file, decode_mask(content, f"{name}/{file}")) for file, content in files), shape
        )
    [(file, content)] = files
    labels = _of_size(decode_labels(content, f"{name}/{file}"), shape, f"{name}/{file}")
    return number_label_image(file, labels, ignore_value)


def _of_size(labels: NDArray[Any], shape: tuple[int, int], name: str) -> NDArray[Any]:
    if labels.shape != shape:
        raise NucleusError(
            f"{name}: {size_text(labels.shape)}, but the image is {size_text(shape)}. "
            "Save the labels at the size of the image."
        )
    return labels


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
                f"{entry.id}: two data sets contain this id with different {entry.folder}. "
                "Rename one of them, or leave one of the data sets out."
            )
    return tuple(by_id[id_] for id_ in sorted(by_id))


def _store(store: Path, entry: AnyEntry, array: NDArray[Any]) -> AnyEntry:
    """Write the array, then the record; a record means that its array is complete."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    entry = entry.model_copy(update={"sha256": sha256_bytes(content)})
    path = entry.path(store)
    with writing(path, "Free some disk space, or set NUCLEUS_HOME to a folder on another disk."):
        write_atomically(path, content)
        write_atomically(path.with_suffix(".json"), entry.model_dump_json())
    return entry


def _stored(kind: type[AnyEntry], store: Path, digest: str) -> AnyEntry | None:
    """The entry with this digest, if its array is complete."""
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
        return np.load(entry.path(store), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise NucleusError(
            f"{entry.path(store)}: the prepared {entry.folder} of {entry.id} are missing or damaged. "
            "Start again to rebuild them."
        ) from error
