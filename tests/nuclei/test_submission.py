from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nucleus_unet.data import csv_records
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei.submission import (
    SubmissionProblem,
    read_submission,
    submission_rows,
    validate_submission,
    write_submission,
)

SIZES = {"a": (2, 3), "b": (4, 4)}
VALID = "ImageId,EncodedPixels\na,1 2 5 1\na,3 1\nb,\n"


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "submission.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_rows_of_an_image() -> None:
    labels = np.array([[2, 0, 1], [0, 0, 1]])
    assert submission_rows("a", labels) == [("a", "5 2"), ("a", "1 1")]


def test_an_image_without_nuclei_has_one_empty_row() -> None:
    assert submission_rows("b", np.zeros((4, 4), np.int32)) == [("b", "")]


def test_the_bytes_of_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, [("a", "1 2 5 1"), ("a", "3 1"), ("b", "")])
    assert path.read_bytes() == VALID.encode()
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]
    assert validate_submission(path, SIZES) == []


@pytest.mark.parametrize("id_", ["=1+1", "+1", "-1", "@SUM(A1)", "'=1", "'a", "a=1"])
def test_no_id_is_a_formula_and_each_is_read_as_it_was(id_: str, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, [(id_, "1 2")])
    assert not path.read_text().splitlines()[1].startswith(("=", "+", "-", "@"))
    assert read_submission(path) == {id_: ["1 2"]}


def test_read(csv: Callable[[str | bytes], Path]) -> None:
    found = {"a": ["1 2 5 1", "3 1"], "b": []}
    assert read_submission(csv(VALID)) == found
    assert read_submission(csv("\ufeff" + VALID)) == found  # Excel writes a byte order mark


def test_ids_with_commas_quotes_and_umlauts(tmp_path: Path) -> None:
    written = [('slide 3, "left"', "1 1"), ("größe", ""), ("NA", "1 1")]
    path = tmp_path / "submission.csv"
    write_submission(path, written)
    assert read_submission(path) == {'slide 3, "left"': ["1 1"], "größe": [], "NA": ["1 1"]}


@pytest.mark.parametrize("image_id", ["a\nb", "a\r", "a\udcff"])
def test_ids_that_cannot_be_printed_are_refused(tmp_path: Path, image_id: str) -> None:
    with pytest.raises(NucleusError) as error:
        write_submission(tmp_path / "submission.csv", [(image_id, "")])
    assert str(error.value) == (
        f"image id {image_id!r} contains a character that cannot be printed. Rename the image file."
    )
    assert not list(tmp_path.iterdir())


def test_an_rle_can_exceed_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    checkerboard = np.indices((500, 501)).sum(axis=0) % 2
    path = tmp_path / "submission.csv"
    write_submission(path, submission_rows("a", checkerboard))
    assert path.stat().st_size > 131_072
    assert validate_submission(path, {"a": (500, 501)}) == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "a,1 1\nb,\n",
            [
                (1, "", "the header must be ImageId,EncodedPixels"),
                (
                    0,
                    "a",
                    "has no row; an image without nuclei needs a row with an empty EncodedPixels",
                ),
            ],
        ),
        (
            "",
            [
                (1, "", "the header must be ImageId,EncodedPixels"),
                (
                    0,
                    "a",
                    "has no row; an image without nuclei needs a row with an empty EncodedPixels",
                ),
                (
                    0,
                    "b",
                    "has no row; an image without nuclei needs a row with an empty EncodedPixels",
                ),
            ],
        ),
        (VALID + "c,1 1\n", [(5, "c", "is not the id of any image")]),
        (
            VALID + "\nb,1 1,2\n\n",
            [(6, "", "3 fields instead of two, an image id and an RLE")],
        ),
        (
            VALID + "b,1 1\n",
            [
                (
                    4,
                    "b",
                    "has an empty row, which means no nuclei, but also rows with nuclei",
                )
            ],
        ),
        (
            VALID.replace("3 1", "4 1 3 1"),
            [
                (
                    3,
                    "a",
                    "RLE 2 of the image has runs that overlap or are not sorted: sort and merge them",
                )
            ],
        ),
        (
            VALID.replace("3 1", "7 1"),
            [
                (
                    3,
                    "a",
                    "RLE 2 of the image ends outside the image, which has 6 pixels (height 2 x width 3)",
                )
            ],
        ),
        (
            VALID.replace("3 1", "5 1"),
            [
                (
                    3,
                    "a",
                    "RLE 2 of the image contains pixel 5, which RLE 1 has too: nuclei must not overlap",
                )
            ],
        ),
        (
            VALID.replace("3 1", "three"),
            [
                (
                    3,
                    "a",
                    "RLE 2 of the image is not 'start length start length ...' in whole numbers",
                )
            ],
        ),
        (
            VALID + '"b',
            [(5, "", "not valid CSV (unexpected end of data); the rest of the file was not read")],
        ),
    ],
)
def test_problems_are_listed_by_line(
    csv: Callable[[str | bytes], Path], text: str, problems: list[tuple[int, str, str]]
) -> None:
    assert validate_submission(csv(text), SIZES) == [
        SubmissionProblem(*problem) for problem in problems
    ]


def test_lines_are_numbered_as_in_an_editor(csv: Callable[[str | bytes], Path]) -> None:
    text = 'ImageId,EncodedPixels\r\n\r\n"a",1 1\r\nc,\r\n'
    assert [problem.row for problem in validate_submission(csv(text), {})] == [3, 4]


@pytest.mark.parametrize("end", ["", '"'])
def test_an_open_quote_swallows_no_rows(csv: Callable[[str | bytes], Path], end: str) -> None:
    path = csv(f'ImageId,EncodedPixels\na,"1 1\nb,2 1{end}\n')
    with pytest.raises(NucleusError, match=r"submission\.csv, line 2: "):
        read_submission(path)


def test_a_file_that_would_fill_the_memory(
    csv: Callable[[str | bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_records, "LARGEST_BYTES", 10)
    with pytest.raises(NucleusError, match=r"0\.0 GiB, and the limit is 1 GiB"):
        read_submission(csv(VALID))


def test_read_refuses_what_is_not_a_submission(csv: Callable[[str | bytes], Path]) -> None:
    path = csv("id,rle\n")
    with pytest.raises(NucleusError) as error:
        read_submission(path)
    assert str(error.value) == f"{path}, line 1: the header must be ImageId,EncodedPixels"


@pytest.mark.parametrize("reader", [read_submission, lambda path: validate_submission(path, SIZES)])
def test_a_missing_file_is_refused(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    with pytest.raises(NucleusError) as error:
        reader(tmp_path / "none.csv")
    assert str(error.value) == (
        f"{tmp_path / 'none.csv'}: cannot be read (No such file or directory). "
        "Give the path of a submission."
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.sampled_from('ab,"\n\r 0123-\0é'), max_size=60) | st.binary(max_size=60))
@example(b"\xff\xfe\x00")
def test_junk_never_crashes(csv: Callable[[str | bytes], Path], junk: str | bytes) -> None:
    body = junk if isinstance(junk, bytes) else junk.encode()
    assert validate_submission(csv(body), SIZES)
    validate_submission(csv(VALID.encode() + body), SIZES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"])),
        st.integers(0, 3),
        max_size=4,
    )
)
def test_round_trip(tmp_path: Path, counts: dict[str, int]) -> None:
    labels = {name: np.arange(1, 5) * (np.arange(1, 5) <= n) for name, n in counts.items()}
    path = tmp_path / "submission.csv"
    write_submission(
        path, [row for name in labels for row in submission_rows(name, labels[name][None])]
    )
    assert {name: len(rles) for name, rles in read_submission(path).items()} == counts
    assert validate_submission(path, dict.fromkeys(counts, (1, 4))) == []
