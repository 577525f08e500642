"""Read one annotation file of another program."""

import contextlib
import gzip
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from nucleus_unet.data.annotations.cellpose import is_seg, read_seg
from nucleus_unet.data.annotations.coco import CocoImage, draw_coco, is_coco, read_coco
from nucleus_unet.data.annotations.geojson import read_geojson
from nucleus_unet.data.annotations.imagej import is_rois, read_rois
from nucleus_unet.data.masks import DataProblem, Merged, Region, merge_regions
from nucleus_unet.data.raw import DAMAGED_ZIP, LARGEST_MEMBER_BYTES
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import ONLY_PLANE, Plane

_GZIP, _ZIP = b"\x1f\x8b", b"PK\3\4"


def read_annotations(
    content: bytes, file: str, shape: tuple[int, int], plane: Plane = ONLY_PLANE
) -> Merged:
    """Read the nuclei of one image.

    Parameters
    ----------
    content : bytes
        The bytes of a file of QuPath, ImageJ or cellpose. They decide what kind of file it is, not
        the name.
    file : str
        Name of the file, for messages.
    shape : (int, int)
        Height and width of the image in pixels.
    plane : Plane
        Which plane of a stack is the image.

    Returns
    -------
    Merged
        The labels, 1..n in the order of the file. `merge_regions` decides which nucleus gets a pixel
        of several.

    Raises
    ------
    NucleusError
        If the file is damaged or of another kind, or is COCO JSON, which describes several images.
    """
    content = _unzipped(content)
    if is_seg(content):
        return read_seg(content, file, shape)
    if is_rois(content):
        return _merge(read_rois(content, file, shape, plane), shape)
    document = read_json(content, file)
    if is_coco(document):
        raise NucleusError(f"{file}: COCO JSON, which names its images. Give this file alone.")
    return _merge(read_geojson(document, file, shape), shape)


def read_coco_image(image: CocoImage, shape: tuple[int, int]) -> Merged:
    """Read the nuclei of one image of a COCO file, like `read_annotations`."""
    return _merge(draw_coco(image, shape), shape)


def coco_images(
    content: bytes, file: str, categories: Collection[str] = ()
) -> list[CocoImage] | None:
    """The images of a COCO file with their annotations of some categories, or of the only one.

    None of a file of another kind.

    Raises
    ------
    NucleusError
        As for `read_coco` and `read_json`.
    """
    content = _unzipped(content)
    if is_seg(content) or is_rois(content):
        return None
    document = read_json(content, file)
    return read_coco(document, file, categories) if is_coco(document) else None


def read_json(content: bytes, file: str) -> Any:
    """Parse JSON, which may be compressed with gzip.

    Raises
    ------
    NucleusError
        If it is not JSON, has an object with the same key twice, is nested too deeply, or is larger than
        `LARGEST_MEMBER_BYTES` when unpacked.
    """
    if content.startswith(_GZIP):
        try:
            with gzip.open(BytesIO(content)) as unpacked:
                content = unpacked.read(LARGEST_MEMBER_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise NucleusError(f"{file}: damaged ({error}). Export it again.") from error
    if len(content) > LARGEST_MEMBER_BYTES:
        raise NucleusError(
            f"{file}: larger than {LARGEST_MEMBER_BYTES >> 30} GiB when unpacked. Export fewer images."
        )
    try:
        return json.loads(content, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise NucleusError(f"{file}: not JSON ({error}). Export it again.") from error


def read_file(path: Path, file: str) -> bytes:
    """The bytes of an annotation file.

    Raises
    ------
    NucleusError
        If it cannot be read, or is larger than `LARGEST_MEMBER_BYTES`.
    """
    try:
        if path.stat().st_size > LARGEST_MEMBER_BYTES:
            raise NucleusError(
                f"{file}: larger than {LARGEST_MEMBER_BYTES >> 30} GiB. Split it into smaller files."
            )
        return path.read_bytes()
    except OSError as error:
        raise NucleusError(
            f"{file}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error


def _unzipped(content: bytes) -> bytes:
    """The JSON in a zip file that holds nothing else, as QuPath writes it; other files as they are."""
    if not content.startswith(_ZIP):
        return content
    with contextlib.suppress(*DAMAGED_ZIP), zipfile.ZipFile(BytesIO(content)) as archive:
        members = archive.namelist()
        if len(members) == 1 and members[0].endswith((".json", ".geojson")):
            with archive.open(members[0]) as unpacked:
                return unpacked.read(LARGEST_MEMBER_BYTES + 1)
    return content  # read_rois says what is wrong with a damaged zip file


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(repeated, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {repeated!r:.40} twice")
    return found


def _merge(found: Iterable[Region | DataProblem], shape: tuple[int, int]) -> Merged:
    """Merge the regions, and add the problems of reading to those of merging."""
    problems: list[DataProblem] = []

    def regions() -> Iterator[Region]:
        for item in found:
            if isinstance(item, DataProblem):
                problems.append(item)
            elif item.pixels.any():
                yield item
            else:
                detail = "contains no centre of a pixel of the image: skipped"
                problems.append(DataProblem(item.name, "empty", detail))

    merged = merge_regions(regions(), shape)
    return Merged(merged.labels, (*problems, *merged.problems))
