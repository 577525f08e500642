"""Which images to annotate next."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nucleus_unet.data import plain_cell


def read_uncertainty(table: Path) -> dict[str, float]:
    """The uncertainty of each image that was predicted, by id, from an ``images.csv``."""
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "done"]
    return {plain_cell(row["image"]): float(row["uncertainty"]) for row in rows}


def most_uncertain(
    uncertainty: Mapping[str, float], slides: Mapping[str, str], count: int
) -> list[str]:
    """Choose uncertain images of as many slides as possible.

    Images of one slide resemble each other, so that a second one teaches less than the first. The most
    uncertain image of each slide comes first, then the second of each slide, and so on.

    Parameters
    ----------
    uncertainty : mapping of str to float
        Of each image, by id.
    slides : mapping of str to str
        Image id to slide.
    count : int
        How many to choose at most.

    Examples
    --------
    >>> slides = {"a": "s", "b": "s", "c": "t"}
    >>> most_uncertain({"a": 0.3, "b": 0.2, "c": 0.1}, slides, 2)
    ['a', 'c']
    """
    ordered = sorted(uncertainty, key=lambda id_: (-uncertainty[id_], id_))
    taken: Counter[str] = Counter()
    turns = {}
    for id_ in ordered:
        turns[id_] = taken[slides[id_]]
        taken[slides[id_]] += 1
    return sorted(ordered, key=lambda id_: turns[id_])[:count]
