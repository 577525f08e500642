"""Exports of nuclei for other programs: a table, and outlines for QuPath, ImageJ and COCO tools."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from roifile import ImagejRoi
from skimage.measure import find_contours, regionprops, regionprops_table

from nucleus_unet.data import rle
from nucleus_unet.nuclei.instances import largest_piece

Outlines = Literal["geojson", "imagej", "coco"]
COLUMNS = (
    *("image", "nucleus", "x_px", "y_px", "left_px", "top_px", "width_px", "height_px"),
    *("touches_edge", "area_px", "diameter_px", "perimeter_px", "solidity", "eccentricity"),
    *("orientation_deg", "mean_intensity", "mean_red", "mean_green", "mean_blue"),
)
"""Columns of ``nuclei.csv``."""
_SHAPE = {
    "label": "nucleus",
    "centroid-1": "x_px",
    "centroid-0": "y_px",
    "bbox-1": "left_px",
    "bbox-0": "top_px",
    "area": "area_px",
    "equivalent_diameter_area": "diameter_px",
    "perimeter": "perimeter_px",
    "solidity": "solidity",
    "eccentricity": "eccentricity",
}
"""Names of measurements that scikit-image makes: its own, and those of the table."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet takes for a formula."""


def measurements(image: NDArray[Any], labels: NDArray[np.integer]) -> list[dict[str, Any]]:
    """Measure each nucleus of an image.

    Parameters
    ----------
    image : (H, W, C) of any dtype
        The image.
    labels : (H, W) int
        0 background, every other value one nucleus.

    Returns
    -------
    list of dict
        One row for each nucleus, with these keys:

        - ``nucleus``: its label,
        - ``x_px``, ``y_px``: its centre in pixels; (0, 0) is the centre of the image's first pixel,
        - ``left_px``, ``top_px``, ``width_px``, ``height_px``: its bounding box in whole pixels,
        - ``touches_edge``: 1 if it has a pixel at the edge of the image, else 0,
        - ``area_px``: its number of pixels,
        - ``diameter_px``: of the circle with the same area,
        - ``perimeter_px``: length of its outline through the centres of its outer pixels,
        - ``solidity``: its share of its convex hull,
        - ``eccentricity``: of the ellipse with the same moments; 0 for a circle, close to 1 for a line,
        - ``orientation_deg``: of that ellipse's long axis, from 0, which is vertical, to 90 or -90,
          counter-clockwise,
        - ``mean_intensity``: mean of its finite values over pixels and channels; NaN without any,
        - ``mean_red``, ``mean_green``, ``mean_blue``: the same of each channel of an RGB image.
    """
    wanted = sorted({name.partition("-")[0] for name in _SHAPE} | {"orientation"})
    found = regionprops_table(labels, image, properties=wanted, extra_properties=[_finite_mean])
    height, width = labels.shape
    channels = [found[f"_finite_mean-{channel}"] for channel in range(image.shape[2])]
    columns = {ours: found[theirs] for theirs, ours in _SHAPE.items()}
    top, left, bottom, right = (found[f"bbox-{side}"] for side in range(4))
    at_edge = (top == 0) | (left == 0) | (bottom == height) | (right == width)
    columns |= {
        "width_px": right - left,
        "height_px": bottom - top,
        "touches_edge": at_edge.astype(int),
        "orientation_deg": np.degrees(found["orientation"]),
        "mean_intensity": np.ma.masked_invalid(channels).mean(0).filled(np.nan),
    }
    if len(channels) == 3:
        columns |= dict(zip(("mean_red", "mean_green", "mean_blue"), channels, strict=True))
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _finite_mean(pixels: NDArray[np.bool_], values: NDArray[Any]) -> float:
    """Mean of the finite values of a nucleus in its bounding box; NaN if there are none."""
    finite = values[pixels & np.isfinite(values)]
    return float(finite.mean()) if finite.size else np.nan


def nuclei_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows of `measurements`, each with its ``image``, as CSV with seven significant digits.

    An apostrophe comes before the id of an image that a spreadsheet would take for a formula.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def outlines(labels: NDArray[np.integer]) -> dict[int, list[NDArray[np.float64]]]:
    """Trace the outline of each nucleus.

    Parameters
    ----------
    labels : (H, W) int
        0 background, every other value one nucleus.

    Returns
    -------
    dict of int to list of (N, 2) float64
        Closed rings for each label, first the outer one, then one for each hole. A point is (x, y) in
        pixels; (0, 0) is the upper left corner of the image.

    Notes
    -----
    An outline runs half-way between the centres of the nucleus' pixels and the centres of their
    neighbours, so it contains exactly the centres of the nucleus' pixels. If a nucleus has several
    pieces, only the largest is outlined.
    """
    found = {}
    for region in regionprops(labels):
        largest = largest_piece(region.image)
        rings = find_contours(np.pad(largest, 1), 0.5, fully_connected="high")
        top, left = region.bbox[:2]
        # Points of a ring are (row, column) in the padded box, from the centre of its first pixel.
        rings = [ring[:, ::-1] + (left - 0.5, top - 0.5) for ring in rings]
        areas = [cv2.contourArea(ring.astype(np.float32), oriented=True) for ring in rings]
        outer = int(np.argmax(np.abs(areas)))
        holes = [r for r, area in zip(rings, areas, strict=True) if area * areas[outer] < 0]
        found[region.label] = [rings[outer], *holes]
    return found


def geojson(labels: NDArray[np.integer]) -> str:
    """Format outlines as a GeoJSON FeatureCollection, which QuPath imports as detections."""
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
    """Format outer outlines as a zip of ImageJ regions of interest, for its ROI manager."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (outer, *_) in outlines(labels).items():
            name = f"{number:05d}"
            roi = ImagejRoi.frompoints(outer[:-1].astype(np.float32), name=name)
            # Without a date, equal outlines give equal bytes.
            member = zipfile.ZipInfo(f"{name}.roi")
            archive.writestr(member, roi.tobytes(), compress_type=zipfile.ZIP_DEFLATED)
    return content.getvalue()


def coco(images: Iterable[tuple[str, NDArray[np.integer]]]) -> str:
    """Format images and nuclei as COCO JSON: run lengths for masks, (x, y, width, height) for boxes.

    Parameters
    ----------
    images : iterable of (str, (H, W) int)
        File name and labels of each image.
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


def encode_label_image(labels: NDArray[np.integer]) -> tuple[str, bytes]:
    """Encode labels as an image file whose pixel values are the labels.

    Parameters
    ----------
    labels : (H, W) int
        0 background, 1..n one nucleus each.

    Returns
    -------
    tuple of str and bytes
        Suffix and content of the file: ``.png`` and a 16-bit gray PNG, or ``.tif`` and a 32-bit TIFF
        if a label is greater than 65,535.
    """
    assert labels.min(initial=0) >= 0
    suffix, dtype = (".png", np.uint16) if labels.max(initial=0) < 2**16 else (".tif", np.uint32)
    return suffix, bytes(cv2.imencode(suffix, labels.astype(dtype))[1])


def decode_label_image(content: bytes) -> NDArray[Any]:
    """Decode a file of `encode_label_image` to labels, (H, W) uint16 or uint32."""
    labels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    return labels


def _counts(encoded: str, pixels: int) -> list[int]:
    """Convert the RLE of a submission to COCO's: lengths of background and nucleus in turn."""
    starts, lengths = np.array(encoded.split(), np.int64).reshape(-1, 2).T
    edges = np.stack([starts - 1, starts - 1 + lengths], axis=1)
    return np.diff(edges.ravel(), prepend=0, append=pixels).tolist()
