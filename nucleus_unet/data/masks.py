"""One mask a nucleus, or a label image as it comes, made into labels 1..n."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataProblem:
    """What is wrong with a file and what was done about it."""

    file: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Merged:
    """The nuclei of one image."""

    labels: NDArray[np.int32]
    """(H, W); 0 background, 1..n one nucleus each, no number missing."""
    problems: tuple[DataProblem, ...]
    """By file name."""


def merge_into_labels(masks: Iterable[tuple[str, NDArray[Any]]], shape: tuple[int, int]) -> Merged:
    """Merge masks of one nucleus each into labels.

    The rules, each departure from which is reported by file:

    - A mask of another size than the image is left out, and so is one with no foreground.
    - A mask holds 0 and one other value, which is foreground. Where it holds more (smoothed or
      scaled edges, say), foreground is what reaches half of the largest value of its type.
    - A pixel in several masks goes to the nucleus with the fewest pixels, of equal ones to the
      first by file name. A nucleus that has no pixel left is left out.
    - Labels are 1..n in the order of the file names of the masks that are kept.

    Parameters
    ----------
    masks
        File name and mask (H, W), of any real type; taken one at a time, in any order.
    shape
        Height and width of the image.

    Examples
    --------
    >>> cell, blob = np.uint8([[0, 255, 255]]), np.uint8([[255, 255, 0]])
    >>> merged = merge_masks([("a.png", cell), ("b.png", blob[:, :2]), ("c.png", blob)], (1, 3))
    >>> merged.labels
    array([[2, 1, 1]], dtype=int32)
    >>> [(problem.file, problem.kind) for problem in merged.problems]
    [('b.png', 'another size'), ('c.png', 'overlap')]
    """
    problems: list[DataProblem] = []
    nuclei: list[tuple[str, tuple[slice, slice], NDArray[np.bool_]]] = []
    for file, mask in masks:
        if mask.shape != shape:
            detail = f"{size_text(mask.shape)} where the image is {size_text(shape)}: left out"
            problems.append(DataProblem(file, "another size", detail))
            continue
        box, nucleus, stray = _foreground(mask)
        if stray:
            detail = (
                f"{stray} pixels neither 0 nor the largest value: cut at half of the type's range"
            )
            problems.append(DataProblem(file, "stray values", detail))
        if nucleus.any():
            nuclei.append((file, box, nucleus))
        else:
            problems.append(DataProblem(file, "empty", "no foreground: left out"))

    nuclei.sort(key=lambda nucleus: nucleus[0])
    areas = np.array([np.count_nonzero(nucleus) for _, _, nucleus in nuclei], np.int64)
    labels = np.zeros(shape, np.int32)
    largest_first = np.lexsort((-np.arange(len(nuclei)), -areas))
    for index in largest_first:  # what is painted last stays on top
        _, box, nucleus = nuclei[index]
        labels[box][nucleus] = index + 1

    left = np.bincount(labels.ravel(), minlength=len(nuclei) + 1)[1:]
    for (file, _, _), area, kept in zip(nuclei, areas, left, strict=True):
        if kept == 0:
            detail = f"all {area} pixels are also in smaller or equal nuclei: left out"
            problems.append(DataProblem(file, "covered", detail))
        elif kept < area:
            detail = (
                f"{area - kept} of {area} pixels are also in smaller or equal nuclei: given to them"
            )
            problems.append(DataProblem(file, "overlap", detail))
    if not left.all():
        labels = relabel(labels)
    return Merged(labels, tuple(sorted(problems, key=lambda problem: problem.file)))


def relabel(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Number the nuclei of a label image 1..n in the order of their numbers; 0 stays background.

    Parameters
    ----------
    labels
        (H, W), any integers from 0.

    Examples
    --------
    >>> relabel(np.array([[0, 7, 7], [300, 0, 2]]))
    array([[0, 2, 2],
           [3, 0, 1]], dtype=int32)
    """
    numbers = np.unique(labels)
    numbers = numbers[numbers > 0]
    ranks = np.searchsorted(numbers, labels, side="right")
    return ranks.astype(np.int32)


def check_label_image(file: str, labels: NDArray[Any]) -> tuple[DataProblem, ...]:
    """Find out whether a label image is a mask of all nuclei, which makes them one nucleus."""
    numbers = np.unique(labels)
    if np.count_nonzero(numbers) == 1:
        parts = cv2.connectedComponents((labels > 0).astype(np.uint8), connectivity=8)[0] - 1
        if parts > 1:
            detail = f"one number for {parts} parts: taken as one nucleus; number each nucleus"
            return (DataProblem(file, "one number", detail),)
    return ()


def _foreground(mask: NDArray[Any]) -> tuple[tuple[slice, slice], NDArray[np.bool_], int]:
    """The box around what is not 0, the nucleus in it, and how many pixels have stray values."""
    mask = mask.view(np.uint8) if mask.dtype == np.bool_ else mask
    marked = mask if mask.dtype == np.uint8 else (mask != 0).view(np.uint8)
    x, y, width, height = cv2.boundingRect(marked)
    box = (slice(y, y + height), slice(x, x + width))
    crop = mask[box]
    nucleus = crop != 0
    if not crop.size:
        return box, nucleus, 0
    value = crop.max() or crop.min()  # -1 is what some call true
    stray = int(np.count_nonzero(nucleus) - np.count_nonzero(crop == value))
    if stray:
        largest = np.iinfo(mask.dtype).max if mask.dtype.kind in "iu" else 1.0
        nucleus = crop >= largest / 2
    return box, nucleus, stray


def size_text(shape: tuple[int, ...]) -> str:
    """Height and width as they stand in reports, 256x320."""
    return "x".join(map(str, shape))
