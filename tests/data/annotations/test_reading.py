import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from skimage.measure import label

from nucleus_unet.data.annotations import reading as module
from nucleus_unet.data.annotations.reading import (
    coco_images,
    read_annotations,
    read_coco_image,
    read_file,
    read_json,
)
from nucleus_unet.data.masks import relabel
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei.exports import Row, coco, geojson, imagej, outlines


def polygon(*points: tuple[float, float]) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": [points]}
    return {"type": "Feature", "geometry": geometry, "properties": {}}


def square(left: int, top: int, side: int) -> dict[str, Any]:
    right, bottom = left + side, top + side
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def zipped(content: bytes) -> bytes:
    """As QuPath does it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("slide 1.geojson", content)
    return packed.getvalue()


def read(content: bytes | str, shape: tuple[int, int] = (4, 5)) -> NDArray[np.int32]:
    content = content.encode() if isinstance(content, str) else content
    return read_annotations(content, "a", shape).labels


# What we export we can read


def geojson_of(labels: NDArray[np.int32]) -> str:
    traced = outlines(labels)
    rows: list[Row] = [{} for _ in traced]
    return geojson(traced, rows)


def coco_of(*labels: NDArray[np.int32]) -> str:
    """As a data set, with images called a.png, b.png and so on."""
    scores = (np.ones(one.max(), np.float32) for one in labels)
    names = (f"{letter}.png" for letter in "abc")
    return coco(zip(names, labels, scores, strict=False))[0]


BLOBS = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)))


@st.composite
def label_images(draw: st.DrawFn) -> NDArray[np.int32]:
    """Labels whose nuclei are in one piece; they touch each other, and hold each other in holes."""
    numbers = draw(
        arrays(
            np.int8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 2)
        )
    )
    return label(numbers, connectivity=draw(st.sampled_from([1, 2]))).astype(np.int32)


@given(label_images())
def test_our_geojson_gives_the_same_pixels(labels: NDArray[np.int32]) -> None:
    found = read_annotations(geojson_of(labels).encode(), "a", labels.shape)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.problems == ()


@given(label_images())
def test_our_coco_gives_the_same_pixels(labels: NDArray[np.int32]) -> None:
    images = coco_images(coco_of(labels, labels).encode(), "c")
    assert images is not None
    for image in images:
        found = read_coco_image(image, labels.shape)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.problems == ()


@given(BLOBS)
def test_our_imagej_gives_the_same_pixels_with_holes_filled(mask: NDArray[np.bool_]) -> None:
    labels = label(mask, connectivity=2).astype(np.int32)
    found = read_annotations(imagej(outlines(labels)), "a", labels.shape).labels
    filled = np.zeros_like(labels)
    for number in sorted(range(1, labels.max() + 1), key=lambda n: -(filled_area(labels, n))):
        filled[binary_fill_holes(labels == number)] = number
    np.testing.assert_array_equal(found, filled)


def filled_area(labels: NDArray[np.int32], number: int) -> int:
    return int(binary_fill_holes(labels == number).sum())


def test_large_smooth_nuclei_and_a_hole() -> None:
    y, x = np.mgrid[:90, :120]
    labels = np.zeros((90, 120), np.int32)
    labels[(y - 40) ** 2 + (x - 30) ** 2 < 28**2] = 1
    labels[(y - 40) ** 2 + (x - 30) ** 2 < 7**2] = 0
    labels[(y - 50) ** 2 / 4 + (x - 90) ** 2 < 23**2] = 2
    np.testing.assert_array_equal(read(geojson_of(labels), labels.shape), labels)


# Merging


def test_nuclei_are_numbered_in_the_order_of_the_file() -> None:
    labels = read(json.dumps([square(2, 0, 1), square(0, 0, 1)]))
    assert labels[0].tolist() == [2, 0, 1, 0, 0]


def test_the_smaller_nucleus_gets_the_pixel_and_the_first_of_equal_ones() -> None:
    found = read_annotations(
        json.dumps([square(0, 0, 3), square(2, 2, 2), square(3, 2, 2), square(2, 2, 2)]).encode(),
        "a",
        (4, 5),
    )
    assert found.labels.tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 2, 2, 3],
        [0, 0, 2, 2, 3],
    ]
    assert [(problem.file, problem.kind) for problem in found.problems] == [
        ("a, feature 1", "overlap"),
        ("a, feature 3", "overlap"),
        ("a, feature 4", "covered"),
    ]


def test_nuclei_outside_the_image_and_empty_ones_are_reported() -> None:
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    features = [square(9, 9, 2), polygon(), square(3, 3, 9), point]
    found = read_annotations(json.dumps(features).encode(), "a", (4, 5))
    assert found.labels.sum() == 2
    assert [(problem.file, problem.kind) for problem in found.problems] == [
        ("a, feature 1", "empty"),
        ("a, feature 2", "empty"),
        ("a, feature 4", "no area"),
    ]
    assert found.problems[0].detail == "contains no centre of a pixel of the image: skipped"


# Kinds of files


def test_the_bytes_decide_what_kind_of_file_it_is() -> None:
    labels = np.array([[1, 0], [1, 2]], np.int32)
    seg = io.BytesIO()
    np.save(seg, np.array({"masks": labels}, object))
    text = geojson_of(labels).encode()
    packed = gzip.compress(text), zipped(text)
    for content in (seg.getvalue(), imagej(outlines(labels)), text, *packed):
        assert read(content, (2, 2)).tolist() == labels.tolist()
        assert coco_images(content, "a") is None
    for pack in (gzip.compress, zipped):
        assert coco_images(pack(coco_of(labels).encode()), "a") is not None


def test_text_with_a_byte_order_mark() -> None:
    assert read_json(b"\xef\xbb\xbf[]", "a") == []
    assert read_json("[]".encode("utf-16"), "a") == []


def refused(content: bytes) -> str:
    with pytest.raises(NucleusError) as caught:
        read_annotations(content, "a", (4, 5))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_coco_is_read_by_its_images() -> None:
    assert refused(coco_of().encode()) == (
        "a: COCO JSON, which names its images. Give this file alone."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\x89PNG", "codec can't decode"),
        (b'{"type": "Feature", "type": "Feature"}', "an object has the key 'type' twice"),
        (b"[" * 10**6, "recursion"),
        (b"9" * 5000, "digits"),
    ],
)
def test_what_is_not_json(content: bytes, reason: str) -> None:
    line = refused(content)
    assert line.startswith("a: not JSON (")
    assert reason in line


def test_damaged_gzip() -> None:
    content = gzip.compress(b"[]" + bytes(999))
    assert refused(content[:-5]).startswith("a: damaged (")
    assert refused(content[:12] + b"\xff" + content[13:]).startswith("a: damaged (")
    assert refused(zipped(b"[]")[:-5]).startswith("a: not a complete zip file (")


def test_files_that_are_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "LARGEST_MEMBER_BYTES", 10)
    for pack in (gzip.compress, zipped):
        assert refused(pack(bytes(11))).startswith("a: larger than 0 GiB when unpacked.")
    (tmp_path / "a").write_bytes(bytes(11))
    with pytest.raises(NucleusError, match=r"^a: larger than 0 GiB\. Split it"):
        read_file(tmp_path / "a", "a")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NucleusError, match=r"^a: cannot be read \(Is a directory\)\. Check"):
        read_file(tmp_path, "a")


def test_an_empty_zip_says_that_there_is_no_nucleus() -> None:
    content = io.BytesIO()
    zipfile.ZipFile(content, "w").close()
    assert not read(content.getvalue()).any()


def test_numbers_are_as_in_relabel() -> None:
    """Of a nucleus that is covered completely no number is left."""
    labels = read(json.dumps([square(0, 0, 2), square(0, 0, 2), square(3, 0, 1)]))
    np.testing.assert_array_equal(labels, relabel(labels))
    assert labels.max() == 2
