"""Which code and libraries the prepared form is made by: another one makes other entries."""

from nucleus_unet.data.prepared import DECODERS
from nucleus_unet.engine.stages import code_digest


def images_code() -> str:
    """Digest of what decides the pixels of decoded images."""
    return code_digest("data.images", libraries=DECODERS)


def labels_code() -> str:
    """Digest of what decides the pixels of merged labels."""
    return code_digest("data.prepared", libraries=DECODERS)
