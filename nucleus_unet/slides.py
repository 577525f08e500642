"""Which images were cut from the same slide: they continue each other, or show the same field."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CONTINUED_CORRELATION = 0.95
SAME_FIELD_CORRELATION = 0.95
PLAIN_SPREAD = 2.0
"""Standard deviation, of 255, below which an edge is too plain to tell what it continues."""
THUMBNAIL_PX = 48

BLOCK = 1024
"""Images that are compared with all others at once: memory grows with their number, not its square."""

Pairs = NDArray[np.int64]
"""(N, 2), the positions of two images of one slide."""
Line = NDArray[np.float32]


def slides(images: Iterable[tuple[str, str, NDArray[np.uint8]]]) -> dict[str, str]:
    """Group images by slide.

    Two images of one size are of the same slide if an edge of one continues an edge of the other
    (the last column of one correlates with the first of the other above 0.95, and they differ no
    more than neighbouring columns do; rows the same), or if both show one field (thumbnails
    correlate above 0.95). Slides are the connected components of this relation.

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
        pairs = np.concatenate(
            [
                _continued(*(np.stack([t.columns[k] for t in traits]) for k in range(3))),
                _continued(*(np.stack([t.rows[k] for t in traits]) for k in range(3))),
                _same_field(np.stack([t.thumbnail for t in traits])),
            ]
        )
        for members in _components(len(traits), pairs):
            name = min(traits[i].digest for i in members)
            names |= {traits[i].id: name for i in members}
    return names


@dataclass(frozen=True)
class _Traits:
    """What is compared of an image, in gray: its last, last but one and first columns and rows."""

    id: str
    digest: str
    columns: tuple[Line, Line, Line]
    rows: tuple[Line, Line, Line]
    thumbnail: Line


def _traits(id_: str, digest: str, image: NDArray[np.uint8]) -> _Traits:
    gray = image.mean(2, dtype=np.float32)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail: Line = cv2.resize(gray, size, interpolation=cv2.INTER_AREA).ravel()
    columns = gray[:, -1].copy(), gray[:, -2:][:, 0].copy(), gray[:, 0].copy()
    rows = gray[-1].copy(), gray[-2:][0].copy(), gray[0].copy()
    return _Traits(id_, digest, columns, rows, thumbnail)


def _continued(last: Line, inner: Line, first: Line) -> Pairs:
    """Pairs of which the second goes on where the first ends."""
    ends, starts, pairs = _unit(last), _unit(first), []
    for at in range(0, len(last), BLOCK):
        correlation = ends[at : at + BLOCK] @ starts.T
        np.fill_diagonal(correlation[:, at:], -1)  # an image does not continue itself
        for before, row in enumerate(correlation, at):
            alike = np.flatnonzero(row > CONTINUED_CORRELATION)
            step = np.abs(last[before] - first[alike]).mean(1)
            # Neighbouring lines differ by as much inside an image; 1 is for its noise.
            usual = 1.5 * np.abs(last[before] - inner[before]).mean() + 1
            pairs += [(before, after) for after in alike[step < usual]]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _same_field(thumbnails: Line) -> Pairs:
    unit = _unit(thumbnails)
    pairs = []
    for at in range(0, len(unit), BLOCK):
        alike = unit[at : at + BLOCK] @ unit.T > SAME_FIELD_CORRELATION
        first, second = np.nonzero(np.triu(alike, k=at + 1))
        pairs.append(np.stack([first + at, second], axis=1))
    return np.concatenate(pairs)


def _unit(lines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows without their mean, at length 1; plain ones become 0 and correlate with nothing."""
    centred = lines - lines.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    length = np.sqrt(lines.shape[1]) * np.where(spread > PLAIN_SPREAD, spread, np.inf)
    unit: NDArray[np.float32] = centred / length.astype(np.float32)
    return unit


def _components(count: int, pairs: Pairs) -> list[list[int]]:
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    owners = connected_components(graph, directed=False)[1]
    return [np.flatnonzero(owners == owner).tolist() for owner in np.unique(owners)]
