"""Nuclei for other programs: a table, and outlines as QuPath, ImageJ and COCO's readers take them."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from roifile import ImagejRoi
from skimage.measure import find_contours, regionprops, regionprops_table

from nucleus_unet.data import rle
from nucleus_unet.nuclei.instances import largest_piece

Outlines = Literal["geojson", "imagej", "coco"]
_MEASURED = {
    "label": "nucleus",
    "area": "area_px",
    "centroid-1": "x_px",
    "centroid-0": "y_px",
    "_finite_mean": "mean_intensity",
    "eccentricity": "eccentricity",
}
"""What scikit-image calls a measurement, and we."""


def measurements(image: NDArray[Any], labels: NDArray[np.integer]) -> list[dict[str, Any]]:
    """A row for each nucleus.

    Parameters
    ----------
    image : (H, W, C)
        Of any type.
    labels : (H, W) int
        0 background, n one nucleus.

    Returns
    -------
    list of dict
        ``nucleus`` its label, ``area_px``, ``x_px`` and ``y_px`` the centre, from the middle of the
        image's first pixel, ``mean_intensity`` over pixels and channels, of which those count that
        are finite, ``eccentricity`` of the ellipse with the same moments, 0 a circle, towards 1 a
        line.
    """
    wanted = {name.partition("-")[0] for name in _MEASURED} - {_finite_mean.__name__}
    gray = np.ma.masked_invalid(image, copy=False).mean(2).filled(np.nan)
    found = regionprops_table(
        labels, gray, properties=sorted(wanted), extra_properties=[_finite_mean]
    )
    columns = [found[name].tolist() for name in _MEASURED]
    rows = zip(*columns, strict=True)
    return [dict(zip(_MEASURED.values(), row, strict=True)) for row in rows]


def _finite_mean(pixels: NDArray[np.bool_], values: NDArray[np.floating]) -> float:
    """Of one nucleus in its box; NaN where it has no finite value."""
    finite = values[pixels & np.isfinite(values)]
    return float(finite.mean()) if finite.size else np.nan


def nuclei_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of `measurements`, each with its ``image``, as CSV; numbers to seven digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", *_MEASURED.values()], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()}
        )
    return text.getvalue()


def outlines(labels: NDArray[np.integer]) -> dict[int, list[NDArray[np.float64]]]:
    """The outline of each nucleus, half-way between its pixels' middles and their neighbours'.

    Exactly the middles of its pixels are inside.

    Returns
    -------
    dict of int to list of (N, 2) float64
        Label to closed rings of x and y in pixels, from the upper left corner of the image: first
        the outer one, then those of holes. Of a nucleus in several pieces the largest.
    """
    found = {}
    for region in regionprops(labels):
        largest = largest_piece(region.image)
        rings = find_contours(np.pad(largest, 1), 0.5, fully_connected="high")
        top, left = region.bbox[:2]
        # A ring's points are (row, column), with the padding, from the middle of the first pixel.
        rings = [ring[:, ::-1] + (left - 0.5, top - 0.5) for ring in rings]
        areas = [_signed_area(ring) for ring in rings]
        outer = int(np.argmax(np.abs(areas)))
        holes = [r for r, area in zip(rings, areas, strict=True) if area * areas[outer] < 0]
        found[region.label] = [rings[outer], *holes]
    return found


def geojson(labels: NDArray[np.integer]) -> str:
    """Outlines as a GeoJSON FeatureCollection, of which QuPath makes detections."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]},
            "properties": {
                "objectType": "detection",
                "name": str(number),
                "classification": {"name": "Nucleus"},
            },
        }
        for number, rings in outlines(labels).items()
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def imagej(labels: NDArray[np.integer]) -> bytes:
    """Outer outlines as a zip of ImageJ's regions of interest, for its ROI manager."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (outer, *_) in outlines(labels).items():
            name = f"{number:05d}"
            roi = ImagejRoi.frompoints(outer[:-1].astype(np.float32), name=name)
            # A date of its own would make other bytes each time.
            member = zipfile.ZipInfo(f"{name}.roi")
            archive.writestr(member, roi.tobytes(), compress_type=zipfile.ZIP_DEFLATED)
    return content.getvalue()


def coco(images: Iterable[tuple[str, NDArray[np.integer]]]) -> str:
    """Images and nuclei as COCO JSON: masks as run lengths, boxes as x, y, width and height.

    Parameters
    ----------
    images : iterable of (str, (H, W) int)
        File name and labels.
    """
    described: list[Mapping[str, Any]] = []
    annotations: list[Mapping[str, Any]] = []
    for image_id, (name, labels) in enumerate(images, 1):
        height, width = labels.shape
        described.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for region, encoded in zip(regionprops(labels), rle.encode_rle(labels), strict=True):
            top, left, bottom, right = region.bbox
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": int(region.area),
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": {
                        "size": [height, width],
                        "counts": _counts(encoded, height * width),
                    },
                }
            )
    categories = [{"id": 1, "name": "nucleus"}]
    return json.dumps({"images": described, "annotations": annotations, "categories": categories})


def _counts(encoded: str, pixels: int) -> list[int]:
    """COCO's run lengths: background and nucleus in turn, down the columns; from a submission's."""
    numbers: Sequence[int] = [int(word) for word in encoded.split()]
    counts, end = [], 1
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        counts += [start - end, length]
        end = start + length
    return [*counts, pixels + 1 - end]


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = ring[:-1].T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
