import io
import json
import sys
import zipfile
from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from roifile import ImagejRoi
from skimage.measure import grid_points_in_poly, label

from nucleus_unet.data import Channels
from nucleus_unet.data.images import decode_channels, decode_image
from nucleus_unet.data.ome_zarr import pack_zarr
from nucleus_unet.data.rle import coco_counts
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei.exports import (
    Row,
    coco,
    geojson,
    imagej,
    label_ome_tiff,
    ome_zarr,
    outlines,
    require_format,
)
from nucleus_unet.recipe import Plane

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
    rows: list[Row] = [
        {"nucleus": 1, "area_px": 8, "area_um2": None},
        {"nucleus": 2, "mean_intensity": np.nan},
    ]
    shown = json.loads(geojson(outlines(LABELS), rows))
    assert shown["type"] == "FeatureCollection"
    ring, pair = shown["features"]
    assert ring["properties"] == {
        "objectType": "detection",
        "name": "1",
        "classification": {"name": "Nucleus", "color": [200, 0, 0]},
        "measurements": {"area_px": 8},
    }
    assert pair["properties"]["measurements"] == {}
    assert [len(f["geometry"]["coordinates"]) for f in (ring, pair)] == [2, 1]
    assert pair["geometry"]["coordinates"] == [outlines(LABELS)[2][0].tolist()]
    assert json.loads(geojson({}, []))["features"] == []


def test_imagej_reads_its_own_outlines() -> None:
    content = imagej(outlines(LABELS))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["00001.roi", "00002.roi"]
        pair = ImagejRoi.frombytes(archive.read("00002.roi"))
    np.testing.assert_array_equal(pair.coordinates(), outlines(LABELS)[2][0][:-1])
    assert pair.name == "00002"
    assert imagej(outlines(LABELS)) == content
    kinds = {member.compress_type for member in zipfile.ZipFile(io.BytesIO(content)).infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED}


def test_coco() -> None:
    nothing = np.zeros((2, 3), int), np.zeros(0, np.float32)
    of_both = [("a.png", LABELS, np.array([0.9, 0.81234], np.float32)), ("b.png", *nothing)]
    data_set, results = map(json.loads, coco(of_both))
    assert data_set["categories"] == [{"id": 1, "name": "nucleus"}]
    assert data_set["images"] == [
        {"id": 1, "file_name": "a.png", "height": 4, "width": 6},
        {"id": 2, "file_name": "b.png", "height": 2, "width": 3},
    ]
    ring, pair = data_set["annotations"]
    assert (ring["image_id"], ring["area"], ring["bbox"]) == (1, 8, [1, 0, 3, 3])
    # Down the columns: 21 pixels before the pair, 1 after it.
    assert pair["segmentation"] == {"size": [4, 6], "counts": coco_counts("22 2", 24)}
    assert pair["bbox"] == [5, 1, 1, 2]
    assert (pair["id"], pair["iscrowd"], pair["category_id"]) == (2, 0, 1)
    assert [result["score"] for result in results] == [0.9, 0.8123]
    assert results[1]["segmentation"] == pair["segmentation"]


@pytest.mark.parametrize(("last", "dtype"), [(2, np.uint16), (2**16, np.uint32)])
def test_labels_as_ome_tiff(last: int, dtype: type) -> None:
    labels = np.where(LABELS == 2, last, LABELS)
    content = label_ome_tiff(labels, "plate/a", 0.65)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        found = file.asarray()
        pixels = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]["Pixels"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, labels)
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeYUnit"]) == (0.65, "µm")
    assert label_ome_tiff(labels, "plate/a", 0.65) == content
    assert b"PhysicalSize" not in label_ome_tiff(labels, "plate/a", None)


@pytest.mark.parametrize(("last", "dtype"), [(2, np.uint16), (2**16, np.uint32)])
def test_labels_and_image_as_ome_zarr(last: int, dtype: type) -> None:
    zarr = pytest.importorskip("zarr")
    labels = np.where(LABELS == 2, last, LABELS)
    planes = {name: LABELS.astype(np.uint16) * 1000 + i for i, name in enumerate(("DAPI", "GFP"))}
    channels = Channels(planes, ("GFP",))
    files = ome_zarr(labels, channels, 0.65)
    content = pack_zarr({path: partial(bytes, data) for path, data in files.items()})
    decoded = decode_channels(content, "a.zarr", Plane(channel="gfp"))
    for name, plane in planes.items():
        np.testing.assert_array_equal(decoded.planes[name], plane)
    assert decode_image(content, "a.zarr", Plane(channel="2")).pixel_size_um == 0.65
    buffers = {path: zarr.buffer.cpu.Buffer.from_bytes(data) for path, data in files.items()}
    found = zarr.open_array(zarr.storage.MemoryStore(buffers), path="labels/nuclei/0")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[...], labels)
    assert ome_zarr(labels, channels, 0.65) == files
    assert b"micrometer" not in b"".join(ome_zarr(labels, channels, None).values())


def test_a_format_that_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    require_format("ome-tiff")
    with pytest.raises(
        NucleusError, match=r"zarr is not installed\. Install it with: make install"
    ):
        require_format("ome-zarr")
