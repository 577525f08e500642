"""Libraries that are not always installed: those of ``make install EXTRAS=...``."""

import importlib
from types import ModuleType

from nucleus_unet.errors import NucleusError


def import_extra(library: str, extra: str, said: str, purpose: str = "") -> ModuleType:
    """Import a library of an extra.

    Parameters
    ----------
    library : str
    extra : str
        The extra that installs it.
    said : str
        What needs it, for the message.
    purpose : str
        What it does there, for the message.

    Raises
    ------
    NucleusError
        If it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise NucleusError(
            f"{said}: {error.name} is not installed{purpose}. Install it with: "
            f"make install EXTRAS={extra}"
        ) from None
