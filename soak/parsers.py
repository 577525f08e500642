"""The parsers of files from other programs, each with valid files that fuzzing begins with.

A parser either reads its bytes or raises a `NucleusError`; everything else is a fault.
"""

import gzip
import json
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi

from nucleus_unet.data import open_raw
from nucleus_unet.data.annotations.reading import coco_images, read_annotations, read_coco_image
from nucleus_unet.data.images import decode_channels, decode_image, decode_labels, decode_mask
from nucleus_unet.data.masks import Merged
from nucleus_unet.data.pixel_size import ome_pixel_size_um
from nucleus_unet.data.rle import decode_rle, encode_rle
from nucleus_unet.data.truth import read_truth
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import exports, read_submission
from nucleus_unet.recipe import Plane, load_recipe

SIZE = (12, 16)


@dataclass(frozen=True)
class Parser:
    read: Callable[[bytes], object]
    files: Callable[[], Sequence[bytes]]
    """Makes valid files."""


def accepts(read: Callable[[bytes], object], content: bytes) -> bool:
    """Whether a parser reads the content. Errors other than a `NucleusError` are raised."""
    try:
        read(content)
    except NucleusError:
        return False
    return True


def labels() -> NDArray[np.int32]:
    """Labels of three nuclei: one touches the edge, and one has a hole."""
    drawn = np.zeros(SIZE, np.int32)
    drawn[0:3, 0:4], drawn[5:10, 2:8], drawn[4:7, 10:15] = 1, 2, 3
    drawn[7, 4] = 0
    return drawn


def mutated(content: bytes, draw: Callable[[int], int]) -> bytes:
    """Change, remove, repeat or insert bytes at up to three places; ``draw(n)`` is below n."""
    changed = bytearray(content)
    for _ in range(1 + draw(3)):
        at, length = draw(len(changed) + 1), 1 + draw(8)
        piece = changed[at : at + length]
        new = (bytes([draw(256)]), b"", piece * (2 + draw(100)), b"9" * length, b"[" * 10 * length)
        changed[at : at + length] = new[draw(len(new))]
    return bytes(changed)


def _as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def read_bytes(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            return read(path)

    return read_bytes


def _read_zip(path: Path) -> None:
    with open_raw(path) as raw:
        for sample in raw.samples:
            for name in filter(
                None, (sample.image, *sample.masks, sample.label_image, sample.ignore)
            ):
                raw.read(name)


def _zips() -> list[bytes]:
    image, mask = _png(np.zeros((*SIZE, 3), np.uint8)), _png(np.uint8(255) * (labels() == 1))
    layouts = (
        {"a/images/a.png": image, "a/masks/1.png": mask},
        {"images/a.png": image, "labels/a.png": _png(labels().astype(np.uint16))},
        {"a.png": image, "b/c.png": image, "readme.txt": b""},
    )
    return [_zip(layout) for layout in layouts]


def _zip(files: Mapping[str, bytes]) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in files.items():
            archive.writestr(zipfile.ZipInfo(name), member)
    return content.getvalue()


def _read_truth(path: Path) -> None:
    deque(read_truth(path, path.parent, lambda done, total: None), maxlen=0)


def _truths() -> list[bytes]:
    head = "ImageId,EncodedPixels,Height,Width,Usage\n"
    rows = [f"a,{runs},12,16,Public\n" for runs in encode_rle(labels())]
    return [(head + "".join(rows)).encode(), (head + "b,,12,16,Ignored\n").encode()]


def _submissions() -> list[bytes]:
    rows = [f"a,{runs}\n" for runs in encode_rle(labels())]
    return ["".join(["ImageId,EncodedPixels\n", *rows, "b,\n"]).encode()]


def _read_rle(content: bytes) -> None:
    found = decode_rle(content.decode("latin-1").split(","), *SIZE)
    np.testing.assert_array_equal(decode_rle(encode_rle(found), *SIZE), found)


def _annotate(content: bytes) -> Merged:
    merged = read_annotations(content, "file", SIZE)
    count = merged.labels.max(initial=0)
    assert set(np.unique(merged.labels)) | {0} == set(range(count + 1)), "labels are not 1..n"
    return merged


def _geojsons() -> list[bytes]:
    traced = exports.outlines(labels())
    rows = [{"nucleus": number, "area_px": 5.0} for number in traced]
    text = exports.geojson(traced, rows).encode()
    return [text, gzip.compress(text, mtime=0), _zip({"a.geojson": text})]


def _rois() -> list[bytes]:
    zipped = exports.imagej(exports.outlines(labels()))
    shapes = (ROI_TYPE.OVAL, ROI_TYPE.RECT, ROI_TYPE.FREEHAND)
    box = np.array([[2, 2], [9, 2], [9, 9], [2, 9]], np.float32)
    single = []
    for shape in shapes:
        roi = ImagejRoi.frompoints(box)
        roi.roitype = shape
        single.append(roi.tobytes())
    return [zipped, *single]


def _read_coco(content: bytes) -> None:
    for image in coco_images(content, "file") or ():
        read_coco_image(image, SIZE)


def _cocos() -> list[bytes]:
    made = exports.coco([("a.png", labels(), np.ones(3, np.float32))])[0]
    document = json.loads(made)
    for annotation, drawn in zip(
        document["annotations"],
        (
            [[1, 1, 5, 1, 5, 5]],
            {"size": [*SIZE], "counts": [3, 4, 185]},
            [[2, 2, 8, 2, 8, 8, 2, 8]],
        ),
        strict=True,
    ):
        annotation["segmentation"] = drawn
    return [made.encode(), json.dumps(document).encode()]


def _segs() -> list[bytes]:
    content = BytesIO()
    drawn = {"masks": labels().astype(np.uint16), "outlines": labels() * 0, "filename": "a.png"}
    np.save(content, np.array(drawn, object), allow_pickle=True)
    return [content.getvalue()]


def _read_image(content: bytes) -> None:
    for decode in (decode_mask, decode_labels):
        accepts(partial(decode, name="file"), content)
    if not accepts(partial(decode_image, name="file"), content):
        decode_channels(content, "file", Plane("1", "max", 1, None))


def _images() -> list[bytes]:
    gray = (labels() * 80).astype(np.uint8)
    files = [
        bytes(cv2.imencode(ending, gray)[1]) for ending in (".png", ".jpg", ".bmp", ".webp", ".tif")
    ]
    palette = BytesIO()
    Image.fromarray(gray).convert("P").save(palette, "PNG")
    stack = np.stack([gray, gray]).astype(np.uint16)
    ome, imagej = BytesIO(), BytesIO()
    channels = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(ome, stack, ome=True, compression="zlib", metadata=channels)
    tifffile.imwrite(imagej, stack, imagej=True, metadata={"axes": "ZYX", "unit": "um"})
    return [*files, palette.getvalue(), ome.getvalue(), imagej.getvalue()]


def _read_ome(content: bytes) -> None:
    ome_pixel_size_um(content.decode("latin-1"))
    stack = BytesIO()
    pages = np.zeros((2, *SIZE), np.uint8)
    tifffile.imwrite(stack, pages, description=content.replace(b"\0", b" "), metadata=None)
    decode_image(stack.getvalue(), "file", Plane("1", "max", 1, None))


def _omes() -> list[bytes]:
    stack = BytesIO()
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(stack, np.zeros((2, *SIZE), np.uint8), ome=True, metadata=metadata)
    stack.seek(0)
    with tifffile.TiffFile(stack) as tiff:
        return [str(tiff.ome_metadata).encode()]


def _png(pixels: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


PARSERS = {
    "zip": Parser(_as_file("a.zip", _read_zip), _zips),
    "solution": Parser(_as_file("a.csv", _read_truth), _truths),
    "submission": Parser(_as_file("a.csv", read_submission), _submissions),
    "RLE": Parser(_read_rle, lambda: [",".join(encode_rle(labels())).encode()]),
    "recipe": Parser(
        _as_file("a.toml", load_recipe), lambda: [load_recipe("best").to_toml().encode()]
    ),
    "GeoJSON": Parser(_annotate, _geojsons),
    "ROI": Parser(_annotate, _rois),
    "COCO": Parser(_read_coco, _cocos),
    "cellpose": Parser(_annotate, _segs),
    "image": Parser(_read_image, _images),
    "OME-XML": Parser(_read_ome, _omes),
}
