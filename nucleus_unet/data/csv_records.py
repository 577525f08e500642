"""CSV files: read strictly, so that a fault never hides rows, and written without formulas."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from nucleus_unet.errors import NucleusError

LARGEST_BYTES = 2**30
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet takes for a formula."""


class CsvError(ValueError):
    """A fault of a CSV file."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line, self.what = line, what


def read_text(path: Path, advice: str) -> str:
    """The text of a CSV file; bytes that are not UTF-8 are replaced.

    Parameters
    ----------
    path : Path
    advice : str
        A sentence for the error: what to give instead.

    Raises
    ------
    NucleusError
        If the file cannot be read, or is larger than `LARGEST_BYTES`.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise NucleusError(f"{path}: {size / 2**30:.1f} GiB, and the limit is 1 GiB. {advice}")
        return path.read_bytes().decode(
            "utf-8-sig", errors="replace"
        )  # Excel writes a byte order mark
    except OSError as error:
        raise NucleusError(f"{path}: cannot be read ({error.strerror}). {advice}") from error


def csv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which each record begins, from 1, and its fields; blank lines are skipped.

    Raises
    ------
    CsvError
        If the text is not CSV, for example because a quote is not closed on its line.

    Examples
    --------
    >>> list(csv_records('id,rle\\n\\na,"1 2"\\n'))
    [(1, ['id', 'rle']), (3, ['a', '1 2'])]
    """
    csv.field_size_limit(sys.maxsize)  # the RLE of a large nucleus exceeds the default limit
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CsvError(line, f"not valid CSV ({error})") from error
        if any("\n" in field or "\r" in field for field in fields):
            raise CsvError(line, "a quote is not closed on its line")
        if fields:
            yield line, fields


def safe_cell(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would take for a formula.

    Examples
    --------
    >>> safe_cell("=1+1"), safe_cell("'=1+1"), safe_cell("a=1")
    ("'=1+1", "''=1+1", 'a=1')
    """
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def plain_cell(text: str) -> str:
    """The text of a cell that `safe_cell` returned."""
    return text[1:] if text.startswith("'") and safe_cell(text) != text else text
