"""Pictures for people: training curves, outlines over images."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nucleus_unet.nuclei.scoring import nucleus_errors

# Told apart in lightness as well as hue, so also with any kind of colour blindness; vivid against
# black, gray, purple tissue and white.
PREDICTION = (255, 90, 0)
FOUND = (255, 240, 0)
MISSED = (0, 190, 255)
INVENTED = (255, 40, 40)
SPLIT_UP = (0, 220, 90)
MERGED = (255, 0, 255)
_LEGEND = {
    PREDICTION: "predicted",
    FOUND: "found (IoU above 0.5)",
    MISSED: "missed",
    SPLIT_UP: "missed, as it was split",
    INVENTED: "matches none",
    MERGED: "several in one",
}
Colour = tuple[int, int, int]

_TRAINING, _VALIDATION = "#0072B2", "#D55E00"  # blue and vermilion of Okabe and Ito's palette
_DPI = 100


def curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draw loss, dice and mean IoU by epoch, training beside validation, over the learning rate.

    Parameters
    ----------
    history : sequence of mappings, one an epoch
        Keys epoch, loss, dice, mean_iou, val_loss, val_dice, val_mean_iou, learning_rate; a
        curve is left out where its key is missing, and others are ignored.

    Returns
    -------
    bytes
        PNG, 1200 by 500 pixels. The best epoch by validation mean IoU is marked.
    """
    figure = Figure(figsize=(12, 5), dpi=_DPI, layout="constrained")
    axes = figure.subplot_mosaic(
        [["loss", "dice", "mean_iou"], ["learning_rate"] * 3], height_ratios=[4, 1]
    )
    for key, title in {"loss": "loss", "dice": "dice", "mean_iou": "mean IoU"}.items():
        for name, label, colour in (
            (key, "training", _TRAINING),
            (f"val_{key}", "validation", _VALIDATION),
        ):
            _curve(axes[key], history, name, label=label, color=colour)
        axes[key].set_title(title)
        axes[key].set_xlabel("epoch")
    _curve(axes["learning_rate"], history, "learning_rate", color="0.35", drawstyle="steps-mid")
    axes["learning_rate"].set_ylim(bottom=0)
    axes["learning_rate"].set_ylabel("learning\nrate")
    scored = [epoch for epoch in history if np.isfinite(epoch.get("val_mean_iou", np.nan))]
    if scored:
        best = max(scored, key=lambda epoch: epoch["val_mean_iou"])
        axes["mean_iou"].plot(
            best["epoch"],
            best["val_mean_iou"],
            "o",
            markersize=11,
            fillstyle="none",
            color=_VALIDATION,
            label=f"best: {best['val_mean_iou']:.3f}, epoch {best['epoch']:g}",
        )
    for key, panel in axes.items():
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if history:
            panel.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
        if key != "learning_rate" and panel.lines:
            panel.legend(frameon=False)
    return _png(figure)


def parallel_coordinates(
    keys: Sequence[str], trials: Sequence[tuple[Sequence[str], float]]
) -> bytes:
    """Draw each trial as a line over an axis for each key, with its values, and one for the score.

    Parameters
    ----------
    trials : sequence of (sequence of str, float)
        The value of each key, and the score.

    Returns
    -------
    bytes
        PNG. Better trials are brighter.
    """
    figure = Figure(figsize=(2.5 * (len(keys) + 1), 5), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    names = [*keys, "score"]
    columns: list[list[float]] = []
    for place in range(len(keys)):
        texts = [trial[place] for trial, _ in trials]
        values = list(dict.fromkeys(texts))
        columns.append([(values.index(text) + 0.5) / len(values) for text in texts])
        for index, value in enumerate(values):
            height = (index + 0.5) / len(values)
            axes.text(place, height + 0.02, value, ha="center", va="bottom")
    scores = np.array([score for _, score in trials])
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    share = (scores - low) / ((high - low) or 1)
    columns.append(share.tolist())
    for index, line in enumerate(zip(*columns, strict=True)):
        axes.plot(line, color=colormaps["viridis"](share[index]), marker="o", markersize=4)
    for value, height in ((low, 0), (high, 1)) if trials else ():
        axes.text(len(names) - 1, height + 0.02, f"{value:.3f}", ha="center", va="bottom")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.1)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    return _png(figure)


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    side_px: int | None = None,
    colour: Colour = PREDICTION,
    others: Sequence[tuple[Colour, NDArray[np.integer]]] = (),
) -> NDArray[np.uint8]:
    """Draw the outlines of nuclei over an image, 1 pixel wide and inside each nucleus.

    The image is scaled so that its 99.8th percentile becomes 200: dark fluorescence would be black
    beside the outlines, and a white ground would hide the bright ones.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
        RGB.
    labels : int array (H, W)
        0 background.
    side_px : int, optional
        Length of the result's longest side. Image and labels are resized before the outlines are
        drawn, so these stay thin and whole. Without it the size stays.
    colour : tuple of int
        Of the outlines.
    others : sequence of (colour, int array)
        Labels whose outlines have another colour; a later one counts before an earlier.

    Returns
    -------
    uint8 array (H, W, 3), or resized
        RGB.
    """
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
    """Annotated nuclei beside the predicted ones, what is wrong on either side in its own colour.

    Returns
    -------
    uint8 array (h, 2 w + 4, 3)
        RGB; the longer side of each half has `side_px`.
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


def overlay_png(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    title: str = "",
    side_px: int = 960,
) -> bytes:
    """Draw `overlay` with a title and a legend, as a PNG that is large enough to read."""
    return contact_sheet([(title, overlay(image, labels, side_px=side_px))])


def short_name(id_: str) -> str:
    """An image's id as it fits above a picture: a long one without its middle.

    Examples
    --------
    >>> short_name("plate_7_well_B03")
    'plate_7_well_B03'
    >>> short_name("0121d6759c5adb290c8e828fc882f37dfaf3663ec885c663859948c154a443ed")
    '0121d675..54a443ed'
    """
    return id_ if len(id_) <= 20 else f"{id_[:8]}..{id_[-8:]}"


def contact_sheet(tiles: Sequence[tuple[str, NDArray[np.uint8]]]) -> bytes:
    """Lay (title, image) tiles, one at least, out in rows of two, over a legend of the outlines.

    Each image (H, W, 3) uint8 RGB keeps its own size, to the pixel; the widest sets the columns.
    The legend names the outline colours that occur in the tiles.

    Returns
    -------
    bytes
        PNG.
    """
    lines = [tiles[start : start + 2] for start in range(0, len(tiles), 2)]
    gap, head, foot = 10, 26, 30
    wide = max(240, *(image.shape[1] for _, image in tiles)) + gap
    heights = [max(image.shape[0] for _, image in line) + head for line in lines]
    width, height = len(lines[0]) * wide + gap, sum(heights) + foot
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    top = height
    for line, tall in zip(lines, heights, strict=True):
        for column, (title, image) in enumerate(line):
            left = gap + column * wide
            figure.figimage(image, left, top - head - image.shape[0])
            place = left / width, (top - head + 8) / height
            figure.text(*place, title, fontsize=10, parse_math=False)
        top -= tall
    drawn = [
        colour
        for colour in _LEGEND
        if any((image == np.array(colour)).all(axis=-1).any() for _, image in tiles)
    ]
    figure.legend(
        handles=[
            Patch(facecolor=f"#{bytes(colour).hex()}", edgecolor="0.4", label=_LEGEND[colour])
            for colour in drawn
        ],
        loc="lower left",
        bbox_to_anchor=(gap / width, 0),
        borderaxespad=0,
        ncols=len(_LEGEND),
        frameon=False,
        fontsize=9,
    )
    return _png(figure)


def strip(images: Iterable[NDArray[np.uint8]], side_px: int) -> NDArray[np.uint8]:
    """Lay images (H, W, 3) uint8 side by side, each brightened and fitted into a square.

    Returns
    -------
    uint8 array (side_px, 1 + n (side_px + 2), 3)
    """
    squares = [np.full((side_px, 1, 3), 255, np.uint8)]  # also of no image
    for image in images:
        small = overlay(image, np.zeros(image.shape[:2], np.int32), side_px=side_px)
        square = np.full((side_px, side_px + 2, 3), 255, np.uint8)
        square[: small.shape[0], : small.shape[1]] = small
        squares.append(square)
    return np.hstack(squares)


def data_uri(png: bytes, side_px: int = 1200) -> str:
    """A picture within an address, which a page draws by itself: a JPEG at most so wide and high."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    scale = min(1.0, side_px / max(image.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(bytes(jpeg)).decode()}"


def _curve(axes: Any, history: Sequence[Mapping[str, float]], key: str, **style: Any) -> None:
    """Draw one key of the history over its epochs."""
    points = [(epoch["epoch"], epoch[key]) for epoch in history if key in epoch]
    if points:
        # One epoch makes no line, and dots on hundreds of epochs would hide it.
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 40 else "", ms=3, **style)


def _outlines(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of nuclei with another label, or the image's end, above, below, left or right."""
    padded = np.pad(labels, 1)
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge: NDArray[np.bool_] = np.any([neighbour != labels for neighbour in neighbours], axis=0)
    return edge & (labels != 0)


def _resize_labels(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[Any]:
    return cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST_EXACT)


def _png(figure: Figure) -> bytes:
    """PNG of a figure, without the drawing library's version, which would change its bytes."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()
