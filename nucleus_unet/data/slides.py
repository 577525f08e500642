"""Find images that were cut from the same slide (the same specimen).

Such images show neighbouring fields, so that one continues at the edge of the other, or the same field.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.polynomial.legendre import legvander, legvander2d
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nucleus_unet.data.prepared import ImageEntry, load_image

CONTINUED_CORRELATION = 0.95
SAME_FIELD_CORRELATION = 0.95
DETAIL_CORRELATION = 0.5
"""Smallest correlation of two edges after their smooth brightness profile is subtracted.

All images of a microscope share this profile, which comes from the illumination."""
PLAIN_SPREAD, PLAIN_DETAIL_SPREAD = 2.0, 1.0
"""An edge is too uniform to be compared if its standard deviation, in 0..255, is at most this.

The second value is for edges whose brightness profile is subtracted."""
MOST_STEP = 2.0
"""Largest ratio of the step between two images to the steps between neighbouring lines in them.

A step is the mean square of the difference of two lines. In 334 images of 256×256 px, about 110,000
pairs, this limit joins one or two pairs by chance. Edges with few nuclei exceed the limit of the
correlation by chance ten times as often.
"""
ROUNDING = 1 / 6
"""Mean square of the difference of two equal lines after rounding to whole gray levels."""
THUMBNAIL_PX = 48

BLOCK = 1024
"""Number of images that are compared with all others at once.

Comparing in blocks lets memory grow with the number of images, not with its square."""

Pairs = NDArray[np.int64]
"""(N, 2), the positions of two images that belong to one slide."""
Line = NDArray[np.float32]
"""(N, L), one row, column or flat thumbnail of L gray values for each image."""


def group_by_slide(images: Iterable[tuple[str, str, str, NDArray[np.uint8]]]) -> dict[str, str]:
    """Group images by the slide (specimen) from which they were cut.

    Parameters
    ----------
    images : iterable of (str, str, str, (H, W, 3) uint8)
        Id, digest of the content, `pixel_digest`, and image. Only one image at a time is kept in memory.

    Returns
    -------
    dict of str to str
        The name of the slide for each id. The name is the smallest digest of the images of a slide:
        adding images of other slides never changes it, adding an image of the same slide may.

    Notes
    -----
    Two images belong to one slide if they have the same pixels, perhaps flipped or turned. Two images
    of the same size also belong to one slide if one of these rules applies:

    - One image continues the other: the last column of one and the first column of the other
      correlate above 0.95, they still correlate above 0.5 after a parabola is subtracted from each
      (the fall-off of the illumination), and the mean square of their difference is less than twice
      the harmonic mean of those between the last two and the first two columns. Rows likewise.
    - Both images show the same field: their thumbnails, from which a smooth surface is subtracted,
      correlate above 0.95.

    A slide is a connected component of this relation. Images that are too uniform are joined only if
    they have the same pixels.
    """
    traits = [_traits(*one) for one in images]
    if not traits:
        return {}
    first = _joined(np.arange(len(traits)), _same_pixels(traits))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for position, one in enumerate(traits):
        by_size.setdefault(one.size, []).append(position)
    for positions in map(np.array, by_size.values()):
        group = [traits[position] for position in positions]
        joined = np.arange(len(group))
        for pairs in chain(
            _continued(*(np.stack([one.columns[k] for one in group]) for k in range(4))),
            _continued(*(np.stack([one.rows[k] for one in group]) for k in range(4))),
            _same_field(np.stack([one.thumbnail for one in group])),
        ):
            joined = _joined(joined, pairs)
        first = _joined(first, np.stack([positions, positions[joined]], axis=1))
    names: dict[str, str] = {}
    for owner in np.unique(first):
        members = [traits[i] for i in np.flatnonzero(first == owner)]
        names |= dict.fromkeys((one.id for one in members), min(one.digest for one in members))
    return names


def slides_of_entries(store: Path, entries: Iterable[ImageEntry]) -> dict[str, str]:
    """The slide of each prepared image in the folder `store`, by id, as `group_by_slide` names it."""
    return group_by_slide(
        (one.id, one.source_sha256, one.pixels_sha256, load_image(store, one)) for one in entries
    )


def _same_pixels(traits: "Sequence[_Traits]") -> Pairs:
    """Pairs that have the same pixels, perhaps flipped or turned."""
    first: dict[str, int] = {}
    return np.array([(first.setdefault(one.pixels, at), at) for at, one in enumerate(traits)])


@dataclass(frozen=True)
class _Traits:
    """The parts of an image, in gray, that are compared; `columns` and `rows` as `_edges` gives."""

    id: str
    digest: str
    size: tuple[int, ...]
    pixels: str
    columns: tuple[Line, ...]
    rows: tuple[Line, ...]
    thumbnail: Line


def _traits(id_: str, digest: str, pixels: str, image: NDArray[np.uint8]) -> _Traits:
    gray = image.mean(2, dtype=np.float32)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail: Line = cv2.resize(gray, size, interpolation=cv2.INTER_AREA).ravel()
    edges = _edges(gray.T), _edges(gray)
    return _Traits(id_, digest, gray.shape, pixels, *edges, thumbnail)


def _edges(lines: Line) -> tuple[Line, ...]:
    """The last line, the one before it, the first, and the second; a single line is all four."""
    return lines[-1].copy(), lines[-2:][0].copy(), lines[0].copy(), lines[:2][-1].copy()


def _continued(last: Line, before_last: Line, first: Line, second: Line) -> Iterator[Pairs]:
    """Pairs in which the second image continues the first, block by block."""
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
    """Pairs that show the same field, block by block."""
    across = np.linspace(-1, 1, THUMBNAIL_PX, dtype=np.float32)
    unit = _unit(_detail(thumbnails, legvander2d(*np.meshgrid(across, across), [2, 2])))
    for at in range(0, len(unit), BLOCK):
        alike = unit[at : at + BLOCK] @ unit.T > SAME_FIELD_CORRELATION
        first, second = np.nonzero(np.triu(alike, k=at + 1))
        yield np.stack([first + at, second], axis=1)


def _mean_square(differences: Line) -> Line:
    return (differences**2).mean(1) + np.float32(ROUNDING)


def _detail(lines: Line, smooth: Line) -> Line:
    """Subtract from each line its best fit by the columns of `smooth`."""
    basis = np.linalg.qr(smooth.reshape(lines.shape[-1], -1))[0]
    return lines - (lines @ basis) @ basis.T


def _unit(lines: Line, plain_spread: float = PLAIN_SPREAD) -> Line:
    """Lines of mean 0 and length 1; uniform lines become 0, so that they correlate with nothing."""
    centred = lines - lines.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    length = np.sqrt(lines.shape[1]) * np.where(spread > plain_spread, spread, np.inf)
    return centred / length.astype(np.float32)


def _joined(first: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """Join slides by more pairs; `first` is the position of the first image of each image's slide."""
    edges = np.concatenate([np.stack([np.arange(len(first)), first], axis=1), pairs])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (len(first),) * 2)
    _, slide = connected_components(graph, directed=False)
    return np.unique(slide, return_index=True)[1][slide]
