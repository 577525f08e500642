"""The submission: a CSV with a row for each nucleus, and an empty row for images without nuclei."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import rle
from nucleus_unet.data.csv_records import (
    CsvError,
    csv_records,
    plain_cell,
    read_text,
    safe_cell,
)
from nucleus_unet.errors import UNPRINTABLE, NucleusError
from nucleus_unet.files import write_atomically

HEADER = ("ImageId", "EncodedPixels")


class SubmissionProblem(NamedTuple):
    """One fault of a submission."""

    row: int
    """Line of the file, from 1 for the header; 0 if an image has no line."""
    image_id: str
    """Id of the image; "" if the fault concerns the line itself."""
    what: str
    """Description of the fault."""


def submission_rows(image_id: str, labels: NDArray[np.integer]) -> list[tuple[str, str]]:
    """Encode the nuclei of one image as rows of a submission.

    Parameters
    ----------
    image_id : str
        Id of the image.
    labels : (H, W) int
        0 background, 1..n one nucleus each, at the original size of the image.

    Returns
    -------
    list of (str, str)
        Image id and RLE of each nucleus; one row with an empty RLE if there are no nuclei.
    """
    return [(image_id, encoded) for encoded in rle.encode_rle(labels) or [""]]


def write_submission(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write rows of (image id, RLE) to a CSV file, in the given order.

    Equal rows give equal bytes. An apostrophe comes before an id that a spreadsheet would take for a
    formula; `read_submission` takes it away.

    Raises
    ------
    NucleusError
        If an image id contains a line break or another character that cannot be printed. Programs
        that read the CSV would not find the image.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for image_id, encoded in rows:
        if UNPRINTABLE.search(image_id):
            raise NucleusError(
                f"image id {image_id!r} contains a character that cannot be printed. "
                "Rename the image file."
            )
        writer.writerow((safe_cell(image_id), encoded))
    write_atomically(path, text.getvalue())


def read_submission(path: Path) -> dict[str, list[str]]:
    """Read the RLEs of each image from a submission; an image without nuclei has an empty list.

    The RLEs are not checked here. `validate_submission` and decoding check them.

    Raises
    ------
    NucleusError
        If the file cannot be read, or if it is not a CSV of two columns with the expected header.
    """
    found, problems = _scan(path)
    if problems:
        row, _, what = problems[0]
        raise NucleusError(f"{path}, line {row}: {what}")
    return {
        image_id: [encoded for _, encoded in of_image if encoded]
        for image_id, of_image in found.items()
    }


def validate_submission(
    path: Path, sizes: Mapping[str, tuple[int, int]]
) -> list[SubmissionProblem]:
    """Check a submission against its images.

    Parameters
    ----------
    path : Path
        The CSV file.
    sizes : mapping of str to (int, int)
        Height and width in pixels of each image, by id.

    Returns
    -------
    list of SubmissionProblem
        Empty if the submission is valid. First, sorted by line:

        - a wrong header,
        - a row that does not have two fields,
        - an unknown image id,
        - an empty row of an image that also has other rows,
        - a fault that `nucleus_unet.data.rle.rle_faults` finds.

        Then, with line 0, each image without a row.

    Raises
    ------
    NucleusError
        If the file cannot be opened. No content of the file raises an error.
    """
    found, problems = _scan(path)
    for image_id, of_image in found.items():
        lines, rles = zip(*of_image, strict=True)
        if image_id not in sizes:
            problems += [
                SubmissionProblem(line, image_id, "is not the id of any image") for line in lines
            ]
            continue
        nuclei = [index for index, encoded in enumerate(rles) if encoded]
        if len(rles) > 1:
            what = "has an empty row, which means no nuclei, but also rows with nuclei"
            problems += [
                SubmissionProblem(line, image_id, what) for line, text in of_image if not text
            ]
        faults = rle.rle_faults([rles[index] for index in nuclei], *sizes[image_id])
        problems += [
            SubmissionProblem(
                lines[nuclei[index]], image_id, f"RLE {index + 1} of the image {what}"
            )
            for index, what in faults.items()
        ]
    missing = [
        SubmissionProblem(
            0,
            image_id,
            "has no row; an image without nuclei needs a row with an empty EncodedPixels",
        )
        for image_id in sizes
        if image_id not in found
    ]
    return sorted(problems) + missing


def _scan(path: Path) -> tuple[dict[str, list[tuple[int, str]]], list[SubmissionProblem]]:
    """Read the (line, RLE) pairs of each image, and the problems of lines that cannot be read."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    problems = []
    records = csv_records(read_text(path, "Give the path of a submission."))
    try:
        if tuple(next(records, (1, []))[1]) != HEADER:
            problems.append(SubmissionProblem(1, "", f"the header must be {','.join(HEADER)}"))
        for line, fields in records:
            if len(fields) == 2:
                found[plain_cell(fields[0])].append((line, fields[1]))
            else:
                what = f"{len(fields)} fields instead of two, an image id and an RLE"
                problems.append(SubmissionProblem(line, "", what))
    except CsvError as error:
        what = f"{error.what}; the rest of the file was not read"
        problems.append(SubmissionProblem(error.line, "", what))
    return dict(found), problems
