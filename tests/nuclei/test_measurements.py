import csv
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from nucleus_unet.data import Channels
from nucleus_unet.nuclei.exports import Row
from nucleus_unet.nuclei.measurements import (
    COLUMNS,
    images_csv,
    measure_nuclei,
    nuclei_csv,
    nuclei_parquet,
)

LABELS = np.array(
    [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 0, 2],
        [0, 1, 1, 1, 0, 2],
        [0, 0, 0, 0, 0, 0],
    ]
)
"""A ring, and two pixels at the right edge of the image."""


def gray(values: NDArray[Any]) -> Channels:
    return Channels({"gray": values}, ("gray",))


def measured(channels: Channels, labels: NDArray[Any] = LABELS, **more: Any) -> list[Row]:
    confidence = np.linspace(1, 0.75, labels.max()).astype(np.float32)
    return measure_nuclei(labels, channels, confidence, **more)


def test_measurements_by_hand() -> None:
    planes = {name: np.zeros((4, 6), np.uint8) for name in ("red", "green", "blue")}
    for plane, value in zip(planes.values(), (30, 60, 90), strict=True):
        plane[1, 5], plane[2, 5] = value, 20
    ring, pair = measured(Channels(planes, tuple(planes)))
    assert ring == {
        **{"nucleus": 1, "x_px": 2, "y_px": 1, "eccentricity": 0, "confidence": 1},
        **{"left_px": 1, "top_px": 0, "width_px": 3, "height_px": 3, "touches_edge": 1},
        **{"area_px": 8, "diameter_px": pytest.approx(2 * (8 / np.pi) ** 0.5), "perimeter_px": 8},
        **{"solidity": pytest.approx(8 / 9), "orientation_deg": pytest.approx(-45)},
        **{"mean_intensity": 0, "mean_red": 0, "mean_green": 0, "mean_blue": 0},
        **dict.fromkeys(("x_um", "y_um", "area_um2", "diameter_um", "perimeter_um")),
    }
    assert (pair["nucleus"], pair["area_px"], pair["x_px"], pair["y_px"]) == (2, 2, 5, 1.5)
    assert pair["mean_intensity"] == 40
    assert [pair[f"mean_{name}"] for name in ("red", "green", "blue")] == [25, 40, 55]
    assert (pair["touches_edge"], pair["orientation_deg"]) == (1, 0)
    assert pair["confidence"] == 0.75
    assert 0.8 < pair["eccentricity"] <= 1
    assert measured(Channels(planes, tuple(planes)), np.zeros((4, 6), int)) == []


def test_with_a_pixel_size_there_are_also_micrometres() -> None:
    ring, pair = measured(gray(np.ones((4, 6))), pixel_size_um=0.5)
    assert (ring["x_um"], ring["y_um"], ring["area_um2"], ring["perimeter_um"]) == (1, 0.5, 2, 4)
    assert pair["diameter_um"] == pair["diameter_px"] / 2


def test_channels_that_were_not_segmented_are_measured_too() -> None:
    planes = {"DAPI": np.full((4, 6), 7), "=GFP": np.full((4, 6), 300, np.uint16)}
    ring, _ = rows = measured(Channels(planes, ("DAPI",)))
    assert (ring["mean_intensity"], ring["mean_DAPI"], ring["mean_=GFP"]) == (7, 7, 300)
    head = nuclei_csv([{"image": "a", **row} for row in rows]).splitlines()[0].split(",")
    assert head == [*COLUMNS, "mean_DAPI", "mean_=GFP"]
    assert "mean_gray" not in measured(gray(planes["DAPI"]))[0]


def test_intensities_ignore_values_that_are_not_finite() -> None:
    image = np.full((4, 6), 5.0)
    image[1, 5], image[2, 5] = 7, np.inf
    assert measured(gray(image))[1]["mean_intensity"] == 7
    image[1, 5] = np.nan
    ring, pair = measured(gray(image))
    assert ring["mean_intensity"] == 5
    assert np.isnan(pair["mean_intensity"])


def test_a_nucleus_inside_the_image_does_not_touch_its_edge() -> None:
    labels = np.zeros((4, 6), int)
    labels[1:3, 2:5] = 1
    [row] = measured(gray(np.ones((4, 6))), labels)
    assert (row["touches_edge"], row["width_px"], row["height_px"]) == (0, 3, 2)
    assert abs(row["orientation_deg"]) == 90


def test_the_table_has_seven_significant_digits() -> None:
    [_, row] = measured(gray(np.full((4, 6), 3.456e-5)))
    [found] = csv.DictReader(io.StringIO(nuclei_csv([{"image": "a", **row}])))
    assert (found["image"], found["x_px"], found["area_um2"]) == ("a", "5.0", "")
    assert found["mean_intensity"] == "3.456e-05"
    [found] = csv.DictReader(
        io.StringIO(nuclei_csv([{"image": "a", "x_px": 31234.5678, "y_px": 1 / 3}]))
    )
    assert (found["x_px"], found["y_px"], found["area_px"]) == ("31234.57", "0.3333333", "")


@pytest.mark.parametrize("id_", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_cell_of_a_table_is_a_formula(id_: str) -> None:
    [row] = csv.DictReader(io.StringIO(nuclei_csv([{"image": id_, "x_px": -1.5}])))
    assert (row["image"], row["x_px"]) == (f"'{id_}", "-1.5")
    [row] = csv.DictReader(io.StringIO(images_csv([{"image": id_, "note": id_}])))
    assert (row["image"], row["note"], row["nuclei"]) == (f"'{id_}", f"'{id_}", "")


def test_parquet_has_the_same_rows_with_all_digits() -> None:
    rows = [{"image": "=a", **row} for row in measured(gray(np.full((4, 6), 1 / 3)))]
    table = pd.read_parquet(io.BytesIO(nuclei_parquet(rows)))
    assert [*table] == [*COLUMNS]
    assert table["image"].tolist() == ["=a", "=a"]
    assert table["nucleus"].dtype == np.int64
    assert table["mean_intensity"].tolist() == [1 / 3, 1 / 3]
    assert table["area_um2"].isna().all()
    assert [*pd.read_parquet(io.BytesIO(nuclei_parquet([])))] == [*COLUMNS]
