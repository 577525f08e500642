"""Nuclei from COCO JSON, which describes many images in one file.

The format is described at https://cocodataset.org/#format-data. Run lengths alternate between background
and nucleus, and begin with background; pixels are numbered down the columns. They are a list of numbers,
or a text as the COCO API writes it: see `decode_counts`.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.annotations.polygons import draw_polygons, read_points
from nucleus_unet.data.masks import DataProblem, Region, size_text
from nucleus_unet.errors import UNPRINTABLE, NucleusError


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file."""

    where: str
    """The file and the place in it, for messages."""
    name: str
    """``file_name`` in the file, with its folders."""
    size: tuple[float | None, float | None]
    """``height`` and ``width`` in pixels as the file gives them; None if it does not."""
    annotations: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    """The file and the place in it, for messages, and the annotation."""


def is_coco(document: object) -> bool:
    """Whether a parsed JSON document is COCO's."""
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def read_coco(
    document: Mapping[str, object], file: str, categories: Collection[str] = ()
) -> list[CocoImage]:
    """Group the annotations of a COCO document by image.

    Parameters
    ----------
    document : mapping
        The parsed document, for which `is_coco` is true.
    file : str
        Name of the file, for messages.
    categories : collection of str
        Names of the categories whose annotations are nuclei; the others are left out. Needed if the
        annotations have several.

    Raises
    ------
    NucleusError
        If an image or annotation is malformed, two images have the same id, an annotation belongs to no
        image, or a category must be chosen or does not exist.
    """
    by_id: dict[int | str, CocoImage] = {}
    for number, image in enumerate(_records(document["images"], f"{file}, images"), 1):
        id_, name = image.get("id"), image.get("file_name")
        if not isinstance(id_, int | str) or not isinstance(name, str) or id_ in by_id:
            raise NucleusError(
                f"{file}, image {number}: needs a file_name, and an id that no other image has. "
                "Export it again."
            )
        size = image.get("height"), image.get("width")
        if not all(isinstance(length, int | float | None) for length in size):
            raise _malformed(f"{file}, image {number}", "its height and width are not numbers")
        by_id[id_] = CocoImage(f"{file}, image {number}", name, size)
    records = _records(document["annotations"], f"{file}, annotations")
    wanted = _wanted(document, records, file, categories)
    for number, annotation in enumerate(records, 1):
        if wanted is not None and annotation.get("category_id") not in wanted:
            continue
        where, id_ = f"{file}, annotation {number}", annotation.get("image_id")
        if not isinstance(id_, int | str) or id_ not in by_id:
            raise NucleusError(f"{where}: its image_id belongs to no image. Export it again.")
        by_id[id_].annotations.append((where, annotation))
    return list(by_id.values())


def _wanted(
    document: Mapping[str, object],
    records: Sequence[Mapping[str, Any]],
    file: str,
    categories: Collection[str],
) -> set[object] | None:
    """Ids of the categories that are nuclei; None if all are."""
    listed = _records(document.get("categories", []), f"{file}, categories")
    names = {f"{one.get('id')}": UNPRINTABLE.sub("?", f"{one.get('name')}"[:40]) for one in listed}
    counts = Counter(f"{record.get('category_id')}" for record in records)
    held = {names.get(id_, id_): count for id_, count in counts.most_common()}
    if unknown := sorted(set(categories) - held.keys()):
        raise NucleusError(
            f"{file}: no annotation has the category {unknown[0]}. It holds {', '.join(held)}."
        )
    if categories:
        chosen = [id_ for id_ in counts if names.get(id_, id_) in categories]
        return {r.get("category_id") for r in records if f"{r.get('category_id')}" in chosen}
    if len(held) > 1:
        said = ", ".join(f"{name} ({count})" for name, count in [*held.items()][:10])
        raise NucleusError(
            f"{file}: holds several categories: {said}. Say which are nuclei with --category "
            f"{shlex.quote(next(iter(held)))}, which may be repeated."
        )
    return None


def draw_coco(image: CocoImage, shape: tuple[int, int]) -> Iterator[Region | DataProblem]:
    """Draw the annotations of one image of a COCO file.

    Parameters
    ----------
    image : CocoImage
    shape : (int, int)
        Height and width of the image file in pixels.

    Yields
    ------
    Region or DataProblem
        The region of each annotation, and a problem for each crowd and for each annotation without
        outline.

    Raises
    ------
    NucleusError
        If the file gives another size, or an annotation is malformed.
    """
    if image.size not in (shape, (None, None)):
        said = "x".join(f"{length}"[:20] for length in image.size)
        raise NucleusError(
            f"{image.where}: {said}, but the image file is {size_text(shape)}. Give the images that "
            "were annotated, at their size."
        )
    for where, annotation in image.annotations:
        outline = annotation.get("segmentation")
        if annotation.get("iscrowd"):
            yield DataProblem(where, "crowd", "iscrowd marks a group of nuclei: skipped")
        elif isinstance(outline, dict):
            yield _draw_runs(where, outline, shape)
        elif outline is None or outline == []:
            yield DataProblem(where, "no area", "no segmentation: skipped")
        elif isinstance(outline, list):
            polygons = [[read_points(numbers, where)] for numbers in outline]
            yield draw_polygons(where, polygons, shape)
        else:
            raise _malformed(where, "its segmentation is neither polygons nor run lengths")


def decode_counts(text: str) -> list[int]:
    """Decode run lengths that the COCO API compressed to a text.

    Parameters
    ----------
    text : str
        The compressed ``counts``.

    Returns
    -------
    list of int
        The run lengths. They are not checked, and may be negative.

    Raises
    ------
    ValueError
        If the text is not compressed run lengths.

    Notes
    -----
    `nucleus_unet.data.rle.coco_counts` describes the format.

    Examples
    --------
    >>> decode_counts("1235O1")  # 1, 2, 3, 2 + 5, 3 - 1, 7 + 1
    [1, 2, 3, 7, 2, 8]
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{text!r:.40}")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError(f"{text!r:.40}")
    return counts


def _draw_runs(where: str, runs: Mapping[str, object], shape: tuple[int, int]) -> Region:
    height, width = shape
    counts, size = runs.get("counts"), runs.get("size")
    if not _are_lengths(size) or size != [height, width]:
        raise _malformed(where, f"its size is not that of the image, [{height}, {width}]")
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            raise _malformed(where, f"its counts {error} are not run lengths") from None
    if not _are_lengths(counts):
        raise _malformed(where, "its counts are not a list of lengths of 0 or more")
    if sum(counts) != height * width:
        raise _malformed(
            where, f"its counts add up to {sum(counts):,} pixels, not {height * width:,}"
        )
    return Region(where, *_columns(counts, height))


def _are_lengths(numbers: object) -> TypeGuard[list[int]]:
    """Whether something is a list of whole numbers that may be lengths, so that sums are short too."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**40 for n in numbers)


def _columns(counts: Sequence[int], height: int) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """The columns of an image that runs reach, and which of their pixels belong to the nucleus."""
    changes = np.cumsum(np.array(counts, np.int64))[: len(counts) // 2 * 2].reshape(-1, 2)
    runs = changes[changes[:, 0] < changes[:, 1]]
    if not len(runs):
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.bool_)
    first, last = runs[0, 0] // height, (runs[-1, 1] - 1) // height
    edges = np.zeros((last - first + 1) * height + 1, np.int8)
    starts, ends = (runs - first * height).T
    edges[starts] += 1
    edges[ends] -= 1  # the next run may start here
    pixels = np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_).reshape(-1, height).T
    return (slice(0, height), slice(int(first), int(last) + 1)), pixels


def _records(records: object, where: str) -> list[dict[str, Any]]:
    if isinstance(records, list) and all(isinstance(record, dict) for record in records):
        return records
    raise _malformed(where, "not a list of objects")


def _malformed(where: str, what: str) -> NucleusError:
    return NucleusError(f"{where}: {what}. Export it again.")
