"""The page about files: each row is a file or a data set that this module makes and checks."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from nucleus_unet.data import check_dataset
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import ONLY_PLANE, Plane

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
ROWS = [
    row
    for row in re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    if row[1] != "result"
]
Files = dict[str, bytes]
Make = Callable[[], Files]
"""Makes the content of each file of a row, by its name in the data set."""
SIZE = (40, 48)
LABELS = np.zeros(SIZE, np.uint16)
for number, (top, left) in enumerate([(2, 3), (2, 20), (20, 3), (20, 22), (30, 40)], 1):
    LABELS[top : top + 8, left : left + 7] = number
MASK = (LABELS > 0).astype(np.uint8)
GRAY = MASK * np.uint8(150) + np.uint8(20)
RGB = np.stack([GRAY, GRAY // 2, 255 - GRAY], axis=-1)
STACK = np.stack([GRAY * np.uint16(index) for index in range(6)])
"""Six planes."""


def animation() -> bytes:
    first, second = (Image.fromarray(pixels) for pixels in (GRAY, 255 - GRAY))
    first.save(file := io.BytesIO(), "PNG", save_all=True, append_images=[second])
    return file.getvalue()


def png(pixels: NDArray[Any], suffix: str = ".png") -> bytes:
    shown = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    return bytes(cv2.imencode(suffix, shown)[1])


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), pixels, **options)
    return file.getvalue()


def palette(indices: NDArray[np.uint8], colours: list[int]) -> bytes:
    image = Image.fromarray(indices, "P")
    image.putpalette(colours)
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def ome(pixels: NDArray[Any], axes: str, **metadata: Any) -> bytes:
    return tiff(pixels, ome=True, photometric="minisblack", metadata={"axes": axes, **metadata})


def hyperstack() -> bytes:
    return tiff(STACK.reshape(3, 2, *SIZE), imagej=True, metadata={"axes": "ZCYX"})


def two_channels() -> bytes:
    return ome(STACK[:2], "CYX", Channel={"Name": ["DAPI", "GFP"]})


def first_of_two_files() -> bytes:
    with tifffile.TiffFile(io.BytesIO(two_channels())) as file:
        xml = file.ome_metadata or ""
    parts = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{name}.tif">urn:uuid:{name}'
        "</UUID></TiffData>"
        for c, name in enumerate("ab")
    )
    start, end = xml.index("<TiffData"), xml.index("</Pixels>")
    described = re.sub(r'UUID="[^"]*"', 'UUID="urn:uuid:a"', f"{xml[:start]}{parts}{xml[end:]}")
    return tiff(GRAY, description=described, metadata=None)


def two_series() -> bytes:
    with tifffile.TiffWriter(file := io.BytesIO()) as writer:
        writer.write(GRAY)
        writer.write(GRAY[::4, ::4])
    return file.getvalue()


def pyramid() -> bytes:
    with tifffile.TiffWriter(file := io.BytesIO()) as writer:
        writer.write(RGB, photometric="rgb", tile=(16, 16), subifds=1)
        writer.write(RGB[::2, ::2].copy(), photometric="rgb", tile=(16, 16), subfiletype=1)
    return file.getvalue()


def rows_of_images() -> dict[str, tuple[str, bytes]]:
    """The name and content of an image by row of the page."""
    with_nan = GRAY.astype(np.float32)
    with_nan[:5] = np.nan
    alpha = np.dstack([RGB, np.full(SIZE, 128, np.uint8)])
    return {
        "PNG, 8-bit gray": ("a.png", png(GRAY)),
        "PNG, 16-bit gray": ("a.png", png(GRAY * np.uint16(200))),
        "PNG, RGB": ("a.png", png(RGB)),
        "PNG, RGBA": ("a.png", png(alpha)),
        "PNG with a palette": ("a.png", palette(MASK, [0, 0, 0, 200, 40, 90])),
        "JPEG, colour": ("a.jpg", png(RGB, ".jpg")),
        "BMP": ("a.bmp", png(RGB, ".bmp")),
        "WebP": ("a.webp", png(RGB, ".webp")),
        "PNG, animated": ("a.png", animation()),
        "TIFF, nothing but NaN": ("a.tif", tiff(np.full(SIZE, np.nan, np.float32))),
        "TIFF, 8-bit gray, LZW": ("a.tif", tiff(GRAY, compression="lzw")),
        "TIFF, 16-bit gray": ("a.tif", tiff(GRAY * np.uint16(200))),
        "TIFF, 32-bit float with NaN": ("a.tif", tiff(with_nan)),
        "TIFF, bilevel": ("a.tif", tiff(MASK.astype(bool))),
        "TIFF, RGB in separate planes": (
            "a.tif",
            tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"),
        ),
        "TIFF, RGB, JPEG inside": ("a.tif", tiff(RGB, photometric="rgb", compression="jpeg")),
        "BigTIFF": ("a.tif", tiff(RGB, photometric="rgb", bigtiff=True)),
        "TIFF, pyramid of a slide scanner": ("a.tif", pyramid()),
        "TIFF with a thumbnail on its second page": ("a.tif", two_series()),
        "the TIFF with a thumbnail, with `--scene 1`": ("a.tif", two_series()),
        "TIFF, CMYK": ("a.tif", tiff(alpha, photometric="separated")),
        "TIFF, complex numbers": ("a.tif", tiff(GRAY.astype(np.complex64))),
        "TIFF, six pages": ("a.tif", tiff(STACK, photometric="minisblack")),
        "ImageJ hyperstack, 2 channels, 3 z planes": ("a.tif", hyperstack()),
        "OME-TIFF, one plane": ("a.ome.tif", ome(GRAY, "YX")),
        "OME-TIFF, channels DAPI and GFP": ("a.ome.tif", two_channels()),
        "OME-TIFF, 6 times": ("a.ome.tif", ome(STACK, "TYX")),
        "the hyperstack with `--channel 2 --z max`": ("a.tif", hyperstack()),
        "the OME-TIFF with `--channel gfp`": ("a.ome.tif", two_channels()),
        "the 6 times with `--time 3`": ("a.ome.tif", ome(STACK, "TYX")),
        "the OME-TIFF with `--channel Cy5`": ("a.ome.tif", two_channels()),
        "OME-TIFF, its second channel in another file": ("a.ome.tif", first_of_two_files()),
        "RGB, with `--channel blue`": ("a.png", png(RGB)),
        "an empty file": ("a.png", b""),
        "a text file called .png": ("a.png", b"not an image"),
        "a truncated PNG": ("a.png", png(RGB)[:-40]),
        "a truncated JPEG": ("a.jpg", png(RGB, ".jpg")[:-40]),
        "a truncated TIFF": ("a.tif", tiff(GRAY)[:-40]),
    }


def rows_of_labels() -> dict[str, tuple[str, bytes]]:
    """The name and content of a label image of five nuclei by row of the page."""
    colours = [0, 0, 0, *np.random.default_rng(0).integers(0, 256, 3 * 255).tolist()]
    smooth_by_jpeg = (LABELS * 40).astype(np.uint8)
    many = np.zeros(SIZE, np.uint16)
    many[:36:2, :30:2] = np.arange(1, 271).reshape(18, 15)
    many = many.astype(np.uint8)
    smooth = cv2.GaussianBlur(LABELS.astype(np.float32), (0, 0), 1.5).round().astype(np.uint8)
    return {
        "16-bit PNG": ("a.png", png(LABELS)),
        "32-bit float TIFF of ImageJ": ("a.tif", tiff(LABELS.astype(np.float32))),
        "PNG with a palette (QuPath, labelme)": (
            "a.png",
            palette(LABELS.astype(np.uint8), colours),
        ),
        "numbers with gaps": ("a.png", png(LABELS * np.uint16(9000))),
        "a mask, 0 and 255": ("a.png", png(MASK * np.uint8(255))),
        "a mask, 1 bit": ("a.tif", tiff(MASK.astype(bool))),
        "classes of ilastik, 1 and 2": ("a.png", png(MASK + np.uint8(1))),
        "resized with interpolation": ("a.png", png(smooth)),
        "JPEG": ("a.jpg", png(LABELS.astype(np.uint8), ".jpg")),
        "TIFF, JPEG inside": ("a.tif", tiff(smooth_by_jpeg, compression="jpeg")),
        "270 nuclei in 8 bits": ("a.png", png(many)),
        "coloured nuclei, RGB": (
            "a.png",
            png(np.dstack([LABELS, LABELS * 7, LABELS * 9]).astype(np.uint8)),
        ),
        "of another size than its image": ("a.png", png(LABELS[:20])),
        "negative numbers": ("a.tif", tiff(-LABELS.astype(np.int16))),
        "fractions": ("a.tif", tiff(LABELS * np.float32(0.5))),
        "an image without nuclei": ("a.png", png(LABELS * 0)),
    }


def rows_of_layouts() -> dict[str, Files]:
    """The files of a data set by row of the page."""
    image, labels = png(GRAY), png(LABELS)
    of_each = (np.where(number == LABELS, np.uint8(255), np.uint8(0)) for number in range(1, 6))
    masks = {f"{number}.png": png(mask) for number, mask in enumerate(of_each, 1)}
    pair = {f"images/{id_}.png": image for id_ in "ab"} | {
        f"labels/{id_}.png": labels for id_ in "ab"
    }
    return {
        "one folder per image, masks (Kaggle)": {
            "a/images/a.png": image,
            **{f"a/masks/{name}": content for name, content in masks.items()},
        },
        "one folder per image, label image": {"a/images/a.png": image, "a/labels.png": labels},
        "the same, annotated in part": {
            "a/images/a.png": image,
            "a/labels.png": labels,
            "a/ignore.png": png(np.pad(np.full((20, 20), 255, np.uint8), ((0, 20), (0, 28)))),
        },
        "below a top folder": {"set/a/images/a.png": image, "set/a/labels.png": labels},
        "StarDist": pair,
        "BiaPy": {name.replace("labels/", "masks/"): content for name, content in pair.items()},
        "ZeroCostDL4Mic": {"Training_source/a.png": image, "Training_target/a.png": labels},
        "nnU-Net": {"imagesTr/a_0000.png": image, "labelsTr/a.png": labels, "dataset.json": b"{}"},
        "nnU-Net, two channels": {
            "imagesTr/a_0000.png": image,
            "imagesTr/a_0001.png": image,
            "labelsTr/a.png": labels,
        },
        "cellpose": {"a.png": image, "a_masks.png": labels, "a_flows.tif": tiff(GRAY)},
        "cellpose, files that it writes": {"a.png": image, "a_cp_masks.png": labels},
        "images in nested folders": {"day1/a.png": image, "day2/a.png": image},
        "images, a readme and the clutter of macOS": {
            "a.png": image,
            "readme.txt": b"hello",
            ".DS_Store": b"",
            "__MACOSX/._a.png": b"",
        },
        "a label image in a folder of masks": {
            "a/images/a.png": image,
            "a/masks/a.png": labels,
        },
        "one mask of all nuclei": {
            "a/images/a.png": image,
            "a/masks/1.png": png(MASK * np.uint8(255)),
        },
        "masks with a white background": {
            "a/images/a.png": image,
            "a/masks/1.png": png(255 - np.uint8(255) * (LABELS == 1)),
            "a/masks/2.png": png(255 - np.uint8(255) * (LABELS == 2)),
        },
        "a mask of another size": {
            "a/images/a.png": image,
            "a/masks/1.png": masks["1.png"],
            "a/masks/2.png": png(np.uint8(255) * MASK[:20]),
        },
        "folders with other names": {"raw/a.png": image, "gt/a.png": labels},
        "label images with other endings": {"a.png": image, "a_label.png": labels},
        "both masks and a label image": {
            "a/images/a.png": image,
            "a/masks/1.png": masks["1.png"],
            "a/labels.png": labels,
        },
        "both masks and labels folders": pair | {"masks/a.png": labels},
        "two data sets in one folder": {
            "one/a/images/a.png": image,
            "two/b/images/b.png": image,
        },
        "a label image without its image": pair | {"labels/c.png": labels},
        "an image that is not annotated": pair | {"images/c.png": image},
        "a preview between the data": {"a/images/a.png": image, "preview.png": image},
        "no image at all": {"readme.txt": b"hello"},
    }


PLANES = {
    "the OME-TIFF with `--channel Cy5`": Plane(channel="Cy5"),
    "OME-TIFF, its second channel in another file": Plane(channel="GFP"),
    "RGB, with `--channel blue`": Plane(channel="blue"),
    "the TIFF with a thumbnail, with `--scene 1`": Plane(scene="1"),
    "the hyperstack with `--channel 2 --z max`": Plane(channel="2", z="max"),
    "the OME-TIFF with `--channel gfp`": Plane(channel="gfp"),
    "the 6 times with `--time 3`": Plane(time=3),
}
"""Which plane is chosen, by row of the page."""


def outcome(folder: Path, plane: Plane = ONLY_PLANE) -> str:
    """What ``nucleus check`` finds, in a few words."""
    try:
        report = check_dataset(folder, plane=plane)
    except NucleusError as error:
        return f"refused: {str(error).removeprefix(f'{folder}: ')}"
    if report.faults:
        problem = report.faults[0]
        return f"{problem.kind}: {problem.detail}"
    if not report.annotated:
        found = f"read as {', '.join(report.modes)}"
        return found + (f"; ignored: {', '.join(report.unread)}" if report.unread else "")
    return f"{report.areas_px.size} nuclei" + f" in {report.images} images" * (report.images > 1)


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


MADE = (
    {name: {file: content} for name, (file, content) in rows_of_images().items()}
    | {
        name: {"images/a.png": png(GRAY), f"labels/{file}": content}
        for name, (file, content) in rows_of_labels().items()
    }
    | rows_of_layouts()
)


def test_the_page_has_a_row_for_each_of_at_least_40_files() -> None:
    assert [name for name, _ in ROWS] == [*MADE]
    assert len(ROWS) >= 40


@pytest.mark.parametrize("name", MADE)
def test_a_row_of_the_page_says_what_happens(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = outcome(write(tmp_path / "data", MADE[name]), PLANES.get(name, ONLY_PLANE))
    assert not caplog.messages, "a library says more than the one line of the error"
    assert dict(ROWS)[name] == found.replace("|", "\\|")
