import doctest
from pathlib import Path

from nucleus_unet.nuclei import table_csv
from nucleus_unet.reports import suggestions as module
from nucleus_unet.reports.suggestions import most_uncertain, read_uncertainty

COLUMNS = ("image", "state", "uncertainty")
ROWS: list[dict[str, object]] = [
    {"image": "a,1", "state": "done", "uncertainty": 0.25},
    {"image": "-80 °C", "state": "done", "uncertainty": 0.5},
    {"image": "b", "state": "skipped"},
]
SLIDES = {"a": "s", "b": "s", "c": "s", "d": "t", "e": "t", "f": "u"}
UNCERTAINTY = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.3, "e": 0.2, "f": 0.1}


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_each_slide_comes_once_before_any_comes_twice() -> None:
    assert most_uncertain(UNCERTAINTY, SLIDES, 9) == ["a", "d", "f", "b", "e", "c"]
    assert most_uncertain(UNCERTAINTY, SLIDES, 2) == ["a", "d"]


def test_equally_uncertain_images_are_in_order() -> None:
    assert most_uncertain(dict.fromkeys("cab", 0.5), SLIDES, 3) == ["a", "b", "c"]


def test_skipped_images_have_no_uncertainty(tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    table.write_text(table_csv(COLUMNS, ROWS))
    assert read_uncertainty(table) == {"a,1": 0.25, "-80 °C": 0.5}
