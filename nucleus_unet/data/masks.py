"""Merge the masks of an image, or renumber a label image, into labels 1..n."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import label

IGNORED = -1
"""Value in labels of pixels that nobody annotated; they are neither learned nor scored."""
REFUSED = ("no background", "not a label image", "not masks", "wrong size", "unreadable")
"""Kinds of problems of an annotation that cannot be right: training refuses it."""
DECIDED_BY_RULE = ("overlap", "covered", "empty", "stray values")
"""Kinds of problems that `merge_into_labels` solves."""
MOST_IN_PIECES = 0.1
"""Share of the nuclei of an image that may lie in several pieces."""
LEAST_MAIN_PIECE = 0.95
"""A nucleus lies in several pieces if its largest piece has a smaller share of its pixels."""
MOST_COVERAGE = 1.5
"""Masks of one image together have at most this number of times its pixels: nuclei hardly overlap."""
_LAST_NUMBERS = (2**8 - 1, 2**16 - 1)
"""From these numbers on, a file of 8 or 16 bits begins again at 0."""


@dataclass(frozen=True)
class DataProblem:
    """A problem with a file, and how it was handled."""

    file: str
    kind: str
    """Short name of the kind of problem, such as ``overlap``."""
    detail: str
    """What is wrong, and what was done about it."""


@dataclass(frozen=True)
class Merged:
    """The nuclei of one image, and problems with their masks."""

    labels: NDArray[np.int32]
    """Labels (H, W): 0 is background, and each number from 1 to n is one nucleus."""
    problems: tuple[DataProblem, ...]
    """Sorted by file name, or in the order of the file that holds several nuclei."""


@dataclass(frozen=True)
class Region:
    """The pixels of one nucleus, which nuclei of the same image may share."""

    name: str
    """The file, and the place in it if it holds several nuclei."""
    box: tuple[slice, slice]
    """Rows and columns of the image."""
    pixels: NDArray[np.bool_]
    """Which pixels of the box belong to the nucleus."""


def merge_into_labels(masks: Iterable[tuple[str, NDArray[Any]]], shape: tuple[int, int]) -> Merged:
    """Merge masks, each of one nucleus, into labels.

    Parameters
    ----------
    masks : iterable of (str, (H, W) array)
        File name and mask, of any real type, sorted by name. They are taken one at a time.
    shape : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    Merged
        The labels, and a problem for each file that breaks one of the rules below.

    Notes
    -----
    - A mask whose size differs from that of the image is skipped, and so is a mask without foreground.
    - A mask should contain 0 and one other value, the foreground. If it contains more values, for
      example because its edges were smoothed, the foreground is what reaches half of the largest one.
      Values that are not finite are background.
    - The files cannot be masks if more than `MOST_IN_PIECES` of them lie in several pieces. One nucleus
      in two pieces is allowed, if there are others. Nor can they if they cover the image more than
      `MOST_COVERAGE` times, as masks do whose background is white.
    - A pixel in several masks belongs to the nucleus with the fewest pixels. If those are equal, it
      belongs to the first by file name. A nucleus without any pixel left is skipped.
    - Labels are 1..n in the order of the file names of the masks that were not skipped.

    Examples
    --------
    >>> cell, blob = np.uint8([[0, 255, 255]]), np.uint8([[255, 255, 0]])
    >>> merged = merge_into_labels([("a.png", cell), ("b.png", blob[:, :2]), ("c.png", blob)], (1, 3))
    >>> merged.labels
    array([[2, 1, 1]], dtype=int32)
    >>> [(problem.file, problem.kind) for problem in merged.problems]
    [('b.png', 'wrong size'), ('c.png', 'overlap')]
    """
    problems: list[DataProblem] = []
    areas: list[int] = []
    in_pieces: dict[str, int] = {}
    names: list[str] = []

    def nuclei() -> Iterator[Region]:
        for file, mask in masks:
            if mask.shape != shape:
                detail = f"{size_text(mask.shape)}, but the image is {size_text(shape)}: skipped"
                problems.append(DataProblem(file, "wrong size", detail))
                continue
            box, nucleus, stray = _foreground(mask)
            if stray:
                detail = (
                    f"{stray} pixels are neither 0 nor the largest value: "
                    "read as nucleus if at least half of it"
                )
                problems.append(DataProblem(file, "stray values", detail))
            if not nucleus.any():
                problems.append(DataProblem(file, "empty", "no foreground: skipped"))
                continue
            stats = cv2.connectedComponentsWithStats(nucleus.view(np.uint8))[2]
            of_pieces = stats[1:, cv2.CC_STAT_AREA]
            names.append(file)
            areas.append(of_pieces.sum())
            if of_pieces.max() < LEAST_MAIN_PIECE * areas[-1]:
                in_pieces[file] = len(of_pieces)
            yield Region(file, box, nucleus)

    merged = merge_regions(nuclei(), shape)
    if _too_many(list(in_pieces.values()), len(areas), MOST_IN_PIECES):
        detail = (
            f"{len(in_pieces)} of {len(areas)} masks show several pieces, {sum(in_pieces.values())} in "
            "all. A mask is one nucleus. If it is a label image, name it labels.png, outside of masks"
        )
        problems.append(DataProblem(min(in_pieces), "not masks", detail))
    if sum(areas) > MOST_COVERAGE * math.prod(shape):
        detail = (
            f"{len(areas)} masks cover the image {sum(areas) / math.prod(shape):.1f} times. If nuclei "
            "are black in them, invert them"
        )
        problems.append(DataProblem(names[0], "not masks", detail))
    found = sorted([*problems, *merged.problems], key=lambda problem: problem.file)
    return Merged(merged.labels, tuple(found))


def merge_regions(regions: Iterable[Region], shape: tuple[int, int]) -> Merged:
    """Merge regions, each of one nucleus, into labels.

    Parameters
    ----------
    regions : iterable of Region
        At least one pixel each. They are taken one at a time.
    shape : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    Merged
        The labels, 1..n in the order of the regions, and a problem for each region that shares pixels
        with others. Problems are in the order of the regions.

    Notes
    -----
    A pixel in several regions belongs to the region with the fewest pixels. If those are equal, it
    belongs to the first. A region without any pixel left is skipped.
    """
    labels = np.zeros(shape, np.int32)
    area_of_owner = np.full(shape, np.iinfo(np.uint32).max, np.uint32)
    names, areas = [], []
    for number, region in enumerate(regions, 1):
        area = np.count_nonzero(region.pixels)
        won = region.pixels & (area < area_of_owner[region.box])
        labels[region.box][won] = number
        area_of_owner[region.box][won] = area
        names.append(region.name)
        areas.append(area)

    problems = []
    left = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    for name, area, kept in zip(names, areas, left, strict=True):
        if kept == 0:
            detail = f"all {area} pixels are also in nuclei of the same or a smaller size: skipped"
            problems.append(DataProblem(name, "covered", detail))
        elif kept < area:
            detail = (
                f"{area - kept} of {area} pixels are also in nuclei of the same or a smaller size: "
                "assigned to those"
            )
            problems.append(DataProblem(name, "overlap", detail))
    return Merged(labels if left.all() else relabel(labels), tuple(problems))


def relabel(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Renumber the nuclei of a label image 1..n in the order of their numbers.

    Parameters
    ----------
    labels : (H, W) int
        0 is background, and every positive number is one nucleus.

    Returns
    -------
    (H, W) int32

    Examples
    --------
    >>> relabel(np.array([[0, 7, 7], [300, 0, 2]]))
    array([[0, 2, 2],
           [3, 0, 1]], dtype=int32)
    """
    numbers = np.unique(labels[labels > 0])
    return np.searchsorted(numbers, labels, side="right").astype(np.int32)


def pieces(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count the pieces of each nucleus; pixels that touch at a corner are one piece.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background, and each number from 1 to n is one nucleus.

    Returns
    -------
    tuple of (n,) int64 and (n,) float64
        The number of pieces, and the share of the pixels that the largest piece has.

    Examples
    --------
    >>> count, share = pieces(np.array([[1, 1, 0, 1], [0, 0, 0, 0], [2, 2, 2, 2]], np.int32))
    >>> count.tolist(), share.round(2).tolist()
    ([2, 1], [0.67, 1.0])
    """
    parts = label(labels, connectivity=2)
    areas, numbers = np.bincount(parts.ravel()), np.zeros(parts.max(initial=0) + 1, np.int64)
    numbers[parts] = labels
    largest = np.zeros(labels.max(initial=0) + 1, np.int64)
    np.maximum.at(largest, numbers, areas)
    return np.bincount(numbers)[1:], largest[1:] / np.bincount(labels.ravel())[1:]


def has_hole(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Find out which nuclei have a hole, (n,) bool; `labels` are as for `pieces`.

    A hole may hold other nuclei. Pixels of the nucleus that touch only at a corner close it.

    Examples
    --------
    >>> has_hole(np.array([[0, 1, 0, 2], [1, 0, 1, 2], [0, 1, 0, 2]], np.int32)).tolist()
    [True, False]
    """
    found = []
    for number, box in enumerate(find_objects(labels), 1):
        outside = np.pad(labels[box] != number, 1, constant_values=True).view(np.uint8)
        found.append(cv2.connectedComponents(outside, connectivity=4)[0] > 2)
    return np.array(found, np.bool_)


def number_label_image(file: str, numbers: NDArray[Any], ignore_value: int | None = None) -> Merged:
    """Renumber the nuclei of a label image 1..n, and report a file that cannot be a label image.

    Such files are masks without a number for each nucleus, maps of classes, and label images that were
    resized with interpolation, compressed as JPEG, or saved with too few bits for their numbers.

    Parameters
    ----------
    file : str
        Name of the file, for the problem.
    numbers : (H, W) int
        As `relabel` takes them.
    ignore_value : int, optional
        Number of the pixels that nobody annotated.

    Returns
    -------
    Merged
        The labels, with a problem of a kind in `REFUSED` if no pixel is background, or if more than
        `MOST_IN_PIECES` of the numbers lie in several pieces; if every number of 8 or 16 bits is used,
        none may. One nucleus in two pieces is allowed, if there are others.
    """
    ignored = numbers == ignore_value
    labels = relabel(np.where(ignored, 0, numbers))
    is_full = int(numbers.max(initial=0)) == int(labels.max(initial=0)) in _LAST_NUMBERS
    problems = _problems_of_label_image(file, labels, 0 if is_full else MOST_IN_PIECES)
    return Merged(with_ignored(labels, ignored) if ignored.any() else labels, problems)


def with_ignored(labels: NDArray[np.int32], ignored: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Mark the pixels that nobody annotated, and renumber the nuclei that are left.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background, and each number from 1 to n is one nucleus.
    ignored : (H, W) bool

    Returns
    -------
    (H, W) int32

    Examples
    --------
    >>> with_ignored(np.array([[1, 2, 2, 0]], np.int32), np.array([[True, False, True, False]]))
    array([[-1,  1, -1,  0]], dtype=int32)
    """
    return np.where(ignored, np.int32(IGNORED), relabel(np.where(ignored, 0, labels)))


def _problems_of_label_image(
    file: str, labels: NDArray[np.int32], most_in_pieces: float
) -> tuple[DataProblem, ...]:
    if labels.all():
        detail = (
            "no pixel is 0, so there is no background. Use 0 for background, 1, 2, ... for nuclei"
        )
        return (DataProblem(file, "no background", detail),)
    count, share = pieces(labels)
    split = count[share < LEAST_MAIN_PIECE]
    if not _too_many(split.tolist(), len(count), most_in_pieces):
        return ()
    detail = (
        f"{len(split)} of {len(count)} numbers lie in several pieces, {split.sum()} in all. "
        "Give each nucleus a number of its own, do not interpolate or compress with losses, and save "
        "16 bits"
    )
    return (DataProblem(file, "not a label image", detail),)


def _too_many(in_pieces: Sequence[int], nuclei: int, most: float) -> bool:
    """Whether too many nuclei lie in pieces, given the number of pieces of each that does."""
    one_in_two_pieces = list(in_pieces) == [2] and nuclei > 1
    return len(in_pieces) > most * nuclei and not one_in_two_pieces


def _foreground(mask: NDArray[Any]) -> tuple[tuple[slice, slice], NDArray[np.bool_], int]:
    """Bounding box of the values other than 0, the nucleus in it, and the number of stray pixels."""
    mask = mask.view(np.uint8) if mask.dtype == np.bool_ else mask
    marked = mask if mask.dtype == np.uint8 else (mask != 0).view(np.uint8)
    x, y, width, height = cv2.boundingRect(marked)
    box = (slice(y, y + height), slice(x, x + width))
    crop = np.where(np.isfinite(mask[box]), mask[box], 0)
    nucleus = crop != 0
    if not crop.size:
        return box, nucleus, 0
    value = crop.max() or crop.min()  # the foreground may be -1
    stray = int(np.count_nonzero(nucleus) - np.count_nonzero(crop == value))
    if stray:
        nucleus = crop / value >= 0.5
    return box, nucleus, stray


def size_text(shape: tuple[int, ...]) -> str:
    """Height and width as text, for example ``256x320``."""
    return "x".join(map(str, shape))
