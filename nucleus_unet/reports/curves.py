"""Curves of a training, and trials of a sweep, as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nucleus_unet.reports.overlays import DPI, png_bytes

_TRAINING, _VALIDATION = "#0072B2", "#D55E00"  # blue and vermilion of Okabe and Ito's palette


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draw loss, dice, mean IoU and learning rate by epoch, for training and validation.

    Parameters
    ----------
    history : sequence of mappings
        One mapping for each epoch, with the keys epoch, loss, dice, mean_iou, val_loss, val_dice,
        val_mean_iou and learning_rate. A curve is left out if its key is missing; other keys are
        ignored.

    Returns
    -------
    bytes
        PNG, 1200 × 500 px. The epoch with the best validation mean IoU is marked.
    """
    figure = Figure(figsize=(12, 5), dpi=DPI, layout="constrained")
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
    return png_bytes(figure)


def parallel_coordinates(
    keys: Sequence[str], trials: Sequence[tuple[Sequence[str], float]]
) -> bytes:
    """Draw each trial of a sweep as a line across one axis for each key and one for the score.

    Parameters
    ----------
    keys : sequence of str
        The keys that the sweep varies.
    trials : sequence of (sequence of str, float)
        The value of each key, and the score.

    Returns
    -------
    bytes
        PNG. Better trials are brighter.
    """
    figure = Figure(figsize=(2.5 * (len(keys) + 1), 5), dpi=DPI, layout="constrained")
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
    return png_bytes(figure)


def _curve(axes: Any, history: Sequence[Mapping[str, float]], key: str, **style: Any) -> None:
    """Draw one key of the history over its epochs."""
    points = [(epoch["epoch"], epoch[key]) for epoch in history if key in epoch]
    if points:
        # One epoch makes no line, and hundreds of dots would hide the line.
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 40 else "", ms=3, **style)
