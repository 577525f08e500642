"""Raw data sets as they are published, read in place."""

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
    "<id>/images/<id>.png with <id>/masks/*.png or one label image <id>/labels.png in their place"
)
LARGEST_MEMBER_BYTES = 2**31
"""Unpacked: a few bytes of a zip can claim any amount of memory."""
LONGEST_ID_BYTES = 240
"""Files are named by it."""
_DEPTH = 4  # top folder, id, "images" or "masks", file

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
    """One image and the files that say where its nuclei are, by member name."""

    id: str
    image: str
    masks: tuple[str, ...] = ()
    label_image: str | None = None
    annotated: bool = False
    """There is a label image or a masks folder; an empty folder says that there is no nucleus."""

    @property
    def annotation(self) -> tuple[tuple[str, str], ...]:
        """Name below the sample's folder, and member name, of each mask or of the label image."""
        if self.label_image is not None:
            return ((self.label_image.rpartition("/")[2], self.label_image),)
        return tuple(("/".join(name.split("/")[-2:]), name) for name in self.masks)


@dataclass(frozen=True)
class RawDataset:
    """A raw data set that `open_raw` has open; threads may read from it at once."""

    path: Path
    samples: tuple[RawSample, ...]
    """Sorted by id; without Kaggle's layout an id is the file name's stem."""
    members: Mapping[str, Callable[[], bytes]]
    """What reads each file, by name."""
    unread: tuple[str, ...]
    """Files that belong to no sample, as far as folders are looked into, sorted and printable."""

    def read(self, name: str) -> bytes:
        """The bytes of a member, which never touch the disk.

        Raises
        ------
        NucleusError
            The file is gone, or its part of the zip is damaged or of a compression that Python lacks.
        """
        try:
            return self.members[name]()
        except (OSError, EOFError, NotImplementedError, *_DAMAGED) as error:
            raise NucleusError(
                f"{self.path}: {name} cannot be read ({error}): fetch or copy the data again"
            ) from error

    def digest(self) -> str:
        """SHA-256 of the zip; of a folder or an image file over the names and contents of its files."""
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
    """Open a data set in Kaggle's layout, or images alone, within a block; nothing is unpacked.

    A folder or a zip holds, at its root or below one top folder, either Kaggle's layout
    (``<id>/images/<id>.png``, the nuclei one file each in ``<id>/masks/``) or image files side by
    side. In place of its masks folder a sample may have one label image, ``<id>/labels.png`` or
    ``<id>/masks.png``. One image file is a data set too. Images are PNG, TIFF or JPEG; masks and
    label images PNG or TIFF. Files that are no pictures, where they are not in a masks folder, and
    what computers put beside data (names that begin with a dot, ``__MACOSX``, ``Thumbs.db``,
    ``desktop.ini``) are passed over.

    Parameters
    ----------
    path : Path
        A folder, a zip or an image file.
    annotated : bool
        Demand a masks folder or a label image of every sample, as training does.

    Yields
    ------
    RawDataset

    Raises
    ------
    NucleusError
        Nothing at the path, or nothing that may be looked at; not a zip, a member of a zip that
        leads out of it, is encrypted or larger than `LARGEST_MEMBER_BYTES`, a picture where none
        belongs, anything but masks in a masks folder, a name that cannot be printed, an id of
        more than `LONGEST_ID_BYTES`, several images of one id, an id without image or, with
        `annotated`, without annotation.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise NucleusError(
            f"{path}: cannot be looked at ({error.strerror}): name what your user may read"
        ) from error
    with ExitStack() as resources:
        if is_folder:
            members: dict[str, Callable[[], bytes]] = {
                name: (path / name).read_bytes for name in walk(path)
            }
        elif not exists:
            raise NucleusError(
                f"{path}: no such file or folder: a data set is a folder or zip of {LAYOUT}"
            )
        elif _PICTURE.fullmatch(path.name):
            members = {path.name: path.read_bytes}
        else:
            members = _zip_members(path, resources)
        samples = tuple(sorted(_samples(path, members), key=lambda sample: sample.id))
        for sample in samples:
            if annotated and not sample.annotated:
                raise NucleusError(
                    f"{path}: image {sample.id} has no masks folder and no label image: training "
                    f"data are {LAYOUT}"
                )
        read = {name for s in samples for name in (s.image, *(file for _, file in s.annotation))}
        files = (name for name in members if not name.endswith("/"))
        others = (n for n in files if n not in read and not any(map(_is_clutter, n.split("/"))))
        unread = tuple(sorted(UNPRINTABLE.sub("?", name) for name in others))
        yield RawDataset(path, samples, members, unread)


def dataset_name(paths: Sequence[Path]) -> str:
    """What a raw data set of several places is called, in the 500 characters that MLflow allows."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0].absolute().name[:400]}{more}"


def walk(folder: Path, depth: int = _DEPTH, prefix: str = "") -> Iterator[str]:
    """Names, from the folder, of what `open_raw` looks at; those of folders end in a slash.

    Raises
    ------
    NucleusError
        A folder cannot be listed.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise NucleusError(
            f"{folder}: cannot be listed ({error.strerror}): name what your user may read"
        ) from error
    for entry in entries:
        name = prefix + entry.name
        if _is_clutter(entry.name):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if not is_folder:
            yield name
        else:
            yield f"{name}/"
            if depth > 1:
                yield from walk(Path(entry.path), depth - 1, f"{name}/")


def reads(dataset: Path, place: Path) -> bool:
    """Whether `open_raw` would take a file at a place for one of the data set's."""
    if not (dataset.is_dir() and place.resolve().is_relative_to(dataset.resolve())):
        return False
    return not any(map(_is_clutter, place.resolve().relative_to(dataset.resolve()).parts))


def _is_clutter(name: str) -> bool:
    """Whether a file or folder is what computers put beside data."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _zip_members(path: Path, resources: ExitStack) -> dict[str, Callable[[], bytes]]:
    try:
        archive = resources.enter_context(zipfile.ZipFile(path))
    except (OSError, NotImplementedError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise NucleusError(
            f"{path}: neither a folder, a whole zip nor an image ({error}): fetch it again"
        ) from error
    # Some tools of Windows write backslashes, some of others begin with "./".
    members = {
        info.filename.replace("\\", "/").removeprefix("./"): info for info in archive.infolist()
    }
    for name, info in members.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise NucleusError(
                f"{path}: member {info.filename!r} leads out of the zip: pack it with relative "
                "names"
            )
        if info.flag_bits & 1:
            raise NucleusError(f"{path}: {info.filename} is encrypted: pack it without a password")
        if info.file_size > LARGEST_MEMBER_BYTES:
            raise NucleusError(
                f"{path}: {info.filename} would unpack to {info.file_size / 2**30:.1f} GiB, more than "
                f"{LARGEST_MEMBER_BYTES / 2**30:.0f}: if it is meant, unpack the zip and give the folder"
            )
    return {name: partial(archive.read, info) for name, info in members.items()}


def _samples(path: Path, names: Mapping[str, object]) -> Iterator[RawSample]:
    """Sort the member names into samples, by the layout that they are in."""
    seen = [name for name in names if not any(map(_is_clutter, name.split("/")))]
    kaggle = {name: match for name in seen if (match := _KAGGLE.fullmatch(name))}
    is_kaggle = any(m["image"] and not name.endswith("/") for name, m in kaggle.items())
    matches = kaggle if is_kaggle else {n: m for n in seen if (m := _FLAT.fullmatch(n))}
    if not matches:
        raise NucleusError(f"{path}: no images found: a data set is a folder or zip of {LAYOUT}")
    tops = sorted({match["top"] or "" for match in matches.values()})
    for name in seen:
        if match := matches.get(name):
            if UNPRINTABLE.search(name):
                raise NucleusError(f"{path}: {name!r} cannot be printed: rename it")
            if len(match["id"].encode()) > LONGEST_ID_BYTES:
                raise NucleusError(
                    f"{path}: {name} is longer than the {LONGEST_ID_BYTES} bytes that an id may have: "
                    "rename it"
                )
        elif _PICTURE.fullmatch(name) or (is_kaggle and _IN_MASKS.fullmatch(name)):
            raise NucleusError(
                f"{path}: {name} is not where a picture belongs: images are PNG, TIFF or JPEG, "
                f"masks PNG or TIFF, in {LAYOUT}"
            )
    if len(tops) > 1:
        named = " and ".join(top or "the root" for top in tops[:3])
        raise NucleusError(
            f"{path}: holds images below {named}, and one data set at a time is read: name the "
            "folder itself, or pack each on its own"
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
            f"{path}: {id_} has a masks folder and the label image {label_images[0]}: keep one"
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
    raise NucleusError(f"{path}: {id_} has {found}, and must have one: the layout is {LAYOUT}")
