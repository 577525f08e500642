import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.data.truth import read_truth
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

HEADER = "ImageId,EncodedPixels,Height,Width,Usage\n"


def silent(done: int, total: int) -> None:
    pass


def solution(folder: Path, *rows: str) -> Path:
    path = folder / "solution.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def read(path: Path, store: Path) -> dict[str, list[list[int]]]:
    return {image_id: labels.tolist() for image_id, labels in read_truth(path, store, silent)}


def test_a_solution_file_of_the_competition(tmp_path: Path) -> None:
    path = solution(
        tmp_path,
        "b,1 2,2,3,Public",
        "a,1 1,1,2,Private",
        "c,1 1,9,9,Ignored",
        "b,6 1,2,3,Public",
        "d,,1,1,Public",
    )
    assert read(path, tmp_path) == {"a": [[1, 0]], "b": [[1, 0, 0], [1, 0, 2]], "d": [[0]]}
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel saves it
    assert [*read(path, tmp_path)] == ["a", "b", "d"]


def test_a_nucleus_of_many_runs(tmp_path: Path) -> None:
    before = csv.field_size_limit(131072)  # the default
    try:
        runs = " ".join(f"{start} 1" for start in range(1, 40000, 2))
        path = solution(tmp_path, f"a,{runs},40000,1,Public")
        [(_, labels)] = read_truth(path, tmp_path, silent)
        assert labels.sum() == 20000
    finally:
        csv.field_size_limit(before)


def test_an_overlap_belongs_to_the_smaller_nucleus(tmp_path: Path) -> None:
    path = solution(tmp_path, "a,1 3,1,4,Public", "a,3 2,1,4,Public")
    assert read(path, tmp_path) == {"a": [[1, 1, 2, 2]]}


def test_an_overlap_of_equal_nuclei_belongs_to_the_first_line(tmp_path: Path) -> None:
    rows = [f"a,{start} 2,1,13,Public" for start in range(1, 13)]
    assert read(solution(tmp_path, *rows), tmp_path) == {
        "a": [[1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]
    }


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("a,1 1,,3,Public", "line 2: Height and Width are not positive whole numbers"),
        ("a,1 1,0,3,Public", "line 2: Height and Width are not positive whole numbers"),
        ("a,1 1,4", "line 2: 3 fields instead of 5. Download the file again"),
        ("a,1 1,4,4,Public,9", "line 2: 6 fields instead of 5. Download the file again"),
        ('a,1 1,4,4,"Public', r"line 2: not valid CSV \(unexpected end of data\)\. Download"),
        ('a,1 1,4,4,"Public\nb,1 1,4,4,"Public"', "line 2: "),
        (
            "a,1 1,40000,40000,Public",
            "line 2: Height and Width are not positive whole numbers of an",
        ),
        ("a,1 1,4,4,Public\na", "line 3: 1 fields instead of 5. Download the file again"),
        ("a,1 1,4,4,Public\nb,1 1 9,4,4,Public", "line 3: "),
        ("a,1 1,2,3,Public\na,1 1,3,2,Public", "line 3: Height and Width differ from the first"),
        ("a,5 1,2,2,Public", "line 2: RLE 1 of 1, '5 1', ends outside the image"),
    ],
)
def test_a_damaged_solution_is_an_error(tmp_path: Path, row: str, error: str) -> None:
    with pytest.raises(NucleusError, match=rf"solution\.csv, {error}"):
        read(solution(tmp_path, row), tmp_path)


@pytest.mark.parametrize("content", [b"", b"ImageId,EncodedPixels\na,1 1\n", b"\xff\xfe"])
def test_a_file_that_is_not_a_solution_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "solution.csv"
    path.write_bytes(content)
    with pytest.raises(NucleusError, match=r"solution\.csv: (not a solution|cannot be read)"):
        read(path, tmp_path)


def test_the_chosen_plane_and_pixels_to_ignore(tmp_path: Path) -> None:
    planes = np.stack([np.zeros((2, 3), np.uint8)] * 2)
    for folder, pixels in (("images", planes), ("labels", np.array([[1, 0, 9]] * 2, np.uint8))):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "raw" / folder / "a.tif", pixels, photometric="minisblack")
    truth = read_truth(tmp_path / "raw", tmp_path / "home", silent, Plane(z=2), ignore_value=9)
    assert {id_: labels.tolist() for id_, labels in truth} == {"a": [[1, 0, -1]] * 2}


def test_a_missing_solution_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NucleusError, match=r"nothing\.csv: cannot be read"):
        read(tmp_path / "nothing.csv", tmp_path)


def test_a_data_set_is_prepared_as_for_training(tmp_path: Path) -> None:
    raw = write_synthetic(tmp_path / "raw", train=2, test=1)[0]
    seen: list[tuple[int, int]] = []
    truth = dict(read_truth(raw, tmp_path / "home", lambda *now: seen.append(now)))
    images = len(truth)
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {2 * images}
    assert seen[-1] == (2 * images, 2 * images)
    assert sorted(truth) == sorted(folder.name for folder in raw.iterdir())
    for image_id, labels in truth.items():
        masks = list((raw / image_id / "masks").iterdir())
        assert 0 < labels.max() <= len(masks)
        assert np.unique(labels).tolist() == list(range(labels.max() + 1))
    assert len(list((tmp_path / "home" / "labels").glob("*.npy"))) == 2
