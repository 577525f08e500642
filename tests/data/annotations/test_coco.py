import doctest
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from nucleus_unet.data.annotations import coco as module
from nucleus_unet.data.annotations.coco import decode_counts, draw_coco, is_coco, read_coco
from nucleus_unet.data.masks import DataProblem, Region
from nucleus_unet.errors import NucleusError

SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]
RUNS = {"size": [2, 3], "counts": [1, 2, 3]}
DISC = "V21?8K2N2N2N2O00000O20N1000001N2N2N2N5HR1"


def document(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    images = [{"id": 7, "file_name": "a.png", **image}]
    return {"images": images, "annotations": [{"image_id": 7, **one} for one in annotations]}


def read(*segmentations: Any, shape: tuple[int, int] = (4, 5), **image: Any) -> list[Any]:
    found = document(*({"segmentation": one} for one in segmentations), **image)
    [one] = read_coco(found, "c.json")
    return list(draw_coco(one, shape))


def rows(region: Region, shape: tuple[int, int] = (4, 5)) -> list[str]:
    image = np.zeros(shape, int)
    image[region.box] = region.pixels
    return ["".join(".#"[pixel] for pixel in row) for row in image]


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_what_is_coco() -> None:
    assert is_coco({"images": [], "annotations": []})
    assert not any(map(is_coco, [{"images": []}, [], None, {"type": "FeatureCollection"}]))


def test_polygons() -> None:
    [region] = read([SQUARE, [4, 0, 5, 0, 5, 1, 4, 1]])
    assert rows(region) == ["....#", ".##..", ".##..", "....."]


@pytest.mark.parametrize("counts", [[1, 2, 3], "123"])
def test_run_lengths_go_down_the_columns(counts: Any) -> None:
    [region] = read({"size": [2, 3], "counts": counts}, shape=(2, 3))
    assert rows(region, (2, 3)) == [".#.", "#.."]


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ([6], ["...", "..."]),
        ([0, 6], ["###", "###"]),
        ([1, 1, 0, 1, 3], [".#.", "#.."]),
        ([1, 0, 4, 1], ["...", "..#"]),
        ([0, 0, 6, 0], ["...", "..."]),
    ],
)
def test_run_lengths_may_be_0(counts: list[int], shown: list[str]) -> None:
    [region] = read({"size": [2, 3], "counts": counts}, shape=(2, 3))
    assert rows(region, (2, 3)) == shown


def compressed(counts: list[int]) -> str:
    """Run lengths as the COCO API writes them."""
    text = ""
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        while True:
            digit, number = number & 31, number >> 5
            ends = number == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if ends else 32))
            if ends:
                break
    return text


def test_a_text_of_the_coco_api() -> None:
    """Made with pycocotools 2.0.11 from a disc of radius 9 in 20 x 24 pixels."""
    y, x = np.mgrid[:20, :24]
    disc = (y - 10) ** 2 + (x - 12) ** 2 <= 81
    edges = np.flatnonzero(np.diff(disc.ravel(order="F"), prepend=False))
    counts = np.diff([0, *edges, 480]).tolist()
    assert decode_counts(DISC) == counts
    assert compressed(counts) == DISC


@given(st.lists(st.integers(0, 2**30)))
def test_compressed_counts_are_decoded(counts: list[int]) -> None:
    assert decode_counts(compressed(counts)) == counts


@pytest.mark.parametrize("text", ["1é", "1 2", "1/", "1p", "o", "1" + 20 * "o" + "1"])
def test_texts_that_are_no_counts(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'"):
        decode_counts(text)


@given(arrays(np.bool_, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_any_mask_as_run_lengths(mask: NDArray[np.bool_]) -> None:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff([0, *edges, flat.size]).tolist()
    for written in (counts, compressed(counts)):
        [region] = read({"size": list(mask.shape), "counts": written}, shape=mask.shape)
        found = np.zeros(mask.shape, np.bool_)
        found[region.box] = region.pixels
        np.testing.assert_array_equal(found, mask)


def test_crowds_and_annotations_without_outline_are_reported() -> None:
    found = document(
        {"iscrowd": 1, "segmentation": RUNS}, {"bbox": [1, 1, 2, 2]}, {"segmentation": []}
    )
    [image] = read_coco(found, "c.json")
    assert list(draw_coco(image, (4, 5))) == [
        DataProblem("c.json, annotation 1", "crowd", "iscrowd marks a group of nuclei: skipped"),
        DataProblem("c.json, annotation 2", "no area", "no segmentation: skipped"),
        DataProblem("c.json, annotation 3", "no area", "no segmentation: skipped"),
    ]


def test_annotations_by_image() -> None:
    found = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": "x", "file_name": "b/c.png"}],
        "annotations": [{"image_id": "x"}, {"image_id": "x"}],
    }
    one, other = read_coco(found, "c.json")
    assert (one.name, other.name) == ("a.png", "b/c.png")
    assert [where for where, _ in other.annotations] == [
        "c.json, annotation 1",
        "c.json, annotation 2",
    ]
    assert one.annotations == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"images": {}, "annotations": []}, "images: not a list of objects"),
        ({"images": [1], "annotations": []}, "images: not a list of objects"),
        ({"images": [], "annotations": None}, "annotations: not a list of objects"),
        ({"images": [{}], "annotations": []}, "image 1: needs a file_name, and an id"),
        (document(file_name=3), "image 1: needs a file_name"),
        (document(id=[1]), "image 1: needs a file_name"),
        (document(height="4", width=5), "image 1: its height and width are not numbers"),
        (document({"image_id": 8}), "annotation 1: its image_id belongs to no image"),
        (document({"image_id": [7]}), "annotation 1: its image_id belongs to no image"),
    ],
)
def test_a_malformed_file(found: dict[str, Any], message: str) -> None:
    with pytest.raises(NucleusError, match=rf"^c.json, {message}.*\. Export it again\.$"):
        read_coco(found, "c.json")


def test_two_images_of_one_id() -> None:
    found = document()
    found["images"] *= 2
    with pytest.raises(NucleusError, match=r"^c.json, image 2: needs .* an id that no other image"):
        read_coco(found, "c.json")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (3, "its segmentation is neither polygons nor run lengths"),
        ([[1, 1, 2]], "the outline is not a list of points"),
        ([1, 1, 2, 2], "the outline is not a list of points"),
        ([[1, 1, 1e300, 2]], "the coordinate 1e\\+300 is not in pixels"),
        ({}, "its size is not that of the image, \\[2, 3\\]"),
        (RUNS | {"size": [3, 2]}, "its size is not that of the image"),
        (RUNS | {"size": [2, "3"]}, "its size is not that of the image"),
        (RUNS | {"counts": None}, "its counts are not a list of lengths"),
        (RUNS | {"counts": [1, 2.0, 3]}, "its counts are not a list of lengths"),
        (RUNS | {"counts": [8, -2]}, "its counts are not a list of lengths"),
        (RUNS | {"counts": [10**300]}, "its counts are not a list of lengths"),
        (RUNS | {"counts": "1x"}, "its counts '1x' are not run lengths"),
        (RUNS | {"counts": [1, 2, 4]}, "its counts add up to 7 pixels, not 6"),
        (RUNS | {"counts": []}, "its counts add up to 0 pixels, not 6"),
        (RUNS | {"counts": "12"}, "its counts add up to 3 pixels, not 6"),
    ],
)
def test_a_malformed_annotation(segmentation: Any, message: str) -> None:
    with pytest.raises(NucleusError, match=rf"^c.json, annotation 1: {message}"):
        read(segmentation, shape=(2, 3))


def test_an_image_of_another_size() -> None:
    assert read(height=4, width=5) == []
    with pytest.raises(NucleusError, match=r"^c.json, image 1: 4x6, but the image file is 4x5\."):
        read(height=4, width=6)
    with pytest.raises(NucleusError, match=r"^c.json, image 1: 4xNone, but the image file is 4x5"):
        read(height=4)


def of_categories(*ids: int) -> dict[str, Any]:
    found = document(*({"category_id": id_, "segmentation": [SQUARE]} for id_ in ids))
    names = {1: "nucleus", 2: "debris", 3: "lost"}
    return found | {"categories": [{"id": id_, "name": name} for id_, name in names.items()]}


@pytest.mark.parametrize(
    ("ids", "categories", "count"),
    [
        ((1, 1), (), 2),
        ((1, 2, 1), ("nucleus",), 2),
        ((1, 2, 1), ("nucleus", "debris"), 3),
        ((8, 9), ("8",), 1),
    ],
)
def test_categories_are_chosen(
    ids: tuple[int, ...], categories: tuple[str, ...], count: int
) -> None:
    [one] = read_coco(of_categories(*ids), "c.json", categories)
    assert len(one.annotations) == count


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (
            (),
            r"c\.json: holds several categories: nucleus \(2\), debris \(1\)\. Say which are nuclei",
        ),
        (("lost",), r"c\.json: no annotation has the category lost\. It holds nucleus, debris\."),
    ],
)
def test_several_categories(categories: tuple[str, ...], message: str) -> None:
    with pytest.raises(NucleusError, match=message):
        read_coco(of_categories(1, 2, 1), "c.json", categories)
