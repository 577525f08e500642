import csv
import io
import json
import zipfile
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from roifile import ImagejRoi
from skimage.measure import grid_points_in_poly, label

from nucleus_unet.nuclei.exports import coco, geojson, imagej, measurements, nuclei_csv, outlines

LABELS = np.array(
    [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 0, 2],
        [0, 1, 1, 1, 0, 2],
        [0, 0, 0, 0, 0, 0],
    ]
)
"""A ring, and two pixels at the right edge of the image."""


def filled(rings: list[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels whose centre is inside the first ring and outside all others."""
    inside = [grid_points_in_poly(shape, ring[:, ::-1] - 0.5) for ring in rings]
    return inside[0] & ~np.any([np.zeros(shape, bool), *inside[1:]], axis=0)


def test_measurements_by_hand() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 5] = 30, 60, 90
    image[2, 5] = 20
    ring, pair = measurements(image, LABELS)
    assert ring == {
        **{"nucleus": 1, "x_px": 2, "y_px": 1, "eccentricity": 0},
        **{"left_px": 1, "top_px": 0, "width_px": 3, "height_px": 3, "touches_edge": 1},
        **{"area_px": 8, "diameter_px": pytest.approx(2 * (8 / np.pi) ** 0.5), "perimeter_px": 8},
        **{"solidity": pytest.approx(8 / 9), "orientation_deg": pytest.approx(-45)},
        **{"mean_intensity": 0, "mean_red": 0, "mean_green": 0, "mean_blue": 0},
    }
    assert (pair["nucleus"], pair["area_px"], pair["x_px"], pair["y_px"]) == (2, 2, 5, 1.5)
    assert pair["mean_intensity"] == 40
    assert [pair[f"mean_{name}"] for name in ("red", "green", "blue")] == [25, 40, 55]
    assert (pair["touches_edge"], pair["orientation_deg"]) == (1, 0)
    assert 0.8 < pair["eccentricity"] <= 1
    assert measurements(image, np.zeros((4, 6), int)) == []
    assert measurements(image[..., :1] * np.uint16(100), LABELS)[1]["mean_intensity"] == 2500


def test_intensities_ignore_values_that_are_not_finite() -> None:
    image = np.full((4, 6, 2), 5.0)
    image[1, 5], image[2, 5] = (np.nan, 7), np.inf
    assert measurements(image, LABELS)[1]["mean_intensity"] == 7
    image[1, 5] = np.nan
    ring, pair = measurements(image, LABELS)
    assert ring["mean_intensity"] == 5
    assert np.isnan(pair["mean_intensity"])


def test_the_table_has_seven_significant_digits() -> None:
    image = np.full((4, 6, 1), 3.456e-5)
    _, pair = nuclei_csv(
        [{"image": "a", **row} for row in measurements(image, LABELS)[1:]]
    ).splitlines()
    assert pair.split(",")[:10] == ["a", "2", "5.0", "1.5", "5", "1", "1", "2", "1", "2.0"]
    assert pair.split(",")[15:] == ["3.456e-05", "", "", ""]
    _, row = nuclei_csv([{"image": "a", "x_px": 31234.5678, "y_px": 1 / 3}]).splitlines()
    assert row == "a,,31234.57,0.3333333" + 15 * ","


@pytest.mark.parametrize("id_", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_cell_of_the_table_is_a_formula(id_: str) -> None:
    [row] = csv.DictReader(io.StringIO(nuclei_csv([{"image": id_, "x_px": -1.5}])))
    assert (row["image"], row["x_px"]) == (f"'{id_}", "-1.5")


def test_a_nucleus_inside_the_image_does_not_touch_its_edge() -> None:
    labels = np.zeros((4, 6), int)
    labels[1:3, 2:5] = 1
    [row] = measurements(np.ones((4, 6, 1)), labels)
    assert (row["touches_edge"], row["width_px"], row["height_px"]) == (0, 3, 2)
    assert abs(row["orientation_deg"]) == 90


def test_outlines_by_hand() -> None:
    found = outlines(LABELS)
    assert [len(found[1]), len(found[2])] == [2, 1]
    [pair] = found[2]
    # The centres of the pixels are at (5.5, 1.5) and (5.5, 2.5).
    points = {(5.5, 1.0), (6.0, 1.5), (6.0, 2.5), (5.5, 3.0), (5.0, 2.5), (5.0, 1.5)}
    assert {tuple(point) for point in pair.tolist()} == points
    np.testing.assert_array_equal(pair[0], pair[-1])
    np.testing.assert_array_equal(filled(found[1], LABELS.shape), LABELS == 1)


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_an_outline_contains_exactly_its_nucleus(mask: NDArray[np.bool_]) -> None:
    labels = label(mask, connectivity=1)
    for number, rings in outlines(labels).items():
        np.testing.assert_array_equal(filled(rings, labels.shape), labels == number)


def test_only_the_largest_piece_of_a_nucleus_is_outlined() -> None:
    labels = np.zeros((40, 40), int)
    labels[2:20, 2:20] = 1
    labels[25:32, 25:32] = 1
    labels[28, 28] = 0  # a hole in the smaller piece
    [ring] = outlines(labels)[1]
    square = np.zeros_like(labels)
    square[2:20, 2:20] = 1
    np.testing.assert_array_equal(filled([ring], labels.shape), square == 1)


def test_geojson() -> None:
    shown = json.loads(geojson(LABELS))
    assert shown["type"] == "FeatureCollection"
    ring, pair = shown["features"]
    assert ring["properties"]["name"] == "1"
    assert pair["properties"]["objectType"] == "detection"
    assert [len(f["geometry"]["coordinates"]) for f in (ring, pair)] == [2, 1]
    assert pair["geometry"]["coordinates"] == [outlines(LABELS)[2][0].tolist()]
    assert json.loads(geojson(np.zeros((4, 6), int)))["features"] == []


def test_imagej_reads_its_own_outlines() -> None:
    content = imagej(LABELS)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["00001.roi", "00002.roi"]
        pair = ImagejRoi.frombytes(archive.read("00002.roi"))
    np.testing.assert_array_equal(pair.coordinates(), outlines(LABELS)[2][0][:-1])
    assert pair.name == "00002"
    assert imagej(LABELS) == content
    kinds = {member.compress_type for member in zipfile.ZipFile(io.BytesIO(content)).infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED}


def test_coco() -> None:
    shown = json.loads(coco([("a.png", LABELS), ("b.png", np.zeros((2, 3), int))]))
    assert shown["categories"] == [{"id": 1, "name": "nucleus"}]
    assert shown["images"] == [
        {"id": 1, "file_name": "a.png", "height": 4, "width": 6},
        {"id": 2, "file_name": "b.png", "height": 2, "width": 3},
    ]
    ring, pair = shown["annotations"]
    assert (ring["image_id"], ring["area"], ring["bbox"]) == (1, 8, [1, 0, 3, 3])
    # Down the columns: 21 pixels before the pair, 1 after it.
    assert pair["segmentation"] == {"size": [4, 6], "counts": [21, 2, 1]}
    assert pair["bbox"] == [5, 1, 1, 2]


@pytest.mark.parametrize("number", [1, 2])
def test_coco_s_run_lengths_are_the_nucleus(number: int) -> None:
    shown = json.loads(coco([("a.png", LABELS)]))["annotations"][number - 1]
    counts = shown["segmentation"]["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    np.testing.assert_array_equal(flat.reshape(LABELS.shape, order="F"), number == LABELS)
