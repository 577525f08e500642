import base64
import io
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from nucleus_unet.data.split import Split, SplitImage
from nucleus_unet.reports.overlays import (
    COMPARED_LEGEND,
    FOUND,
    INVENTED,
    LEAST_UNSURE,
    MERGED,
    MISSED,
    PREDICTED_LEGEND,
    PREDICTION,
    SPLIT_UP,
    UNSURE,
    comparison,
    contact_sheet,
    data_uri,
    overlay,
    overlay_file,
    predicted_overlay,
    split_sheet,
    strip,
)


def decoded(png: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def pixels(png: bytes) -> NDArray[np.uint8]:
    return decoded(png)[..., 2::-1]


def square(low: int, high: int, size: int = 8) -> NDArray[np.int32]:
    labels = np.zeros((size, size), np.int32)
    labels[low:high, low:high] = 1
    return labels


def gray(size: int = 8) -> NDArray[np.uint8]:
    return np.full((size, size, 3), 50, np.uint8)


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


def test_touching_nuclei_are_separated_and_borders_closed() -> None:
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


def test_an_overlay_file_holds_the_overlay_to_the_pixel() -> None:
    suffix, content = overlay_file(drawn := overlay(gray(), square(2, 6)))
    assert suffix == ".png"
    np.testing.assert_array_equal(pixels(content), drawn)


def test_nuclei_on_which_the_networks_disagree_have_a_colour_of_their_own() -> None:
    labels = np.zeros((8, 8), np.int32)
    labels[1:3, 1:3], labels[5:7, 5:7] = 1, 2
    drawn = predicted_overlay(gray(), labels, [LEAST_UNSURE - 0.01, LEAST_UNSURE])
    assert (tuple(drawn[1, 1]), tuple(drawn[5, 5])) == (PREDICTION, UNSURE)
    np.testing.assert_array_equal(predicted_overlay(gray(), labels), overlay(gray(), labels))


def test_a_very_large_overlay_is_a_pyramid() -> None:
    image, labels = np.full((700, 1300, 3), 90, np.uint8), np.zeros((700, 1300), int)
    labels[100:600, 200:900] = 1
    suffix, content = overlay_file(overlay(image, labels), largest_png_px=700 * 1300)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        [series] = file.series
        shapes = [level.shape for level in series.levels]
        drawn, small = series.levels[0].asarray(), series.levels[-1].asarray()
        assert file.pages.first.is_tiled
    assert (suffix, shapes) == (".tif", [(700, 1300, 3), (350, 650, 3), (175, 325, 3)])
    np.testing.assert_array_equal(drawn, overlay(image, labels))
    assert np.abs(small[0, 0].astype(int) - drawn[0, 0]).max() <= 1


def test_a_contact_sheet_holds_its_pictures_to_the_pixel() -> None:
    drawn = overlay(gray(), square(2, 6), side_px=200)
    picture = pixels(contact_sheet([("ab12 $ 0.5", drawn)], PREDICTED_LEGEND))
    assert picture.shape == (200 + 26 + 30, 240 + 20, 3)
    np.testing.assert_array_equal(picture[26:226, 10:210], drawn)
    assert (picture[:26] < 100).any()  # the title


def test_the_legend_shows_the_colours_that_are_given() -> None:
    def shown(png: bytes) -> set[tuple[int, int, int]]:
        """Colours of the outlines that the foot of the picture shows."""
        foot = pixels(png)[-30:]
        return {c for c in (PREDICTION, *COMPARED_LEGEND) if (foot == c).all(axis=-1).any()}

    # What the pictures themselves show does not matter.
    tiles = [("a", np.full((50, 700, 3), PREDICTION, np.uint8))]
    assert shown(contact_sheet(tiles * 2, {})) == set()
    assert shown(contact_sheet(tiles * 2, PREDICTED_LEGEND)) == {PREDICTION}
    compared = {FOUND, MISSED, SPLIT_UP, INVENTED, MERGED}
    assert shown(contact_sheet(tiles * 2, COMPARED_LEGEND)) == compared


def test_a_legend_that_is_wider_than_the_pictures_is_complete() -> None:
    narrow = [("a", np.zeros((50, 50, 3), np.uint8))]
    foot = pixels(contact_sheet(narrow, COMPARED_LEGEND))[-30:]
    assert (foot == MERGED).all(axis=-1).any()
    assert (foot[:, -5:] == 255).all()  # nothing goes on beyond the edge


def test_contact_sheet_lays_out_lines_of_two() -> None:
    colours = [(10 * n, 0, 0) for n in range(3)]
    tiles = [
        (f"{n}", np.full((100 + n, 300, 3), colour, np.uint8)) for n, colour in enumerate(colours)
    ]
    picture = pixels(contact_sheet(tiles, {}))
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


def test_a_split_is_drawn_by_kind_and_side_with_one_image_of_each_slide() -> None:
    def image(id_: str, kind: str, slide: str) -> SplitImage:
        return SplitImage(id=id_, kind=kind, slide=slide)

    many = [image(f"m{n:02}", "fluorescence", f"slide {n:02}") for n in range(12)]
    split = Split(
        training=(image("a", "bright-field", "s"), image("b", "bright-field", "s"), *many),
        validation=(image("c", "bright-field", "t"),),
    )
    loaded: list[str] = []

    def load(id_: str) -> NDArray[np.uint8]:
        loaded.append(id_)
        return gray()

    picture = pixels(split_sheet(split, load))
    # Of each kind two strips next to each other, the kinds in two lines.
    assert picture.shape[0] == 2 * (96 + 26) + 30
    # One of the two images of slide s; ten of twelve slides; none of the side without images.
    assert sorted(loaded) == ["b", "c", *(f"m{n:02}" for n in range(10))]
