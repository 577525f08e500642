"""Read the annotated nuclei that a submission is scored against."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import prepared, rle
from nucleus_unet.data.csv_records import CsvError, csv_records, read_text
from nucleus_unet.data.identity import images_code, labels_code
from nucleus_unet.data.masks import merge_into_labels
from nucleus_unet.data.stacks import MOST_PIXELS
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import ONLY_PLANE, Plane

SOLUTION = ("ImageId", "EncodedPixels", "Height", "Width", "Usage")
"""Columns of the solution files of the competition, such as ``stage1_solution.csv``."""


def read_truth(
    path: Path,
    store: Path,
    progress: prepared.Progress,
    plane: Plane = ONLY_PLANE,
    ignore_value: int | None = None,
) -> Iterator[tuple[str, NDArray[np.integer]]]:
    """Yield the annotated labels of a data set or of the competition's solution.

    Parameters
    ----------
    path : Path
        A data set with masks that `open_raw` can open, or a solution file, ``.csv``, as published
        after the competition. Images whose Usage is ``Ignored`` are skipped.
    store : Path
        Folder in which a data set is prepared, as for training. A solution file is not stored.
    progress : callable
        Called as ``progress(done, total)`` while a data set is prepared.
    plane : Plane
        Which plane of stacks is the image.
    ignore_value : int, optional
        Value in label images of the pixels that nobody annotated.

    Yields
    ------
    tuple of str and (H, W) int
        Image id and labels, sorted by id. `merge_into_labels` decides to which nucleus a pixel of
        several belongs.

    Raises
    ------
    NucleusError
        As for `open_raw` and `prepare_images`, or if a CSV file is not a solution, gives an image
        different sizes, or has an RLE that cannot be decoded.
    """
    if path.suffix.lower() == ".csv":
        yield from _read_solution(path)
        return
    images = prepared.prepare_images(
        [path],
        store,
        images_code(),
        lambda done, total: progress(done, 2 * total),
        annotated=True,
        plane=plane,
    )
    labels = prepared.prepare_labels(
        [path],
        images,
        store,
        labels_code(),
        lambda done, total: progress(total + done, 2 * total),
        ignore_value=ignore_value,
    )
    for entry in labels.entries:
        yield entry.id, prepared.load_labels(store, entry)


def _read_solution(path: Path) -> Iterator[tuple[str, NDArray[np.int32]]]:
    again = "Check the path, or download the file again."
    records = csv_records(read_text(path, again))
    by_image: dict[str, list[Mapping[str, str]]] = {}
    try:
        header = next(records, (1, []))[1]
        if not set(SOLUTION) <= set(header) or len(set(header)) < len(header):
            raise NucleusError(
                f"{path}: not a solution file, which has the columns {', '.join(SOLUTION)} once each. "
                "Give another file, or a data set with masks."
            )
        for line, fields in records:
            if len(fields) != len(header):
                raise CsvError(line, f"{len(fields)} fields instead of {len(header)}")
            row = dict(zip(header, fields, strict=True))
            if row["Usage"] != "Ignored":
                row["line"] = f"{path}, line {line}"
                by_image.setdefault(row["ImageId"], []).append(row)
    except CsvError as error:
        raise NucleusError(f"{path}, {error}. Download the file again.") from error
    for image_id, nuclei in sorted(by_image.items()):
        yield image_id, _decode(nuclei)


def _decode(nuclei: list[Mapping[str, str]]) -> NDArray[np.int32]:
    """The labels of one image, whose nuclei may overlap."""
    size = None
    with suppress(TypeError, ValueError):
        size = int(nuclei[0]["Height"]), int(nuclei[0]["Width"])
    if size is None or min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise NucleusError(
            f"{nuclei[0]['line']}: Height and Width are not positive whole numbers of an image of at "
            "most 2³⁰ pixels. Download the file again."
        )
    for row in nuclei:
        if (row["Height"], row["Width"]) != (nuclei[0]["Height"], nuclei[0]["Width"]):
            raise NucleusError(
                f"{row['line']}: Height and Width differ from the first row of the image. "
                "Download the file again."
            )
    drawn = [row for row in nuclei if row["EncodedPixels"].strip()]
    masks = ((f"{place:09}", _mask(row, size)) for place, row in enumerate(drawn))
    return merge_into_labels(masks, size).labels


def _mask(row: Mapping[str, str], size: tuple[int, int]) -> NDArray[np.int32]:
    try:
        return rle.decode_rle([row["EncodedPixels"]], *size)
    except NucleusError as error:
        raise NucleusError(f"{row['line']}: {error}") from error
