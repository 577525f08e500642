import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from nucleus_unet.data.check import check_dataset, format_report
from nucleus_unet.errors import NucleusError


def write_png(path: Path, pixels: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def square(left: int, side: int, shape: tuple[int, int] = (8, 9)) -> NDArray[np.uint8]:
    mask = np.zeros(shape, np.uint8)
    mask[:side, left : left + side] = 255
    return mask


@pytest.fixture
def good(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_png(tmp_path / "a/images/a.png", rng.integers(0, 255, (8, 9, 4), np.uint8))
    write_png(tmp_path / "a/masks/1.png", square(0, 2))
    write_png(tmp_path / "a/masks/2.png", square(4, 3))
    write_png(tmp_path / "b/images/b.png", rng.integers(0, 4095, (8, 9), np.uint16))
    write_png(tmp_path / "b/labels.png", square(0, 4) // 255 * 7)
    return tmp_path


def test_a_data_set_without_problems(good: Path) -> None:
    report = check_dataset(good)
    assert report.problems == report.faults == ()
    assert (report.images, report.annotated) == (2, 2)
    assert report.sizes == {(8, 9): 2}
    assert report.modes == {"RGBA": 1, "gray uint16": 1}
    assert sorted(report.areas_px.tolist()) == [4, 9, 16]
    lines = format_report(report, (8, 30)).splitlines()
    assert lines[1] == "layout      a folder for each image"
    assert "nuclei             3" in lines
    assert "area               4 px smallest, 9 px median, 16 px largest" in lines
    assert "diameter         3.4 px median; the built-in model was trained on 8 to 30 px" in lines
    assert "      8       9       2" in lines
    assert "pixel size  unknown in 2 images" in lines
    assert lines[-1] == "usable"


def test_pixels_that_nobody_annotated_are_counted(good: Path) -> None:
    write_png(good / "a/ignore.png", square(4, 3))
    report = check_dataset(good, ignore_value=7)
    assert report.areas_px.tolist() == [4]  # the other nuclei are ignored
    assert (report.ignored_px, report.problems) == (9 + 16, ())
    line = "ignored           25 px that nobody annotated"
    assert line in format_report(report, (8, 30)).splitlines()
    write_png(good / "a/ignore.png", square(4, 3)[:2])
    [problem] = check_dataset(good).faults
    assert (problem.file, problem.detail) == ("a/ignore.png", "2x9, but the image is 8x9")


def test_pixel_sizes_are_counted(tmp_path: Path) -> None:
    for name, per_um in (("a", 2), ("b", 4), ("c", 2)):
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            np.full((3, 4), per_um, np.uint8),
            imagej=True,
            resolution=(per_um, per_um),
            metadata={"unit": "um"},
        )
    write_png(tmp_path / "d.png", square(0, 2))
    report = check_dataset(tmp_path)
    assert report.pixel_sizes_um == {0.5: 2, 0.25: 1, None: 1}
    lines = format_report(report, (8, 30)).splitlines()
    assert "pixel size  0.5 µm in 2, 0.25 µm in 1, unknown in 1 images" in lines


def test_small_problems_are_decided_by_rule(good: Path) -> None:
    write_png(good / "a/masks/3.png", square(0, 0))
    (good / "c/images").mkdir(parents=True)
    (good / "c/images/c.png").write_bytes((good / "a/images/a.png").read_bytes())
    (good / "c/masks").mkdir()
    report = check_dataset(good)
    assert [problem.kind for problem in report.problems] == ["empty", "duplicate"]
    assert report.faults == ()
    said = "usable: 2 small problems are decided by rule"
    assert format_report(report, (8, 30)).splitlines()[-1] == said


def test_pieces_and_holes_are_counted(good: Path) -> None:
    ring, apart = square(0, 3) // 255, square(4, 2) // 255 * 2
    ring[1, 1], apart[7, 8] = 0, 2
    write_png(good / "b/labels.png", ring + apart)
    write_png(good / "a/masks/1.png", apart)
    report = check_dataset(good)
    assert (report.in_pieces, report.with_holes) == (2, 1)
    assert "in pieces          2" in format_report(report, (8, 30))


def test_ignored_files_are_listed(good: Path) -> None:
    for number in range(5):
        (good / f"{number}.svs").touch()
    (good / "a/notes.txt").touch()
    lines = format_report(check_dataset(good), (8, 30)).splitlines()
    assert "ignored            6 0.svs, 1.svs, 2.svs and 3 more" in lines


def test_a_data_set_without_any_masks_has_no_problems(tmp_path: Path) -> None:
    write_png(tmp_path / "a/images/a.png", square(0, 3))
    report = check_dataset(tmp_path)
    assert report.problems == ()
    assert (report.annotated, report.areas_px.size) == (0, 0)
    said = "usable to predict, but not to train, as no image is annotated"
    assert format_report(report, (8, 30)).splitlines()[-1] == said


def test_problems_are_sorted_by_file(good: Path) -> None:
    (good / "c/images").mkdir(parents=True)
    (good / "c/images/c.png").write_bytes((good / "a/images/a.png").read_bytes())
    write_png(good / "a/masks/3.png", square(0, 0))
    write_png(good / "a/masks/4.png", square(0, 2, (5, 5)))
    write_png(good / "a/masks/5.png", square(6, 3))
    stray = square(0, 0)
    stray[7, :3] = 200, 90, 255
    write_png(good / "a/masks/6.png", stray)
    write_png(good / "a/masks/7.png", square(0, 5))
    os.truncate(good / "a/masks/7.png", 50)
    write_png(good / "d/images/d.png", square(1, 3))
    write_png(good / "d/labels.png", square(0, 2, (5, 5)))
    write_png(good / "e/images/e.png", square(2, 3))
    write_png(good / "e/masks/1.png", square(0, 2))
    os.truncate(good / "e/images/e.png", 50)
    os.truncate(good / "e/masks/1.png", 50)
    write_png(good / "f/images/f.png", square(3, 3))
    write_png(good / "f/masks.png", square(0, 2) | square(5, 2))
    write_png(good / "g/images/g.png", square(4, 3))
    write_png(good / "g/masks.png", square(5, 2))
    os.truncate(good / "g/masks.png", 50)

    report = check_dataset(good)
    assert [(problem.file, problem.kind) for problem in report.problems] == [
        ("a/masks/3.png", "empty"),
        ("a/masks/4.png", "wrong size"),
        ("a/masks/5.png", "overlap"),
        ("a/masks/6.png", "stray values"),
        ("a/masks/7.png", "unreadable"),
        ("c", "duplicate"),
        ("c", "not annotated"),
        ("d/labels.png", "unreadable"),
        ("e/images/e.png", "unreadable"),
        ("e/masks/1.png", "unreadable"),
        ("f/masks.png", "not a label image"),
        ("g/masks.png", "unreadable"),
    ]
    details = {problem.file: problem.detail for problem in report.problems}
    assert details["a/masks/7.png"] == "the file is truncated. Download or save it again."
    assert details["d/labels.png"] == "5x5, but the image is 8x9"
    lines = format_report(report, (8, 30)).splitlines()
    assert "unreadable                5" in lines
    assert any(line.startswith("c               duplicate") for line in lines)
    assert lines[-1] == (
        "not usable: 5 unreadable, 1 wrong size, 1 not annotated, 1 not a label image"
    )


def test_progress_and_errors_about_the_layout(good: Path) -> None:
    seen: list[tuple[int, int]] = []
    check_dataset(good, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    with pytest.raises(NucleusError, match="no such file or folder"):
        check_dataset(good / "absent")


@pytest.mark.slow
def test_the_real_training_set(dsb2018: Path) -> None:
    report = check_dataset(dsb2018 / "stage1_train.zip")
    assert (report.images, report.areas_px.size, report.modes) == (664, 28_986, {"RGBA": 664})
    assert {problem.kind for problem in report.problems} == {"overlap"}
    assert (len(report.problems), report.in_pieces) == (6, 2)
    assert format_report(report, (8, 30)).endswith("usable: 6 small problems are decided by rule")
