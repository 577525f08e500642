"""Which images the network never trains on."""

from collections.abc import Sequence

from sklearn.model_selection import train_test_split

from nucleus_unet.errors import NucleusError


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
