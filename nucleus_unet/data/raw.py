"""Read raw data sets from a folder, a zip file or one image file, without unpacking them."""

import hashlib
import lzma
import os
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import UNPRINTABLE, sha256_bytes, sha256_file

LAYOUT = (
    "<id>/images/<id>.png and, for training, <id>/masks/*.png or one label image <id>/labels.png"
)
_DATA_SET = f"A data set is a folder or zip file of PNG, TIFF or JPEG images, or of {LAYOUT}."
SAMPLE_NAMES = {
    "built-in-sample": "built-in sample",
    "built-in-sample-test": "built-in sample, test images",
}
"""Folders of the built-in sample, and what the data sets are called."""
LARGEST_MEMBER_BYTES = 2**31
"""Limit for an unpacked file: a few bytes of a zip file can unpack to any amount of memory."""
LONGEST_ID_BYTES = 240
"""Output files are named after the id, and file systems limit the length of a name."""
_DEPTH = 4  # the levels: top folder, id, "images" or "masks", file

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)

_PICTURE = re.compile(r"(?:.*/)?[^/]+\.(?:png|tiff?|jpe?g)", re.IGNORECASE)
_KAGGLE = re.compile(
    r"(?:(?P<top>[^/]+)/)?(?P<id>[^/]+)/(?:"
    r"(?P<image>images/)(?:[^/]+\.(?:png|tiff?|jpe?g))?|"
    r"(?P<folder>masks/)(?:[^/]+\.(?:png|tiff?))?|"
    r"(?P<labels>(?:masks|labels)\.(?:png|tiff?)))",
    re.IGNORECASE,
)
_IN_MASKS = re.compile(r"(?:[^/]+/){1,2}masks/.+", re.IGNORECASE)
_FLAT = re.compile(r"(?:(?P<top>[^/]+)/)?(?P<id>[^/]+)\.(?:png|tiff?|jpe?g)", re.IGNORECASE)


@dataclass(frozen=True)
class RawSample:
    """One image and its annotation, as names of files in the data set."""

    id: str
    image: str
    masks: tuple[str, ...] = ()
    label_image: str | None = None
    annotated: bool = False
    """Whether there is a label image or a masks folder.

    An empty masks folder is the annotation of an image without nuclei.
    """

    @property
    def annotation(self) -> tuple[tuple[str, str], ...]:
        """Name within the sample's folder and name in the data set, of each mask or the label image."""
        if self.label_image is not None:
            return ((self.label_image.rpartition("/")[2], self.label_image),)
        return tuple(("/".join(name.split("/")[-2:]), name) for name in self.masks)


@dataclass(frozen=True)
class RawDataset:
    """An open raw data set, as `open_raw` yields it. Several threads may read from it."""

    path: Path
    samples: tuple[RawSample, ...]
    """Sorted by id. In a folder of plain images, the id is the file name without its ending."""
    members: Mapping[str, Callable[[], bytes]]
    """For each file by name, a function that reads it."""
    unread: tuple[str, ...]
    """Files that belong to no sample, sorted, with unprintable characters replaced.

    Folders are searched as deep as the layout goes.
    """

    def read(self, name: str) -> bytes:
        """The content of a file; files in a zip are unpacked in memory.

        Raises
        ------
        NucleusError
            If the file no longer exists, is damaged, or has a compression that Python does not
            support.
        """
        try:
            return self.members[name]()
        except (OSError, EOFError, NotImplementedError, *_DAMAGED) as error:
            raise NucleusError(
                f"{self.path}: {name} cannot be read ({error}). Download or copy the data again."
            ) from error

    def digest(self) -> str:
        """SHA-256 of the zip file; of a folder or an image, of the names and contents of its files."""
        if self.path.is_file() and not _PICTURE.fullmatch(self.path.name):
            return sha256_file(self.path)
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.id}\0{sample.annotated}\n".encode())
            for name in (sample.image, *(member for _, member in sample.annotation)):
                digest.update(f"{name}\0{sha256_bytes(self.read(name))}\n".encode())
        return digest.hexdigest()


@contextmanager
def open_raw(path: Path, *, annotated: bool = False) -> Iterator[RawDataset]:
    """Open a data set for the length of a ``with`` block. Nothing is unpacked to the disk.

    Parameters
    ----------
    path : Path
        A folder, a zip file or an image file.
    annotated : bool
        Whether every sample must have a masks folder or a label image, as training requires.

    Yields
    ------
    RawDataset

    Raises
    ------
    NucleusError
        - If there is nothing at the path, or it cannot be accessed.
        - If a file is neither a zip file nor an image.
        - If a file in a zip has a name that points outside the zip, is encrypted or is larger than
          `LARGEST_MEMBER_BYTES`.
        - If an image is not where the layout expects one, or a masks folder contains anything else
          than masks.
        - If a name cannot be printed, or an id is longer than `LONGEST_ID_BYTES`.
        - If an id has several images or none or, with `annotated`, no annotation.

    Notes
    -----
    A folder or zip file contains one of two layouts, at its root or below one top folder:

    - Kaggle's layout: ``<id>/images/<id>.png`` with one file for each nucleus in ``<id>/masks/``.
      Instead of the masks folder a sample may have one label image, ``<id>/labels.png`` or
      ``<id>/masks.png``.
    - Image files next to each other, without annotation. A single image file is read like this too.

    Images are PNG, TIFF or JPEG; masks and label images are PNG or TIFF. Ignored are files that are
    not images, except in a masks folder, and files that operating systems add: names that begin with
    a dot, ``__MACOSX``, ``Thumbs.db`` and ``desktop.ini``.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise NucleusError(
            f"{path}: cannot be accessed ({error.strerror}). Check the path and its permissions."
        ) from error
    with ExitStack() as resources:
        if is_folder:
            members: dict[str, Callable[[], bytes]] = {
                name: (path / name).read_bytes for name in walk(path)
            }
        elif not exists:
            raise NucleusError(f"{path}: no such file or folder. {_DATA_SET}")
        elif _PICTURE.fullmatch(path.name):
            members = {path.name: path.read_bytes}
        else:
            members = _zip_members(path, resources)
        samples = tuple(sorted(_samples(path, members), key=lambda sample: sample.id))
        for sample in samples:
            if annotated and not sample.annotated:
                raise NucleusError(
                    f"{path}: image {sample.id} has no masks folder and no label image. "
                    f"Add one of them. The layout is {LAYOUT}."
                )
        read = {name for s in samples for name in (s.image, *(file for _, file in s.annotation))}
        files = (name for name in members if not name.endswith("/"))
        others = (n for n in files if n not in read and not any(map(_is_clutter, n.split("/"))))
        unread = tuple(sorted(UNPRINTABLE.sub("?", name) for name in others))
        yield RawDataset(path, samples, members, unread)


def dataset_name(paths: Sequence[Path]) -> str:
    """A name for the data set of several paths, within the 500 characters that MLflow allows."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    name = paths[0].absolute().name[:400]
    return f"{SAMPLE_NAMES.get(name, name)}{more}"


def walk(folder: Path, depth: int = _DEPTH, prefix: str = "") -> Iterator[str]:
    """Names of the files and folders that `open_raw` reads, relative to `folder`.

    The names of folders end in a slash.

    Raises
    ------
    NucleusError
        If a folder cannot be listed.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise NucleusError(
            f"{folder}: cannot be listed ({error.strerror}). Check its permissions."
        ) from error
    for entry in entries:
        name = prefix + entry.name
        if _is_clutter(entry.name):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that points to itself
            is_folder = False
        if not is_folder:
            yield name
        else:
            yield f"{name}/"
            if depth > 1:
                yield from walk(Path(entry.path), depth - 1, f"{name}/")


def reads(dataset: Path, place: Path) -> bool:
    """Whether `open_raw` would read a file at `place` as part of the data set."""
    if not (dataset.is_dir() and place.resolve().is_relative_to(dataset.resolve())):
        return False
    return not any(map(_is_clutter, place.resolve().relative_to(dataset.resolve()).parts))


def require_outside(images: Sequence[Path], out: Path) -> None:
    """Make sure that results do not land among the images that they are made from.

    Raises
    ------
    NucleusError
        If a result would be read as an image the next time, or would overwrite an image.
    """
    results = [(out / name).resolve() for name in ("labels", "overlays", "outlines")]
    for path in images:
        folder = path if path.is_dir() else path.parent
        if reads(path, out) or folder.resolve() in results:
            raise NucleusError(
                f"The results in {out} would mix with the images in {path}. Choose a folder "
                "outside of it with --out."
            )


def _is_clutter(name: str) -> bool:
    """Whether the operating system added a file or folder to the data."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _zip_members(path: Path, resources: ExitStack) -> dict[str, Callable[[], bytes]]:
    try:
        archive = resources.enter_context(zipfile.ZipFile(path))
    except (OSError, NotImplementedError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise NucleusError(
            f"{path}: not a folder, a complete zip file or an image ({error}). Download it again."
        ) from error
    # Some zip tools write backslashes (on Windows) or names that begin with "./".
    members = {
        info.filename.replace("\\", "/").removeprefix("./"): info for info in archive.infolist()
    }
    for name, info in members.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise NucleusError(
                f"{path}: the name {info.filename!r} points outside the zip file. "
                "Create the zip file with relative names."
            )
        if info.flag_bits & 1:
            raise NucleusError(
                f"{path}: {info.filename} is encrypted. Create the zip file without a password."
            )
        if info.file_size > LARGEST_MEMBER_BYTES:
            raise NucleusError(
                f"{path}: {info.filename} is {info.file_size / 2**30:.1f} GiB when unpacked, and the "
                f"limit is {LARGEST_MEMBER_BYTES / 2**30:.0f} GiB. If the size is right, unpack the zip "
                "file yourself and give the folder."
            )
    return {name: partial(archive.read, info) for name, info in members.items()}


def _samples(path: Path, names: Mapping[str, object]) -> Iterator[RawSample]:
    """Group file names into samples, in whichever of the two layouts they have."""
    seen = [name for name in names if not any(map(_is_clutter, name.split("/")))]
    kaggle = {name: match for name in seen if (match := _KAGGLE.fullmatch(name))}
    is_kaggle = any(m["image"] and not name.endswith("/") for name, m in kaggle.items())
    matches = kaggle if is_kaggle else {n: m for n in seen if (m := _FLAT.fullmatch(n))}
    if not matches:
        raise NucleusError(f"{path}: no images found. {_DATA_SET}")
    tops = sorted({match["top"] or "" for match in matches.values()})
    for name in seen:
        if match := matches.get(name):
            if UNPRINTABLE.search(name):
                raise NucleusError(
                    f"{path}: the name {name!r} has characters that cannot be printed. Rename the file."
                )
            if len(match["id"].encode()) > LONGEST_ID_BYTES:
                raise NucleusError(
                    f"{path}: the id of {name} is longer than {LONGEST_ID_BYTES} bytes. Shorten it."
                )
        elif _PICTURE.fullmatch(name) or (is_kaggle and _IN_MASKS.fullmatch(name)):
            raise NucleusError(
                f"{path}: {name} does not fit the layout of a data set: images (PNG, TIFF or JPEG) and "
                f"masks (PNG or TIFF) in {LAYOUT}. Move or remove it."
            )
    if len(tops) > 1:
        named = " and ".join(top or "the root" for top in tops[:3])
        raise NucleusError(
            f"{path}: contains several data sets, below {named}. "
            "Give the path of one of them, or put each into a zip file of its own."
        )
    by_id: defaultdict[str, list[str]] = defaultdict(list)
    for name, match in matches.items():
        by_id[match["id"]].append(name)
    for id_, files in by_id.items():
        if is_kaggle:
            yield _kaggle_sample(path, id_, sorted(files), kaggle)
        else:
            yield RawSample(id_, _only(path, id_, "image", files))


def _kaggle_sample(
    path: Path, id_: str, files: list[str], matches: Mapping[str, re.Match[str]]
) -> RawSample:
    images = [name for name in files if matches[name]["image"] and not name.endswith("/")]
    in_folder = [name for name in files if matches[name]["folder"]]
    label_images = [name for name in files if matches[name]["labels"]]
    masks = tuple(name for name in in_folder if not name.endswith("/"))
    if masks and label_images:
        raise NucleusError(
            f"{path}: {id_} has both a masks folder and the label image {label_images[0]}. "
            "Remove one of them."
        )
    return RawSample(
        id_,
        _only(path, id_, "image", images),
        masks,
        _only(path, id_, "label image", label_images) if label_images else None,
        bool(in_folder or label_images),
    )


def _only(path: Path, id_: str, what: str, files: list[str]) -> str:
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} {what}s ({', '.join(files[:2])})" if files else f"no {what}"
    raise NucleusError(
        f"{path}: {id_} has {found} and must have exactly one. The layout is {LAYOUT}."
    )
