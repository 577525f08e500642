from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data.sample import Sample
from nucleus_unet.recipe import Inference
from nucleus_unet.reports import suspects as module
from nucleus_unet.reports.evaluation import Evaluation
from nucleus_unet.reports.suspects import find_suspects, suspects_sheet

Case = tuple[Sample, Path]


def square(at: int, value: float = 1) -> NDArray[np.float32]:
    """A field of 10 by 40 px with a square of 4 px."""
    field = np.zeros((10, 40), np.float32)
    field[3:7, at : at + 4] = value
    return field


def evaluation(*cases: Case, **settings: Any) -> tuple[list[Sample], Evaluation]:
    samples, maps = zip(*cases, strict=True)
    return list(samples), Evaluation(maps, Inference(**settings), {})


@pytest.fixture
def mixed(case: Callable[..., Case]) -> Case:
    """One nucleus is found, one is not seen, one is seen where none is annotated."""
    labels = square(2) + 2 * square(12)
    return case("a", labels, square(2, 0.9) + square(12, 0.2) + square(32, 0.95))


def test_what_the_prediction_contradicts(mixed: Case) -> None:
    found = find_suspects(*evaluation(mixed))
    common = {"image": "a", "y_px": 4, "area_px": 16}
    assert found == [
        common | {"what": "seen, but not annotated", "doubt": 0.95, "x_px": 33},
        common | {"what": "annotated, but not seen", "doubt": 0.8, "x_px": 13},
    ]


def test_a_wrong_outline_is_no_suspect(case: Callable[..., Case]) -> None:
    assert find_suspects(*evaluation(case("a", square(2), square(4, 0.9)))) == []


def test_what_nobody_annotated_is_no_suspect(case: Callable[..., Case]) -> None:
    sample, maps = case("a", square(2), square(2, 0.9) + square(32, 0.9))
    ignored = np.load(sample.labels).astype(np.int32)
    ignored[:, 30:] = -1
    np.save(sample.labels, ignored)
    assert find_suspects(*evaluation((sample, maps))) == []


def test_a_nucleus_seen_at_another_scale_is_no_suspect(case: Callable[..., Case]) -> None:
    sample, maps = case("a", square(2), square(2, 0.3))
    np.save(maps, np.stack([square(2, 0.3), square(2, 0.9)], axis=-1))
    assert find_suspects(*evaluation((sample, maps), scales=(1, 0.5))) == []


def test_the_worst_of_all_images_come_first(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"a": 0.3, "b": 0.1, "c": 0.2}
    cases = [case(name, square(2), square(2, value)) for name, value in seen.items()]
    assert [one["image"] for one in find_suspects(*evaluation(*cases))] == ["b", "c", "a"]
    monkeypatch.setattr(module, "MOST_SUSPECTS", 2)
    assert [one["image"] for one in find_suspects(*evaluation(*cases))] == ["b", "c"]


def test_a_picture_of_the_first(mixed: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def sheet(tiles: Any, legend: Any) -> bytes:
        titles.extend(title for title, _ in tiles)
        return contact_sheet(tiles, legend)

    contact_sheet = module.contact_sheet
    monkeypatch.setattr(module, "contact_sheet", sheet)
    known = evaluation(mixed)
    png = suspects_sheet(*known, find_suspects(*known))
    assert png is not None
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) is not None
    assert titles == [
        "1  a: seen, but not annotated, 0.95",
        "2  a: annotated, but not seen, 0.80",
    ]
    assert suspects_sheet(*known, []) is None
