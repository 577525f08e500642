"""Exports of nuclei for other programs: label images, and outlines for QuPath, ImageJ and COCO tools."""

import io
import json
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from roifile import ImagejRoi
from skimage.measure import find_contours, regionprops

from nucleus_unet.data import Channels, rle
from nucleus_unet.extras import import_extra
from nucleus_unet.nuclei.instances import largest_piece

Outlines = Literal["geojson", "imagej", "coco"]
LabelFormat = Literal["png", "ome-tiff", "ome-zarr"]
Traced = Mapping[int, Sequence[NDArray[np.float64]]]
"""The rings of each nucleus, as `outlines` gives them."""
Row = Mapping[str, Any]
"""A row of a table or of a JSON list, by column."""
_CHUNK = (1024, 1024)
_COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}


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


def geojson(traced: Traced, rows: Iterable[Row]) -> str:
    """Format outlines as a GeoJSON FeatureCollection, which QuPath imports as detections.

    Parameters
    ----------
    traced : Traced
    rows : iterable of Row
        The measurements of each nucleus of `traced`, in the same order; QuPath shows them.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]},
            "properties": {
                "objectType": "detection",
                "name": str(number),
                "classification": {"name": "Nucleus", "color": [200, 0, 0]},
                "measurements": {
                    key: value
                    for key, value in row.items()
                    if key != "nucleus" and value is not None and np.isfinite(value)
                },
            },
        }
        for (number, rings), row in zip(traced.items(), rows, strict=True)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def imagej(traced: Traced) -> bytes:
    """Format outer outlines as a zip of ImageJ regions of interest, for its ROI manager."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (outer, *_) in traced.items():
            name = f"{number:05d}"
            roi = ImagejRoi.frompoints(outer[:-1].astype(np.float32), name=name)
            # Without a date, equal outlines give equal bytes.
            member = zipfile.ZipInfo(f"{name}.roi")
            archive.writestr(member, roi.tobytes(), compress_type=zipfile.ZIP_DEFLATED)
    return content.getvalue()


def coco(
    images: Iterable[tuple[str, NDArray[np.integer], NDArray[np.float32]]],
) -> tuple[str, str]:
    """Format images and nuclei for COCO's tools, with compressed run lengths.

    Parameters
    ----------
    images : iterable of (str, (H, W) int, (n,) float32)
        File name, labels and confidences of each image.

    Returns
    -------
    tuple of str and str
        JSON of a data set, for ``COCO()``, and of a list of results with scores, for
        ``COCO.loadRes``. Boxes are (x, y, width, height) in pixels.
    """
    described: list[Row] = []
    annotations: list[Row] = []
    results: list[Row] = []
    for image_id, (name, labels, confidence) in enumerate(images, 1):
        height, width = labels.shape
        described.append({"id": image_id, "file_name": name, "height": height, "width": width})
        encoded = rle.encode_rle(labels)
        for region, runs, score in zip(regionprops(labels), encoded, confidence, strict=True):
            top, left, bottom, right = region.bbox
            counts = rle.coco_counts(runs, height * width)
            shared = {
                "image_id": image_id,
                "category_id": 1,
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {"size": [height, width], "counts": counts},
            }
            number = {"id": len(annotations) + 1, "iscrowd": 0, "area": int(region.area)}
            annotations.append(number | shared)
            results.append(shared | {"score": round(float(score), 4)})
    data_set = {
        "info": {"description": "nuclei found by nucleus-unet"},  # loadRes fails without it
        "images": described,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    return json.dumps(data_set), json.dumps(results)


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


def label_ome_tiff(labels: NDArray[np.integer], name: str, pixel_size_um: float | None) -> bytes:
    """Encode labels as an OME-TIFF, 16 or 32 bit, with the pixel size if it is known.

    Equal labels give equal bytes.
    """
    dtype = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    size = {f"PhysicalSize{axis}": pixel_size_um for axis in "XY"} if pixel_size_um else {}
    units = {f"{key}Unit": "µm" for key in size}
    identity = uuid.uuid5(uuid.NAMESPACE_OID, name)
    content = io.BytesIO()
    tifffile.imwrite(
        content,
        labels.astype(dtype),
        ome=True,
        compression="zlib",
        photometric="minisblack",
        metadata={"axes": "YX", "Name": name, "UUID": f"urn:uuid:{identity}", **size, **units},
    )
    return content.getvalue()


def require_format(label_format: LabelFormat) -> None:
    """Raise a `NucleusError` if what writes this format is not installed."""
    if label_format == "ome-zarr":
        import_extra("zarr", "microscopy", "--labels ome-zarr")


def ome_zarr(
    labels: NDArray[np.integer], channels: Channels, pixel_size_um: float | None
) -> dict[str, bytes]:
    """Encode an image and its labels as an OME-Zarr (NGFF 0.4), the labels as ``labels/nuclei``.

    Parameters
    ----------
    labels : (H, W) int
        0 background, 1..n one nucleus each.
    channels : Channels
        The values of the image, and the names of its channels.
    pixel_size_um : float or None
        Side of a pixel, if it is known.

    Returns
    -------
    dict of str to bytes
        The files of the folder by path. Equal values give equal bytes.
    """
    import zarr
    from numcodecs import Zlib

    files: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(files)

    def write(group: str, pixels: NDArray[Any], axes: str, about: Row) -> None:
        steps = [{"type": "scale", "scale": [pixel_size_um or 1 if n in "yx" else 1 for n in axes]}]
        unit = {"unit": "micrometer"} if pixel_size_um else {}
        channel = {"name": "c", "type": "channel"}
        image = {
            "version": "0.4",
            "axes": [channel if n == "c" else {"name": n, "type": "space", **unit} for n in axes],
            "datasets": [{"path": "0", "coordinateTransformations": steps}],
        }
        found = {"multiscales": [image], **about}
        zarr.create_group(store, path=group, zarr_format=2, attributes=found).create_array(
            "0",
            data=pixels,
            chunks=(1, *_CHUNK)[-pixels.ndim :],
            compressors=Zlib(),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )

    values = np.stack([*channels.planes.values()])
    shown = [
        {
            "label": name,
            "color": _COLOURS.get(name, "FFFFFF"),
            "active": name in channels.segmented,
            "window": {"min": low, "start": low, "max": high, "end": high},
        }
        for name, plane in channels.planes.items()
        for low, high in [(float(plane.min()), float(plane.max()))]
    ]
    dtype = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    write("", values, "cyx", {"omero": {"version": "0.4", "channels": shown}})
    zarr.create_group(store, path="labels", zarr_format=2, attributes={"labels": ["nuclei"]})
    about = {"image-label": {"version": "0.4", "source": {"image": "../../"}}}
    write("labels/nuclei", labels.astype(dtype), "yx", about)
    return {path: buffer.to_bytes() for path, buffer in files.items()}
