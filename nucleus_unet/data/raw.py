"""Read raw data sets from a folder, a zip file or one image file, without unpacking them."""

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nucleus_unet.data.layouts import DATA_SET, LAYOUT, PICTURE, RawSample, read_layout
from nucleus_unet.data.ome_zarr import is_zarr, join_zarr, pack_folder
from nucleus_unet.errors import UNPRINTABLE, NucleusError
from nucleus_unet.files import sha256_bytes, sha256_file

SAMPLE_NAMES = {
    "built-in-sample": "built-in sample",
    "built-in-sample-test": "built-in sample, test images",
}
"""Folders of the built-in sample, and what the data sets are called."""
LARGEST_MEMBER_BYTES = 2**31
"""Limit for an unpacked file: a few bytes of a zip file can unpack to any amount of memory."""
MOST_LEVELS = 16
"""Limit for folders within folders."""

DAMAGED_ZIP = (
    *(OSError, EOFError, RuntimeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What zipfile raises for damaged files, and for those that are none."""

_NO_FILE = "it is a pipe or a device and not a file"


@dataclass(frozen=True)
class RawDataset:
    """An open raw data set, as `open_raw` yields it. Several threads may read from it."""

    path: Path
    layout: str
    """What the layout is called."""
    samples: tuple[RawSample, ...]
    """Sorted by id. In a folder of plain images, the id is the file name without its ending."""
    members: Mapping[str, Callable[[], bytes]]
    """For each file by name, a function that reads it."""
    unread: tuple[str, ...]
    """Files that belong to no sample, sorted, with unprintable characters replaced."""

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
        except DAMAGED_ZIP as error:
            raise NucleusError(
                f"{self.path}: {name} cannot be read ({error}). Download or copy the data again."
            ) from error

    def digest(self) -> str:
        """SHA-256 of the zip file; of a folder or an image, of the names and contents of its files.

        A file that cannot be read counts by its name alone; who decodes it reports it.
        """
        if self.path.is_file() and not PICTURE.fullmatch(self.path.name):
            return sha256_file(self.path)
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.id}\0{sample.annotated}\n".encode())
            for name in sample.files:
                try:
                    content = sha256_bytes(self.read(name))
                except NucleusError:
                    content = "unreadable"
                digest.update(f"{name}\0{content}\n".encode())
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
    A folder or zip file contains one of these layouts, at its root or below one top folder:

    - Kaggle's: ``<id>/images/<id>.png`` with one file for each nucleus in ``<id>/masks/``. Instead of
      the masks folder a sample may have one label image, ``<id>/labels.png`` or ``<id>/masks.png``.
      ``<id>/ignore.png`` marks the pixels that nobody annotated.
    - A folder of images and one of label images with the same names: ``images`` with ``masks`` or
      ``labels`` (StarDist, BiaPy), ``Training_source`` with ``Training_target`` (ZeroCostDL4Mic), or
      ``imagesTr`` with ``labelsTr`` (nnU-Net, whose images end in ``_0000``). A folder ``ignore`` next
      to them may hold a mask of the pixels that nobody annotated, with the name of its image.
    - Images next to each other, each perhaps with a label image that has the same name and ``_masks`` or
      ``_cp_masks`` (cellpose). A single image file is read like this too.

    Images are PNG, TIFF, JPEG, BMP, WebP, CZI, ND2, LIF or OME-Zarr; masks and label images are PNG,
    TIFF or BMP. An OME-Zarr is a folder that counts as one file: its name ends in ``.zarr``, or it holds
    ``.zattrs`` or ``zarr.json``. It may also be a zip file whose name ends in ``.zarr.zip``. Ignored are
    files that are not images, except in a masks folder, and files that operating systems add: names
    that begin with a dot, ``__MACOSX``, ``Thumbs.db`` and ``desktop.ini``.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise NucleusError(
            f"{path}: cannot be accessed ({error.strerror}). Check the path and its permissions."
        ) from error
    with ExitStack() as resources:
        if is_folder:
            members = dict(_folder_members(path))
        elif not exists:
            raise NucleusError(f"{path}: no such file or folder. {DATA_SET}")
        elif not path.is_file():
            raise NucleusError(f"{path}: {_NO_FILE}. {DATA_SET}")
        elif PICTURE.fullmatch(path.name):
            members = {path.name: path.read_bytes}
        else:
            members = join_zarr(_zip_members(path, resources))
        seen = [name for name in members if not any(map(_is_clutter, name.split("/")))]
        layout, found = read_layout(path, seen)
        samples = tuple(sorted(found, key=lambda sample: sample.id))
        for sample in samples:
            if annotated and not sample.annotated:
                raise NucleusError(
                    f"{path}: image {sample.id} has no masks folder and no label image. "
                    f"Add one of them, for example as {LAYOUT}."
                )
        read = {name for sample in samples for name in sample.files}
        others = (name for name in seen if name not in read and not name.endswith("/"))
        unread = tuple(sorted(UNPRINTABLE.sub("?", name) for name in others))
        yield RawDataset(path, layout, samples, members, unread)


def dataset_name(paths: Sequence[Path]) -> str:
    """A name for the data set of several paths, within the 500 characters that MLflow allows."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    name = paths[0].absolute().name[:400]
    return f"{SAMPLE_NAMES.get(name, name)}{more}"


def is_sample(paths: Sequence[Path]) -> bool:
    """Whether a data set is the built-in sample, by the names of its folders."""
    return all(path.absolute().name in SAMPLE_NAMES for path in paths)


def walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """Names of the files and folders that `open_raw` reads, relative to `folder`.

    The names of folders end in a slash. An OME-Zarr counts as a file; if `folder` is one, its name is
    a dot. Links to an enclosing folder are left out.

    Raises
    ------
    NucleusError
        If a folder cannot be listed, or is more than `MOST_LEVELS` deep.
    """
    if prefix.count("/") > MOST_LEVELS:
        raise NucleusError(
            f"{folder}: more than {MOST_LEVELS} folders deep. Give the folder that holds the images."
        )
    if not prefix and is_zarr(folder):
        yield "."
        return
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
            links_upwards = entry.is_symlink() and folder.resolve().is_relative_to(
                Path(entry.path).resolve()
            )
        except OSError:  # a link that points to itself
            is_folder = links_upwards = False
        if links_upwards:
            continue
        if not is_folder or is_zarr(Path(entry.path)):
            yield name
        else:
            yield f"{name}/"
            yield from walk(Path(entry.path), f"{name}/")


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


def _folder_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each file of a folder, or the folder itself if it is an OME-Zarr, and a function that reads it."""
    for name in walk(path):
        place = path / name
        if name.endswith("/") or not place.is_dir():
            yield name, partial(_read_file, place)
            continue
        shown = path.resolve().name if name == "." else name
        ending = "" if PICTURE.fullmatch(shown) else ".zarr"
        yield f"{shown}{ending}", partial(pack_folder, place)


def _read_file(place: Path) -> bytes:
    if place.exists() and not place.is_file():  # reading a pipe would wait for ever
        raise OSError(_NO_FILE)
    return place.read_bytes()


def _zip_members(path: Path, resources: ExitStack) -> dict[str, Callable[[], bytes]]:
    try:
        archive = resources.enter_context(zipfile.ZipFile(path))
    except DAMAGED_ZIP as error:
        raise NucleusError(
            f"{path}: not a folder, a complete zip file or an image ({error}). Download it again."
        ) from error
    # Some zip tools write backslashes (on Windows) or names that begin with "./".
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/").removeprefix("./")
        if name in members and not name.endswith("/"):
            raise NucleusError(
                f"{path}: {name!r:.200} is in the zip file twice. Create the zip file again."
            )
        members[name] = info
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
