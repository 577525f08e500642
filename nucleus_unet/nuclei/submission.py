"""The submission: a CSV with a row for each nucleus, and a row for each image without one."""

import csv
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import rle
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import UNPRINTABLE, write_atomically

HEADER = ("ImageId", "EncodedPixels")


class SubmissionProblem(NamedTuple):
    """One thing that is wrong with a submission."""

    row: int
    """Line of the file, from 1, which is the header; 0 where something is missing altogether."""
    image_id: str
    what: str


def submission_rows(image_id: str, labels: NDArray[np.integer]) -> list[tuple[str, str]]:
    """Rows of one image: its id with the RLE of each nucleus, or with "" where there is none.

    Parameters
    ----------
    image_id : str
    labels : int array (H, W)
        0 background, 1..n one nucleus each; at the image's original size.
    """
    return [(image_id, encoded) for encoded in rle.encode_rle(labels) or [""]]


def write_submission(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (image id, RLE) rows in the order in which they come: equal rows give equal bytes.

    Raises
    ------
    NucleusError
        An image id holds a line break, or bytes that are no text: no CSV reader would find it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for image_id, encoded in rows:
        if UNPRINTABLE.search(image_id):
            raise NucleusError(f"image id {image_id!r} cannot be printed: rename the image's file")
        writer.writerow((image_id, encoded))
    write_atomically(path, text.getvalue())


def read_submission(path: Path) -> dict[str, list[str]]:
    """Read a submission into the RLEs of each image, [] where it found nothing.

    The RLEs themselves are checked where they are decoded, and by `validate_submission`.

    Raises
    ------
    NucleusError
        The file cannot be read, or is not a CSV of two columns under the header.
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
    """Check a submission against the images that it is about.

    Parameters
    ----------
    path : Path
    sizes : mapping of str to (int, int)
        Height and width in pixels of every image, by id.

    Returns
    -------
    list of Problem
        By line: a wrong header, a row that is not two fields, an id that is not among the images,
        an empty row beside other rows of its image, and the rules of `rle.rle_faults`; then, as line
        0, each image that has no row. Empty if the submission is valid.

    Raises
    ------
    NucleusError
        The file cannot be opened. No content of the file raises.
    """
    found, problems = _scan(path)
    for image_id, of_image in found.items():
        lines, rles = zip(*of_image, strict=True)
        if image_id not in sizes:
            problems += [
                SubmissionProblem(line, image_id, "is not an image of this set") for line in lines
            ]
            continue
        nuclei = [index for index, encoded in enumerate(rles) if encoded]
        if len(rles) > 1:
            what = "has an empty row, which says that nothing was found, beside other rows"
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
            0, image_id, "has no row: an image without nuclei needs one, with nothing encoded"
        )
        for image_id in sizes
        if image_id not in found
    ]
    return sorted(problems) + missing


def _scan(path: Path) -> tuple[dict[str, list[tuple[int, str]]], list[SubmissionProblem]]:
    """(line, RLE) of the rows of each image, and the rows that could not be read as such."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NucleusError(
            f"submission {path} cannot be read ({error.strerror}): name a CSV file"
        ) from error
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    problems = []
    # One ragged nucleus can be longer than the csv module's own limit of 131,072 characters.
    csv.field_size_limit(sys.maxsize)
    text = content.decode("utf-8-sig", errors="replace")  # as Excel marks what it saves
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if tuple(next(reader, ())) != HEADER:
            problems.append(SubmissionProblem(1, "", f"the header is not {','.join(HEADER)}"))
        for fields in reader:
            if len(fields) == 2:
                found[fields[0]].append((reader.line_num, fields[1]))
            else:
                what = f"{len(fields)} fields where there are two, an image id and its RLE"
                problems.append(SubmissionProblem(reader.line_num, "", what))
    except csv.Error as error:
        what = f"not a CSV from here on ({error}): the rest was not read"
        problems.append(SubmissionProblem(reader.line_num, "", what))
    return dict(found), problems
