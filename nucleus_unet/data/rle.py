"""Run-length encoding of label images in Kaggle's convention.

Pixels are numbered from 1, first down a column and then to the next column on the right. A nucleus is
one string "start length start length ...". See https://www.kaggle.com/c/data-science-bowl-2018,
"Evaluation".
"""

import re
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.errors import NucleusError

# At most 18 digits, so that the sum of two numbers fits into 64 bits.
_NUMBERS = re.compile(r"\s*-?\d{1,18}(\s+-?\d{1,18})*\s*", re.ASCII)


def encode_rle(labels: NDArray[np.integer]) -> list[str]:
    """Encode each nucleus of a label image.

    Parameters
    ----------
    labels : int array (H, W)
        0 is background, and every other number is one nucleus.

    Returns
    -------
    list of str
        One RLE for each nucleus, in the order of the labels. Labels may have gaps. A run continues
        from the end of a column to the start of the next.

    Examples
    --------
    >>> encode_rle(np.array([[1, 1, 0], [1, 0, 2], [0, 0, 2]]))
    ['1 2 4 1', '8 2']
    """
    if not labels.any():
        return []
    flat = labels.ravel(order="F")
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    owners = flat[edges[:-1]]
    runs = np.flatnonzero(owners)
    runs = runs[np.argsort(owners[runs], kind="stable")]
    numbers = np.stack((edges[runs] + 1, edges[runs + 1] - edges[runs]), axis=1).ravel()
    words = list(map(str, numbers.tolist()))
    cuts = 2 * np.concatenate(([0], np.flatnonzero(np.diff(owners[runs])) + 1, [runs.size]))
    return [" ".join(words[a:b]) for a, b in pairwise(cuts.tolist())]


def decode_rle(rles: Sequence[str], height: int, width: int) -> NDArray[np.int32]:
    """Decode the nuclei of one image into a label image.

    Parameters
    ----------
    rles : sequence of str
        One RLE for each nucleus.
    height, width : int
        Size of the image in pixels.

    Returns
    -------
    int32 array (height, width)
        0 is background, and k marks the pixels of the k-th RLE, counted from 1.

    Raises
    ------
    NucleusError
        If an RLE breaks a rule of `rle_faults`; the message is about the first of them.

    Examples
    --------
    >>> decode_rle(["1 2 4 1", "8 2"], 3, 3)
    array([[1, 1, 0],
           [1, 0, 2],
           [0, 0, 2]], dtype=int32)
    """
    starts, ends, owners, found = _read(rles, height, width)
    if found:
        index = min(found)
        raise NucleusError(f"RLE {index + 1} of {len(rles)}, {rles[index][:40]!r}, {found[index]}")
    steps = np.concatenate(([0], np.stack((starts, ends), axis=1).ravel(), [height * width]))
    values = np.zeros(steps.size - 1, np.int32)
    values[1::2] = owners + 1
    return np.ascontiguousarray(np.repeat(values, np.diff(steps)).reshape(width, height).T)


def rle_faults(rles: Sequence[str], height: int, width: int) -> dict[int, str]:
    """Find the RLEs of one image that cannot be decoded.

    Parameters
    ----------
    rles, height, width
        As for `decode_rle`.

    Returns
    -------
    dict of int to str
        The first rule that an RLE breaks, by its index in `rles` (from 0); empty if all are correct.

    Notes
    -----
    The rules:

    - An RLE consists of at least one pair of whole numbers, a start and a length, both at least 1.
    - Its runs are inside the image, sorted by start, and do not overlap. They may touch.
    - A pixel belongs to one nucleus at most. If two RLEs share a pixel, the later one is wrong.

    Examples
    --------
    >>> rle_faults(["1 2", "6 2"], 2, 3)
    {1: 'ends outside the image, which has 6 pixels (height 2 x width 3)'}
    """
    return _read(rles, height, width)[3]


def coco_counts(rle: str, pixels: int) -> str:
    """Convert the RLE of a nucleus to COCO's compressed run lengths.

    Parameters
    ----------
    rle : str
        A correct RLE.
    pixels : int
        Number of pixels of the image.

    Notes
    -----
    COCO counts the pixels of background and nucleus in turn, in the same order of the pixels. From the
    fourth on, a count is replaced by its difference from the count two before. Each number is written
    in digits of 5 bits, the lowest first; a sixth bit says that more digits follow, and the fifth bit
    of the last one is the sign. A digit is the character with its value plus 48. See ``rleToString`` in
    https://github.com/cocodataset/cocoapi.

    Examples
    --------
    >>> coco_counts("22 2", 24)
    'e021'
    """
    edges = np.array(rle.split(), np.int64).reshape(-1, 2)
    edges[:, 0] -= 1
    edges[:, 1] += edges[:, 0]
    counts = np.diff(edges.ravel(), prepend=0, append=pixels)
    counts = counts if counts[-1] else counts[:-1]  # the last pixel may be of the nucleus
    counts[3:] -= counts[1:-2].copy()
    characters = []
    for number in counts.tolist():
        more = True
        while more:
            digit, number = number & 31, number >> 5
            more = number != (-1 if digit & 16 else 0)
            characters.append(chr(48 + digit + 32 * more))
    return "".join(characters)


_Ints = NDArray[np.int64]


def _read(
    rles: Sequence[str], height: int, width: int
) -> tuple[_Ints, _Ints, _Ints, dict[int, str]]:
    """Starts (from 0), ends (exclusive) and owners of all runs, sorted by start; and the faults."""
    found: dict[int, str] = {}
    words = [_words(rle, index, found) for index, rle in enumerate(rles)]
    numbers = np.array(list(chain.from_iterable(words)), dtype=np.int64).reshape(-1, 2)
    owners = np.repeat(np.arange(len(words)), [len(pairs) // 2 for pairs in words])
    starts = numbers[:, 0] - 1
    ends = starts + numbers[:, 1]
    back = np.zeros(owners.size, bool)
    back[1:] = (owners[1:] == owners[:-1]) & (starts[1:] < ends[:-1])
    for wrong, rule in (
        (starts < 0, "has a start below 1: pixels are numbered from 1"),
        (numbers[:, 1] < 1, "has a length below 1: remove runs without pixels"),
        (
            ends > height * width,
            f"ends outside the image, which has {height * width} pixels "
            f"(height {height} x width {width})",
        ),
        (back, "has runs that overlap or are not sorted: sort and merge them"),
    ):
        for owner in np.unique(owners[wrong]).tolist():
            found.setdefault(owner, rule)
    kept = ~np.isin(owners, list(found))
    starts, ends, owners = starts[kept], ends[kept], owners[kept]
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    _add_overlaps(starts, ends, owners, found)
    return starts, ends, owners, found


def _words(rle: str, index: int, found: dict[int, str]) -> list[int]:
    """The numbers of one RLE; none if they are not pairs of whole numbers."""
    if not rle.strip():
        found[index] = "is empty: a nucleus has at least one pixel"
    elif not _NUMBERS.fullmatch(rle):
        found[index] = "is not 'start length start length ...' in whole numbers"
    elif len(words := rle.split()) % 2:
        found[index] = f"has an odd number of numbers, {len(words)}: each start needs a length"
    else:
        return list(map(int, words))
    return []


def _add_overlaps(starts: _Ints, ends: _Ints, owners: _Ints, found: dict[int, str]) -> None:
    """Add the RLEs that share pixels with an earlier RLE; the runs must be sorted by start."""
    if (starts[1:] >= np.maximum.accumulate(ends)[:-1]).all():
        return

    def note(late: int, pixel: int, early: int) -> None:
        found.setdefault(
            late,
            f"contains pixel {pixel + 1}, which RLE {early + 1} has too: nuclei must not overlap",
        )

    # The runs at the current pixel, sorted by RLE from the first and from the last. They are heaps
    # because a malicious file may contain hundreds of RLEs that cover the complete image.
    earliest: list[tuple[int, int]] = []
    latest: list[tuple[int, int]] = []
    for start, end, owner in zip(starts.tolist(), ends.tolist(), owners.tolist(), strict=True):
        while earliest and earliest[0][1] <= start:
            heappop(earliest)
        if earliest and earliest[0][0] < owner:
            note(owner, start, earliest[0][0])
        while latest and (latest[0][1] <= start or -latest[0][0] > owner):
            late, until = heappop(latest)
            if until > start:
                note(-late, start, owner)
        heappush(earliest, (owner, end))
        heappush(latest, (-owner, end))
