"""The nuclei that a submission is scored against: a data set with masks, or the organisers' file."""

import csv
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import prepared, rle
from nucleus_unet.data.masks import merge_into_labels
from nucleus_unet.data.provenance import images_code, labels_code
from nucleus_unet.errors import NucleusError

SOLUTION = ("ImageId", "EncodedPixels", "Height", "Width", "Usage")
"""Columns of ``stage1_solution.csv`` and ``stage2_solution_final.csv``."""


def read_truth(
    path: Path, store: Path, progress: prepared.Progress
) -> Iterator[tuple[str, NDArray[np.integer]]]:
    """Annotated labels, image by image, sorted by id.

    Parameters
    ----------
    path : Path
        A data set with masks as `open_raw` takes it, or the organisers' solution, whose images of
        Usage ``Ignored`` are left out.
    store : Path
        The home: a data set is prepared there, as for training.
    progress : callable
        Told of the preparation.

    Yields
    ------
    tuple of str and (H, W) int
        Image id and labels. Nuclei that overlap are settled as `merge_into_labels` does.

    Raises
    ------
    NucleusError
        As `open_raw` and `prepare_images`; not such a CSV, sizes that differ within an image, an
        RLE that cannot be decoded.
    """
    if path.suffix.lower() == ".csv":
        yield from _read_solution(path)
        return

    def first(done: int, total: int) -> None:
        progress(done, 2 * total)

    def second(done: int, total: int) -> None:
        progress(total + done, 2 * total)

    images = prepared.prepare_images([path], store, images_code(), first, annotated=True)
    for entry in prepared.prepare_labels([path], images, store, labels_code(), second).entries:
        yield entry.id, prepared.load_labels(store, entry)


def _read_solution(path: Path) -> Iterator[tuple[str, NDArray[np.int32]]]:
    csv.field_size_limit(sys.maxsize)  # a large nucleus has a long RLE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NucleusError(f"{path}: cannot be read ({error}): fetch it again") from error
    if not rows or not set(SOLUTION) <= rows[0].keys():
        raise NucleusError(
            f"{path}: not a solution CSV, which has the columns {', '.join(SOLUTION)}"
        )
    by_image: dict[str, list[Mapping[str, str]]] = {}
    for line, row in enumerate(rows, 2):
        if None in row.values():
            raise NucleusError(f"{path}, line {line}: a row is cut off: fetch it again")
        if row["Usage"] != "Ignored":
            by_image.setdefault(row["ImageId"], []).append(row | {"line": f"{path}, line {line}"})
    for image_id, nuclei in sorted(by_image.items()):
        yield image_id, _decode(nuclei)


def _decode(nuclei: list[Mapping[str, str]]) -> NDArray[np.int32]:
    """Labels of one image; nuclei may overlap."""
    size = None
    with suppress(TypeError, ValueError):
        size = int(nuclei[0]["Height"]), int(nuclei[0]["Width"])
    if size is None or min(size) < 1:
        raise NucleusError(f"{nuclei[0]['line']}: Height and Width are no size in pixels")
    for row in nuclei:
        if (row["Height"], row["Width"]) != (nuclei[0]["Height"], nuclei[0]["Width"]):
            raise NucleusError(f"{row['line']}: Height and Width differ from the image's first row")
    drawn = [row for row in nuclei if row["EncodedPixels"].strip()]
    masks = ((f"{place:09}", _mask(row, size)) for place, row in enumerate(drawn))
    return merge_into_labels(masks, size).labels


def _mask(row: Mapping[str, str], size: tuple[int, int]) -> NDArray[np.int32]:
    try:
        return rle.decode_rle([row["EncodedPixels"]], *size)
    except NucleusError as error:
        raise NucleusError(f"{row['line']}: {error}") from error
