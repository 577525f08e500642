import doctest

import pytest

from nucleus_unet.data import csv_records as module
from nucleus_unet.data.csv_records import CsvError, csv_records


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("text", ['a,b\n"c,d\n', 'a,b\n"c\nd",e\n', 'a,b\n"c"d,e\n', 'a,b\n"c\rd"'])
@pytest.mark.fault(
    "Bad input",
    "a quote in a CSV that is not closed",
    "refused with the number of the line",
)
def test_a_fault_is_found_where_its_record_begins(text: str) -> None:
    with pytest.raises(CsvError) as caught:
        list(csv_records(text))
    assert caught.value.line == 2


def test_lines_are_those_of_the_file() -> None:
    assert list(csv_records('\n\na\r\n\r\n"b"\r\n')) == [(3, ["a"]), (5, ["b"])]
