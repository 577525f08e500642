"""Which images the network never trains on."""

from collections.abc import Mapping, Sequence

from sklearn.model_selection import train_test_split

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes
from nucleus_unet.recipe import Data


def split_ids(slides: Mapping[str, str], data: Data) -> tuple[list[str], list[str]]:
    """Training and validation ids as the recipe says: by `slide_split` or by `random_split`."""
    if data.split == "slide":
        return slide_split(slides, data.validation_fraction, data.split_seed)
    return random_split(list(slides), data.validation_fraction, data.split_seed)


def random_split(ids: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Split ids at random, as the notebook does: scikit-learn's split over the sorted ids.

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
        Too few ids for one on each side.
    """
    if len(ids) < 2:
        raise NucleusError(
            f"{len(ids)} image(s) with masks: at least 2 are needed, one to train and one to validate"
        )
    training, validation = train_test_split(
        sorted(ids), test_size=min(fraction, 1 - 1 / len(ids)), random_state=seed
    )
    return sorted(training), sorted(validation)


def slide_split(
    slides: Mapping[str, str], fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Split ids so that the images of one slide stay together, and no side is empty.

    A slide's side comes from the seed and the slide's own name alone, so that images of other
    slides never move it; shares are met on average over seeds, of each imaging kind as of the whole.
    Only where all would be on one side, the slide nearest to the other is there.

    Parameters
    ----------
    slides : mapping of str to str
        Image id to slide, as `nucleus_unet.data.slides.group_by_slide` gives it.
    fraction : float
        Probability of a slide to be on the validation side.
    seed : int

    Returns
    -------
    tuple of two lists of str
        As `random_split`.

    Raises
    ------
    NucleusError
        Fewer than two slides.
    """
    ordered = sorted(set(slides.values()), key=lambda slide: _draw(slide, seed))
    if len(ordered) < 2:
        raise NucleusError(
            f"{len(slides)} image(s) of {len(ordered)} slide(s): at least 2 are needed, one to train "
            "and one to validate; data.split=random takes images of one slide for both"
        )
    below = sum(_draw(slide, seed) < fraction for slide in ordered)
    validated = set(ordered[: min(max(below, 1), len(ordered) - 1)])
    training = sorted(id_ for id_, slide in slides.items() if slide not in validated)
    validation = sorted(id_ for id_, slide in slides.items() if slide in validated)
    return training, validation


def _draw(slide: str, seed: int) -> float:
    """A number in [0, 1) that depends on these two alone."""
    return int(sha256_bytes(f"{seed} {slide}".encode())[:13], 16) / 16**13
