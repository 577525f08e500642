"""Which images were cut from the same slide: they continue each other, or show the same field."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np
from numpy.polynomial.legendre import legvander, legvander2d
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CONTINUED_CORRELATION = 0.95
SAME_FIELD_CORRELATION = 0.95
DETAIL_CORRELATION = 0.5
"""Of continued edges without the fall-off of light, which all images of a microscope share."""
PLAIN_SPREAD, PLAIN_DETAIL_SPREAD = 2.0, 1.0
"""Standard deviation, of 255, below which an edge is too plain to tell what it continues."""
MOST_STEP = 2.0
"""Between continued edges, for that between neighbouring lines of the two images, in mean squares.
Of 334 images of 256×256 px, some 110,000 pairs, it joins one or two by chance; edges that few nuclei
cross correlate by chance ten times as often."""
ROUNDING = 1 / 6
"""Mean square of the difference of two lines that are rounded to whole levels."""
THUMBNAIL_PX = 48

BLOCK = 1024
"""Images that are compared with all others at once: memory grows with their number, not its square."""

Pairs = NDArray[np.int64]
"""(N, 2), the positions of two images of one slide."""
Line = NDArray[np.float32]


def group_by_slide(images: Iterable[tuple[str, str, NDArray[np.uint8]]]) -> dict[str, str]:
    """Group images by slide.

    Two images of one size are of the same slide if an edge of one continues an edge of the other
    (the last column of one correlates with the first of the other above 0.95, and the mean square of
    their difference is less than twice the harmonic mean of those between neighbouring columns in
    the two; rows the same), or if both show one field (thumbnails correlate above 0.95). Light that
    falls off smoothly is taken off thumbnails, and edges without it must correlate above 0.5. Slides
    are the connected components of this relation.

    Parameters
    ----------
    images : iterable of (str, str, (H, W, 3) uint8)
        Id, content digest and image, of which one at a time is held in memory.

    Returns
    -------
    dict of str to str
        Id to the slide's name, the least digest of its images. Images of other slides never change
        it; another image of the slide may.
    """
    by_size: dict[tuple[int, ...], list[_Traits]] = {}
    for id_, digest, image in images:
        by_size.setdefault(image.shape[:2], []).append(_traits(id_, digest, image))
    names: dict[str, str] = {}
    for traits in by_size.values():
        first = np.arange(len(traits))
        for pairs in chain(
            _continued(*(np.stack([t.columns[k] for t in traits]) for k in range(4))),
            _continued(*(np.stack([t.rows[k] for t in traits]) for k in range(4))),
            _same_field(np.stack([t.thumbnail for t in traits])),
        ):
            first = _joined(first, pairs)
        for owner in np.unique(first):
            members = [traits[i] for i in np.flatnonzero(first == owner)]
            names |= dict.fromkeys((t.id for t in members), min(t.digest for t in members))
    return names


@dataclass(frozen=True)
class _Traits:
    """What is compared of an image, in gray: its two last and two first columns and rows."""

    id: str
    digest: str
    columns: tuple[Line, ...]
    rows: tuple[Line, ...]
    thumbnail: Line


def _traits(id_: str, digest: str, image: NDArray[np.uint8]) -> _Traits:
    gray = image.mean(2, dtype=np.float32)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail: Line = cv2.resize(gray, size, interpolation=cv2.INTER_AREA).ravel()
    return _Traits(id_, digest, _edges(gray.T), _edges(gray), thumbnail)


def _edges(lines: Line) -> tuple[Line, ...]:
    """The last line, its neighbour, the first, its neighbour; of a single one that."""
    return lines[-1].copy(), lines[-2:][0].copy(), lines[0].copy(), lines[:2][-1].copy()


def _continued(last: Line, before_last: Line, first: Line, second: Line) -> Iterator[Pairs]:
    """Pairs of which the second goes on where the first ends, block by block."""
    end_steps, start_steps = _mean_square(last - before_last), _mean_square(second - first)
    ends, starts = _unit(last), _unit(first)
    parabolas = legvander(np.linspace(-1, 1, last.shape[1], dtype=np.float32), 2)
    fine_ends, fine_starts = (
        _unit(_detail(lines, parabolas), PLAIN_DETAIL_SPREAD) for lines in (last, first)
    )
    for at in range(0, len(last), BLOCK):
        correlation = ends[at : at + BLOCK] @ starts.T
        correlation[fine_ends[at : at + BLOCK] @ fine_starts.T <= DETAIL_CORRELATION] = -1
        np.fill_diagonal(correlation[:, at:], -1)  # an image does not continue itself
        pairs = []
        for before, row in enumerate(correlation, at):
            alike = np.flatnonzero(row > CONTINUED_CORRELATION)
            step = _mean_square(last[before] - first[alike])
            shares = step / end_steps[before] + step / start_steps[alike]
            pairs.append(
                np.stack(np.broadcast_arrays(before, alike[shares < 2 * MOST_STEP]), axis=1)
            )
        yield np.concatenate(pairs)


def _same_field(thumbnails: Line) -> Iterator[Pairs]:
    """Pairs that show one field, block by block."""
    across = np.linspace(-1, 1, THUMBNAIL_PX, dtype=np.float32)
    unit = _unit(_detail(thumbnails, legvander2d(*np.meshgrid(across, across), [2, 2])))
    for at in range(0, len(unit), BLOCK):
        alike = unit[at : at + BLOCK] @ unit.T > SAME_FIELD_CORRELATION
        first, second = np.nonzero(np.triu(alike, k=at + 1))
        yield np.stack([first + at, second], axis=1)


def _mean_square(differences: Line) -> Line:
    mean: Line = (differences**2).mean(1) + np.float32(ROUNDING)
    return mean


def _detail(lines: Line, smooth: Line) -> Line:
    """Rows without what combinations of the columns of `smooth` make of them."""
    basis = np.linalg.qr(smooth.reshape(lines.shape[-1], -1))[0]
    return lines - (lines @ basis) @ basis.T


def _unit(lines: Line, plain_spread: float = PLAIN_SPREAD) -> Line:
    """Rows without their mean, at length 1; plain ones become 0 and correlate with nothing."""
    centred = lines - lines.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    length = np.sqrt(lines.shape[1]) * np.where(spread > plain_spread, spread, np.inf)
    unit: Line = centred / length.astype(np.float32)
    return unit


def _joined(first: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """The position of the first image of each one's slide, with slides joined by more pairs."""
    edges = np.concatenate([np.stack([np.arange(len(first)), first], axis=1), pairs])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (len(first),) * 2)
    _, slide = connected_components(graph, directed=False)
    return np.unique(slide, return_index=True)[1][slide]
