"""Programs that read our exports agree with us. They are installed for ``make test-all`` only."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import roifile
import tifffile
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from nucleus_unet.data import Channels, draw_synthetic
from nucleus_unet.nuclei import exports
from nucleus_unet.nuclei.measurements import measure_nuclei

LABELS: NDArray[np.int32] = draw_synthetic("fluorescence", np.random.default_rng(4))[1]
COUNT = int(LABELS.max())
SURE = np.linspace(0.5, 1, COUNT).astype(np.float32)


def test_coco_api(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    paths = tmp_path / "coco.json", tmp_path / "coco_results.json"
    for path, text in zip(paths, exports.coco([("a.png", LABELS, SURE)]), strict=True):
        path.write_text(text)
    truth = coco.COCO(str(paths[0]))
    for number, annotation in enumerate(truth.loadAnns(truth.getAnnIds()), 1):
        np.testing.assert_array_equal(truth.annToMask(annotation), number == LABELS)
    found = truth.loadRes(str(paths[1]))
    scores = [annotation["score"] for annotation in found.loadAnns(found.getAnnIds())]
    assert scores == pytest.approx(SURE.tolist(), abs=1e-4)
    compared = evaluation.COCOeval(truth, found, "segm")
    compared.params.maxDets = [COUNT]
    compared.evaluate()
    compared.accumulate()
    assert (compared.eval["precision"][..., 0, -1] == 1).all()


def test_shapely() -> None:
    shapely = pytest.importorskip("shapely")
    rows = measure_nuclei(LABELS, Channels({"gray": LABELS}, ("gray",)), SURE)
    shown = json.loads(exports.geojson(exports.outlines(LABELS), rows))
    shapes = [shapely.from_geojson(json.dumps(one["geometry"])) for one in shown["features"]]
    assert len(shapes) == COUNT
    assert all(shape.is_valid for shape in shapes)
    y, x = np.indices(LABELS.shape) + 0.5
    for number, shape in enumerate(shapes, 1):
        inside = shapely.contains_xy(shape, x.ravel(), y.ravel()).reshape(LABELS.shape)
        np.testing.assert_array_equal(inside, number == LABELS)


def test_roifile() -> None:
    content = exports.imagej(exports.outlines(LABELS))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        rois = [roifile.ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    assert len(rois) == COUNT
    for number, roi in enumerate(rois, 1):
        outline = np.asarray(roi.coordinates())
        inside = polygon2mask(LABELS.shape, outline[:, ::-1] - 0.5)
        np.testing.assert_array_equal(inside, number == LABELS)


def test_ome_zarr(tmp_path: Path) -> None:
    reader, ngff = (pytest.importorskip(f"ome_zarr.{name}") for name in ("reader", "io"))
    image_of, labels_of = (
        pytest.importorskip(f"ome_zarr_models.v04.{name}") for name in ("image", "image_label")
    )
    channels = Channels({"DAPI": LABELS * 2, "GFP": LABELS * 3}, ("GFP",))
    for path, content in exports.ome_zarr(LABELS, channels, 0.5).items():
        file = tmp_path / "a.zarr" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for group, attributes in (
        ("", image_of.ImageAttrs),
        ("labels/nuclei", labels_of.ImageLabelAttrs),
    ):
        attributes.model_validate_json((tmp_path / "a.zarr" / group / ".zattrs").read_text())
    image, _, labels = reader.Reader(ngff.parse_url(str(tmp_path / "a.zarr")))()
    np.testing.assert_array_equal(image.data[0], [LABELS * 2, LABELS * 3])
    assert image.metadata["channel_names"] == ["DAPI", "GFP"]
    assert image.metadata["visible"] == [False, True]
    assert image.metadata["coordinateTransformations"][0][0]["scale"] == [1, 0.5, 0.5]
    np.testing.assert_array_equal(labels.data[0], LABELS)


def test_tifffile() -> None:
    content = exports.label_ome_tiff(LABELS, "a", 0.5)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(content)), LABELS)
