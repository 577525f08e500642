"""Which images the network trains on, and which it is validated on."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from nucleus_unet.data.prepared import Images, Labels
from nucleus_unet.data.sample import Sample
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes, write_atomically
from nucleus_unet.recipe import Data, Recipe

SPLIT_FILE = "split.json"
Side = Literal["training", "validation"]
SIDES: tuple[Side, ...] = ("training", "validation")


GROUPED_BY = {"random": "id", "slide": "slide", "source": "source"}
"""What images have in common that stay on one side, for each value of ``data.split``."""


class SplitImage(BaseModel):
    """An image in a split."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    """Imaging kind, as `imaging_kind` finds it."""
    slide: str
    """Slide, as `group_by_slide` names it."""
    source: str = ""
    """Imaging kind and image size: images that share both are often of one microscope or laboratory."""


class Split(BaseModel):
    """Which images the network trains on and which it is validated on, each sorted by id.

    Of a model of several folds, both sides are all images: each is validated by the fold that does not
    know it.
    """

    model_config = ConfigDict(frozen=True)

    training: tuple[SplitImage, ...]
    validation: tuple[SplitImage, ...]

    def side(self, side: Side) -> tuple[SplitImage, ...]:
        """The images of one side."""
        return self.training if side == "training" else self.validation

    @property
    def slides(self) -> dict[str, str]:
        """Image id to slide, for all images."""
        return {image.id: image.slide for image in (*self.training, *self.validation)}

    def slides_of(self, side: Side) -> set[str]:
        """The slides of one side."""
        return {image.slide for image in self.side(side)}

    def kinds(self, side: Side) -> set[str]:
        """The imaging kinds of one side."""
        return {image.kind for image in self.side(side)}

    def samples(self, side: Side, images: Images, labels: Labels, store: Path) -> list[Sample]:
        """The prepared samples of one side, as paths into the store."""
        image = {entry.id: entry.path(store) for entry in images.entries}
        label = {entry.id: entry.path(store) for entry in labels.entries}
        return [Sample(row.id, image[row.id], label[row.id], row.kind) for row in self.side(side)]

    def write(self, folder: Path) -> None:
        """Write ``split.json`` into a folder."""
        write_atomically(folder / SPLIT_FILE, self.model_dump_json(indent=1))


def read_split(folder: Path) -> Split:
    """Read the ``split.json`` that `Split.write` wrote into a folder."""
    return Split.model_validate_json((folder / SPLIT_FILE).read_bytes())


def make_split(images: Iterable[SplitImage], data: Data) -> Split:
    """Split images as the recipe says: by `fold_split`, `group_split` or `random_split`.

    Parameters
    ----------
    images : iterable of SplitImage
    data : Data
        The part of the recipe.

    Raises
    ------
    NucleusError
        If there are too few images, slides or sources for two sides.
    """
    rows = {image.id: image for image in images}
    groups = {id_: getattr(image, GROUPED_BY[data.split]) for id_, image in rows.items()}
    if data.fold:
        kinds = {id_: image.kind for id_, image in rows.items()}
        sides = fold_split(groups, kinds, data.fold, data.split_seed)
    elif data.split == "random":
        sides = random_split(list(rows), data.validation_fraction, data.split_seed)
    else:
        sides = group_split(groups, data.validation_fraction, data.split_seed, data.split)
    training, validation = (tuple(rows[id_] for id_ in ids) for ids in sides)
    return Split(training=training, validation=validation)


def split_of_all_folds(images: Iterable[SplitImage]) -> Split:
    """The split of a model of all folds."""
    rows = tuple(sorted(images, key=lambda image: image.id))
    return Split(training=rows, validation=rows)


def folds_of(split: Split, recipe: Recipe) -> list[Split]:
    """The split of each network of a model: of each fold from that of all folds, or the split itself."""
    if not recipe.training.folds:
        return [split]
    numbers = range(1, recipe.training.folds + 1)
    return [make_split(split.training, recipe.of_fold(number).data) for number in numbers]


def images_of_known_slides(split: Split, recipe: Recipe) -> set[str]:
    """Ids of validation images from slides that the network that scored them was trained on."""
    found = set()
    for fold in folds_of(split, recipe):
        trained = fold.slides_of("training")
        found |= {image.id for image in fold.validation if image.slide in trained}
    return found


def random_split(ids: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Split ids at random, as the notebook does, with scikit-learn's split of the sorted ids.

    Parameters
    ----------
    ids : sequence of str
        Distinct, in any order.
    fraction : float
        Share of validation ids in (0, 1), rounded up to a whole image.
    seed : int
        Random state.

    Returns
    -------
    tuple of two lists of str
        Training ids and validation ids, each sorted.

    Raises
    ------
    NucleusError
        If there are fewer than two ids.
    """
    if len(ids) < 2:
        raise NucleusError(
            f"The data set has {len(ids)} image(s) with masks. At least 2 are needed: one to train on "
            "and one to validate on."
        )
    training, validation = train_test_split(
        sorted(ids), test_size=min(fraction, 1 - 1 / len(ids)), random_state=seed
    )
    return sorted(training), sorted(validation)


def group_split(
    groups: Mapping[str, str], fraction: float, seed: int, name: str = "slide"
) -> tuple[list[str], list[str]]:
    """Split ids so that the images of one group stay together and no side is empty.

    Parameters
    ----------
    groups : mapping of str to str
        Image id to group, such as the slide that `group_by_slide` gives.
    fraction : float
        Probability that a group is on the validation side.
    seed : int
        Another seed gives another split.
    name : str
        What a group is, for the message.

    Returns
    -------
    tuple of two lists of str
        Training ids and validation ids, each sorted.

    Raises
    ------
    NucleusError
        If there are fewer than two groups.

    Notes
    -----
    The side of a group depends only on the seed and on the name of the group, so images of other groups
    never move it. The validation fraction is met on average over seeds, overall and for each imaging
    kind. If all groups would be on one side, the group nearest to the limit moves to the other side.
    """
    ordered = sorted(set(groups.values()), key=lambda group: _draw(group, seed))
    if len(ordered) < 2:
        raise NucleusError(
            f"The data set has {len(groups)} image(s) of {len(ordered)} {name}(s). At least 2 {name}s "
            "are needed: one to train on and one to validate on. Set data.split=random to use images of "
            f"one {name} for both."
        )
    below = sum(_draw(group, seed) < fraction for group in ordered)
    validated = set(ordered[: min(max(below, 1), len(ordered) - 1)])
    training = sorted(id_ for id_, group in groups.items() if group not in validated)
    validation = sorted(id_ for id_, group in groups.items() if group in validated)
    return training, validation


def fold_split(
    groups: Mapping[str, str], kinds: Mapping[str, str], fold: tuple[int, int], seed: int
) -> tuple[list[str], list[str]]:
    """Split ids so that every id is a validation id in exactly one of several folds.

    Parameters
    ----------
    groups : mapping of str to str
        Id to group, such as a slide; its ids stay together.
    kinds : mapping of str to str
        Id to imaging kind. Each fold gets its share of every kind, as far as the groups allow it.
    fold : tuple of two int
        Number of the fold, from 1, and number of folds.
    seed : int
        Another seed gives other folds.

    Returns
    -------
    tuple of two lists of str
        Training ids and validation ids, each sorted.

    Raises
    ------
    NucleusError
        If there are fewer groups than folds.
    """
    number, folds = fold
    if (found := len({*groups.values()})) < folds:
        raise NucleusError(
            f"The data set has {len(groups)} image(s) in {found} group(s) that stay together, fewer "
            f"than the {folds} folds. Ask for fewer folds."
        )
    ids = sorted(groups)
    counts = Counter(kinds[id_] for id_ in ids)
    [(commonest, _)] = counts.most_common(1)
    # A kind with fewer images than folds cannot be dealt evenly.
    dealt_by = [kinds[id_] if counts[kinds[id_]] >= folds else commonest for id_ in ids]
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    dealt = folder.split(ids, dealt_by, [groups[id_] for id_ in ids])
    training, validation = [*dealt][number - 1]
    return [ids[i] for i in training], [ids[i] for i in validation]


def _draw(group: str, seed: int) -> float:
    """A number in [0, 1) that depends only on the group and the seed."""
    return int(sha256_bytes(f"{seed} {group}".encode())[:13], 16) / 16**13
