"""Pictures of images with the outlines of their nuclei."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import tifffile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nucleus_unet.data import KINDS, SIDES, Split
from nucleus_unet.nuclei import nucleus_errors

Colour = tuple[int, int, int]

# They differ in lightness as well as in hue, so that every kind of colour vision distinguishes them, and
# they stand out from black, gray, purple tissue and white.
PREDICTION = (255, 90, 0)
FOUND = (255, 240, 0)
MISSED = (0, 190, 255)
INVENTED = (255, 40, 40)
SPLIT_UP = (0, 220, 90)
MERGED = (255, 0, 255)
UNSURE = (0, 190, 255)
Legend = dict[Colour, str]
PREDICTED_LEGEND: Legend = {PREDICTION: "predicted"}
UNSURE_LEGEND: Legend = {**PREDICTED_LEGEND, UNSURE: "predicted, but the networks disagree"}
LEAST_UNSURE = 0.2
"""Uncertainty of a nucleus from which an overlay marks it."""
COMPARED_LEGEND: Legend = {
    FOUND: "found (IoU above 0.5)",
    MISSED: "missed",
    SPLIT_UP: "missed, because it was split",
    INVENTED: "matches no annotated nucleus",
    MERGED: "merges several nuclei",
}
DPI = 100
LARGEST_PNG_PX = 2**26
"""Pixels from which an overlay is a pyramid: 8192×8192."""
TILE_PX = 512
MARK_PX, LETTER_PX = 55, 7
"""Width of the square before an entry of a legend with its gaps, and of a letter."""
SLIDES_SHOWN = 10
"""Largest number of slides of each kind and side in the picture of a split."""


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    side_px: int | None = None,
    colour: Colour = PREDICTION,
    others: Sequence[tuple[Colour, NDArray[np.integer]]] = (),
) -> NDArray[np.uint8]:
    """Draw the outlines of nuclei over an image, 1 pixel wide and inside each nucleus.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB.
    labels : (H, W) int
        0 background, every positive value one nucleus.
    side_px : int, optional
        Length of the longer side of the result. Image and labels are resized before the outlines are
        drawn, so that outlines stay thin and complete. Without it the size stays.
    colour : tuple of int
        Colour of the outlines.
    others : sequence of (colour, int array)
        Labels whose outlines have another colour. A later entry wins over an earlier one.

    Returns
    -------
    (H, W, 3) uint8, or resized
        RGB.

    Notes
    -----
    The brightness is scaled so that the 99.8th percentile becomes 200. Dark fluorescence would look
    black next to the outlines, and a white background would hide them.
    """
    labels = np.maximum(labels, 0)
    bright = max(float(np.percentile(image, 99.8)), 1.0)
    canvas: NDArray[Any] = cv2.convertScaleAbs(np.ascontiguousarray(image), alpha=200 / bright)
    if side_px is not None:
        scale = side_px / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        canvas = cv2.resize(
            canvas, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        )
        labels = _resize_labels(labels, size)
    colours = np.tile(np.array(colour, np.uint8), (int(labels.max(initial=0)) + 1, 1))
    for other, numbers in others:
        colours[numbers[numbers < len(colours)]] = other
    outlines = _outlines(labels)
    canvas[outlines] = colours[labels[outlines]]
    return canvas


def comparison(
    image: NDArray[np.uint8],
    y_true: NDArray[np.integer],
    y_pred: NDArray[np.integer],
    *,
    side_px: int,
) -> NDArray[np.uint8]:
    """Draw annotated nuclei next to the predicted ones, with the colours of `COMPARED_LEGEND`.

    Parameters
    ----------
    image : (H, W, 3) uint8
    y_true, y_pred : (H, W) int
        Annotated and predicted labels.
    side_px : int
        Length of the longer side of each half.

    Returns
    -------
    (h, 2 w + 4, 3) uint8
        RGB.
    """
    wrong = nucleus_errors(y_true, y_pred)
    truth = overlay(
        image,
        y_true,
        side_px=side_px,
        colour=FOUND,
        others=[(MISSED, wrong.missed), (SPLIT_UP, np.intersect1d(wrong.split, wrong.missed))],
    )
    predicted = overlay(
        image,
        y_pred,
        side_px=side_px,
        colour=FOUND,
        others=[(INVENTED, wrong.invented), (MERGED, wrong.merged)],
    )
    return np.hstack([truth, np.full((truth.shape[0], 4, 3), 255, np.uint8), predicted])


def predicted_overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    uncertainty: Sequence[float] = (),
    side_px: int | None = None,
) -> NDArray[np.uint8]:
    """Draw predicted nuclei with the colours of `UNSURE_LEGEND`.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB.
    labels : (H, W) int
        As for `overlay`.
    uncertainty : sequence of float
        Of each nucleus, in the order of the labels 1, 2, ...; empty if it is not known.
    side_px : int, optional
        As for `overlay`.

    Returns
    -------
    (H, W, 3) uint8, or resized
    """
    unsure = 1 + np.flatnonzero(np.asarray(uncertainty) >= LEAST_UNSURE)
    return overlay(image, labels, side_px=side_px, others=[(UNSURE, unsure)])


def overlay_file(
    drawn: NDArray[np.uint8], largest_png_px: int = LARGEST_PNG_PX
) -> tuple[str, bytes]:
    """Encode an overlay at the size of the image, so that it lies on the image in other programs.

    Parameters
    ----------
    drawn : (H, W, 3) uint8
        RGB.
    largest_png_px : int
        Number of pixels from which a TIFF is made instead of a PNG.

    Returns
    -------
    tuple of str and bytes
        Suffix and content of the file: ``.png``, or ``.tif`` with tiles and reduced copies, which
        viewers open without reading all of it.
    """
    if drawn.shape[0] * drawn.shape[1] < largest_png_px:
        return ".png", bytes(cv2.imencode(".png", drawn[..., ::-1])[1])
    levels = [drawn]
    while max(levels[-1].shape) > TILE_PX:
        half = cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(half, np.uint8))
    options: Any = {"photometric": "rgb", "tile": (TILE_PX, TILE_PX), "compression": "zlib"}
    with tifffile.TiffWriter(content := io.BytesIO(), bigtiff=True) as writer:
        writer.write(drawn, subifds=len(levels) - 1, metadata=None, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, metadata=None, **options)
    return ".tif", content.getvalue()


def short_name(id_: str) -> str:
    """Shorten an image id so that it fits above a picture.

    Examples
    --------
    >>> short_name("plate_7_well_B03")
    'plate_7_well_B03'
    >>> short_name("0121d6759c5adb290c8e828fc882f37dfaf3663ec885c663859948c154a443ed")
    '0121d675..54a443ed'
    """
    return id_ if len(id_) <= 20 else f"{id_[:8]}..{id_[-8:]}"


def contact_sheet(tiles: Sequence[tuple[str, NDArray[np.uint8]]], legend: Legend) -> bytes:
    """Lay out images in rows of two, above a legend.

    Parameters
    ----------
    tiles : sequence of (str, (H, W, 3) uint8)
        At least one title and RGB image. Each image keeps its size; the widest sets the columns.
    legend : dict
        Colour to meaning; empty for no legend.

    Returns
    -------
    bytes
        PNG.
    """
    lines = [tiles[start : start + 2] for start in range(0, len(tiles), 2)]
    gap, head, foot = 10, 26, 30
    wide = max(240, *(image.shape[1] for _, image in tiles)) + gap
    heights = [max(image.shape[0] for _, image in line) + head for line in lines]
    of_legend = sum(MARK_PX + LETTER_PX * len(meaning) for meaning in legend.values())
    width, height = max(len(lines[0]) * wide, of_legend) + gap, sum(heights) + foot
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    top = height
    for line, tall in zip(lines, heights, strict=True):
        for column, (title, image) in enumerate(line):
            left = gap + column * wide
            figure.figimage(image, left, top - head - image.shape[0])
            place = left / width, (top - head + 8) / height
            figure.text(*place, title, fontsize=10, parse_math=False)
        top -= tall
    figure.legend(
        handles=[
            Patch(facecolor=f"#{bytes(colour).hex()}", edgecolor="0.4", label=meaning)
            for colour, meaning in legend.items()
        ],
        loc="lower left",
        bbox_to_anchor=(gap / width, 0),
        borderaxespad=0,
        ncols=max(len(legend), 1),
        frameon=False,
        fontsize=9,
    )
    return png_bytes(figure)


def strip(images: Iterable[NDArray[np.uint8]], side_px: int) -> NDArray[np.uint8]:
    """Lay out images (H, W, 3) uint8 next to each other, each brightened and fitted into a square.

    Returns
    -------
    uint8 array (side_px, 1 + n (side_px + 2), 3)
    """
    squares = [np.full((side_px, 1, 3), 255, np.uint8)]  # there may be no image
    for image in images:
        small = overlay(image, np.zeros(image.shape[:2], np.int32), side_px=side_px)
        square = np.full((side_px, side_px + 2, 3), 255, np.uint8)
        square[: small.shape[0], : small.shape[1]] = small
        squares.append(square)
    return np.hstack(squares)


def split_sheet(split: Split, load: Callable[[str], NDArray[np.uint8]]) -> bytes:
    """Draw a split: for each imaging kind and side, one image of each of the first slides.

    Parameters
    ----------
    split : Split
    load : callable
        Returns the image (H, W, 3) uint8 of an id.

    Returns
    -------
    bytes
        PNG.
    """
    tiles = []
    present = split.kinds("training") | split.kinds("validation")
    for kind in (kind for kind in KINDS if kind in present):
        for side in SIDES:
            rows = [image for image in split.side(side) if image.kind == kind]
            one_each = {image.slide: image.id for image in rows}
            title = f"{side}: {len(rows)} images of {kind}, {len(one_each)} slides"
            shown = (load(id_) for id_ in list(one_each.values())[:SLIDES_SHOWN])
            tiles.append((title, strip(shown, 96)))
    return contact_sheet(tiles, {})


def data_uri(png: bytes, side_px: int = 1200) -> str:
    """A picture as a data URI, which pages draw without a server: a JPEG of at most `side_px`."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    scale = min(1.0, side_px / max(image.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(bytes(jpeg)).decode()}"


def _outlines(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of nuclei that touch another label or the border of the image, above, below or sideways."""
    padded = np.pad(labels, 1)
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge: NDArray[np.bool_] = np.any([neighbour != labels for neighbour in neighbours], axis=0)
    return edge & (labels != 0)


def _resize_labels(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[Any]:
    return cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST_EXACT)


def png_bytes(figure: Figure) -> bytes:
    """PNG of a figure, without the version of the drawing library, which would change its bytes."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()
