import base64
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.reports.figures import (
    FOUND,
    INVENTED,
    MERGED,
    MISSED,
    PREDICTION,
    SPLIT_UP,
    comparison,
    contact_sheet,
    curves,
    data_uri,
    overlay,
    overlay_png,
    parallel_coordinates,
    strip,
)

EPOCH = {
    "epoch": 1,
    "loss": -0.2,
    "dice": 0.3,
    "mean_iou": 0.5,
    "val_loss": -0.1,
    "val_dice": 0.25,
    "val_mean_iou": 0.45,
    "learning_rate": 0.01,
    "seconds": 9.0,
    "images_per_s": 88.0,
}


def decoded(png: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def pixels(png: bytes) -> NDArray[np.uint8]:
    rgb: NDArray[np.uint8] = decoded(png)[..., 2::-1]
    return rgb


def contains(png: bytes, colour: tuple[int, int, int]) -> bool:
    return bool((pixels(png) == colour).all(axis=-1).any())


def square(low: int, high: int, size: int = 8) -> NDArray[np.int32]:
    labels = np.zeros((size, size), np.int32)
    labels[low:high, low:high] = 1
    return labels


def gray(size: int = 8) -> NDArray[np.uint8]:
    return np.full((size, size, 3), 50, np.uint8)


def test_curves() -> None:
    png = curves([EPOCH, EPOCH | {"epoch": 2, "val_mean_iou": 0.6, "loss": -0.4}])
    assert pixels(png).shape == (500, 1200, 3)
    assert contains(png, (0, 0x72, 0xB2))
    assert contains(png, (0xD5, 0x5E, 0))
    assert png == curves([EPOCH, EPOCH | {"epoch": 2, "val_mean_iou": 0.6, "loss": -0.4}])


@pytest.mark.parametrize(
    "history",
    [
        [],
        [EPOCH],
        [EPOCH | {"val_mean_iou": float("nan"), "loss": float("inf")}],
        [{"epoch": 3, "loss": 1.0}],
        [EPOCH | {"epoch": epoch} for epoch in range(100)],
    ],
)
def test_curves_of_little_and_of_much(history: list[dict[str, float]]) -> None:
    assert pixels(curves(history)).shape == (500, 1200, 3)


def test_overlay_of_a_prediction() -> None:
    image = gray()
    drawn = overlay(image, square(2, 6))
    assert drawn.dtype == np.uint8
    ground = [200, 200, 200]
    line = list(PREDICTION)
    np.testing.assert_array_equal(drawn[0], [ground] * 8)
    np.testing.assert_array_equal(drawn[2], [ground] * 2 + [line] * 4 + [ground] * 2)
    np.testing.assert_array_equal(
        drawn[3], [ground] * 2 + [line] + [ground] * 2 + [line] + [ground] * 2
    )
    assert (image == 50).all()


def test_comparison_colours_what_is_wrong() -> None:
    y_true, y_pred = np.zeros((2, 20, 40), np.int32)
    y_true[2:8, 2:8], y_pred[2:8, 2:7] = 1, 7  # found
    y_true[2:8, 12:18] = 2  # missed
    y_pred[2:8, 22:28] = 1  # invented
    y_true[12:18, 2:9], y_true[12:18, 9:16], y_pred[12:18, 2:16] = 3, 4, 2  # merged, both missed
    y_true[12:18, 22:36], y_pred[12:18, 22:29], y_pred[12:18, 29:36] = 5, 3, 4  # split
    drawn = comparison(np.full((20, 40, 3), 50, np.uint8), y_true, y_pred, side_px=40)
    assert drawn.shape == (20, 84, 3)
    truth, predicted = drawn[:, :40], drawn[:, 44:]
    assert [tuple(truth[4, x]) for x in (2, 12, 22)] == [FOUND, MISSED, (200, 200, 200)]
    assert [tuple(truth[14, x]) for x in (2, 9, 22)] == [MISSED, MISSED, SPLIT_UP]
    assert [tuple(predicted[4, x]) for x in (2, 12, 22)] == [FOUND, (200, 200, 200), INVENTED]
    assert [tuple(predicted[14, x]) for x in (2, 22, 29)] == [MERGED, INVENTED, INVENTED]


def test_touching_nuclei_are_told_apart_and_borders_closed() -> None:
    labels = np.repeat([[1, 1, 1, 2, 2, 2]], 6, axis=0)
    drawn = (overlay(gray(6), labels) == PREDICTION).all(axis=-1)
    np.testing.assert_array_equal(drawn[2], [True, False, True, True, False, True])
    assert drawn[0].all()


def test_overlay_brightens_and_leaves_black() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    nothing = np.zeros((4, 4), np.int32)
    assert (overlay(image, nothing) == 0).all()
    image[:2] = 10
    np.testing.assert_array_equal(np.unique(overlay(image, nothing)), [0, 200])


def test_overlay_resizes_before_drawing() -> None:
    drawn = overlay(gray(), square(2, 6), side_px=32)
    assert drawn.shape == (32, 32, 3)
    line = (drawn == PREDICTION).all(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(line[16]), [8, 23])
    image, labels = np.full((100, 300, 3), 50, np.uint8), np.ones((100, 300), np.int32)
    assert overlay(image, labels, side_px=30).shape == (10, 30, 3)


def test_overlay_takes_reversed_and_read_only_arrays() -> None:
    image = gray()[..., ::-1]
    image.flags.writeable = False
    assert tuple(overlay(image, square(2, 6), side_px=16)[4, 4]) == PREDICTION


def test_overlay_png_holds_the_overlay_to_the_pixel() -> None:
    png = overlay_png(gray(), square(2, 6), title="ab12 $ 0.5", side_px=200)
    drawn = overlay(gray(), square(2, 6), side_px=200)
    picture = pixels(png)
    assert picture.shape == (200 + 26 + 30, 240 + 20, 3)
    np.testing.assert_array_equal(picture[26:226, 10:210], drawn)
    assert (picture[:26] < 100).any()  # the title


def test_legend_names_the_colours_that_occur() -> None:
    foot = pixels(overlay_png(gray(), square(2, 6), side_px=200))[-30:]
    assert (foot == PREDICTION).all(axis=-1).any()
    for colour in (FOUND, MISSED, INVENTED, SPLIT_UP, MERGED):
        assert not (foot == colour).all(axis=-1).any()


def test_contact_sheet_lays_out_lines_of_two() -> None:
    colours = [(10 * n, 0, 0) for n in range(3)]
    tiles = [
        (f"{n}", np.full((100 + n, 300, 3), colour, np.uint8)) for n, colour in enumerate(colours)
    ]
    picture = pixels(contact_sheet(tiles))
    assert picture.shape == ((101 + 26) + (102 + 26) + 30, 2 * 310 + 10, 3)
    for n, (top, left) in enumerate([(26, 10), (26, 320), (153, 10)]):
        tile = picture[top : top + 100 + n, left : left + 300]
        np.testing.assert_array_equal(tile, tiles[n][1])


def test_a_picture_within_an_address_is_a_small_jpeg() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    png = cv2.imencode(".png", noise)[1].tobytes()
    for side_px, shape in ((100, (60, 100, 3)), (1200, (300, 500, 3))):
        head, _, content = data_uri(png, side_px).partition(",")
        assert head == "data:image/jpeg;base64"
        assert decoded(base64.b64decode(content)).shape == shape


def test_a_strip_lays_images_side_by_side() -> None:
    wide, tall = np.full((10, 20, 3), 50, np.uint8), np.full((20, 10, 3), 50, np.uint8)
    laid = strip([wide, tall], 10)
    assert laid.shape == (10, 1 + 2 * 12, 3)
    dark = (laid == 200).all(axis=-1)
    assert dark.sum() == 2 * 5 * 10
    assert dark[:5, 1:11].all()
    assert dark[:, 13:18].all()
    assert strip([], 10).shape == (10, 1, 3)


def test_trials_on_parallel_axes() -> None:
    trials = [(("1", "x"), 0.25), (("1", "y"), 0.5)]
    colours = {"worst": (84, 1, 68), "best": (37, 231, 253)}  # the ends of viridis, as BGR

    def drawn(trials: list[tuple[tuple[str, str], float]]) -> dict[str, list[int]]:
        """The rows of the picture where each colour is."""
        png = np.frombuffer(parallel_coordinates(["a", "b"], trials), np.uint8)
        picture = cv2.imdecode(png, cv2.IMREAD_COLOR)
        assert picture is not None
        return {
            name: np.flatnonzero((picture == colour).all(-1).any(1)).tolist()
            for name, colour in colours.items()
        }

    rows = drawn(trials)
    # Both start at the value that they share; from there the better one ends on top.
    assert min(rows["best"]) < min(rows["worst"]) < max(rows["best"]) < max(rows["worst"])
    alone, none = drawn(trials[:1]), drawn([])
    assert alone["worst"]
    assert not alone["best"]
    assert none == {"worst": [], "best": []}
