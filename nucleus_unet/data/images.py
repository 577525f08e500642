"""Image files of any depth and channel order as arrays."""

import re
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from nucleus_unet.errors import NucleusError

STRETCH_PERCENTILES = (0.01, 99.99)
"""Values at these percentiles of an image with more than 8 bits become 0 and 255."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
"""Where a segment of a JPEG begins; its length follows."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PHOTOMETRICS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
)
_JPEG_IN_TIFF = (tifffile.PHOTOMETRIC.YCBCR, tifffile.COMPRESSION.JPEG)
_ALPHA = ((tifffile.EXTRASAMPLE.ASSOCALPHA,), (tifffile.EXTRASAMPLE.UNASSALPHA,))


@dataclass(frozen=True)
class DecodedImage:
    """An image in 8 bits, and what it was."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    mode: str
    """What the file holds: gray, RGB or RGBA, with the type where it is not uint8."""


def decode_image(content: bytes, name: str) -> DecodedImage:
    """Decode a PNG, TIFF or JPEG file to 8-bit RGB at its own size.

    Gray is repeated in three channels and alpha is dropped. Anything but 8-bit and boolean values
    is stretched linearly so that the `STRETCH_PERCENTILES` of the image, over all its channels
    together, become 0 and 255; what lies beyond them is clipped, and what is not finite is 0.
    Where the two percentiles are equal the smallest and largest value take their place, and a
    constant image becomes 0. An orientation noted in the file is not applied, as masks are drawn
    over the pixels as stored.

    Parameters
    ----------
    content : bytes
        The bytes of the file; its kind is told by them, not by the name.
    name : str
        What an error calls the file.

    Raises
    ------
    NucleusError
        The file is truncated, damaged, of another kind, or has several pages.
    """
    colours, mode = _colours(content, name)
    image = _to_uint8(colours)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return DecodedImage(np.ascontiguousarray(image), mode)


def decode_values(content: bytes, name: str) -> NDArray[Any]:
    """Decode an image file to what it holds, but for alpha.

    Returns
    -------
    ndarray
        (H, W, 1) or (H, W, 3), RGB, values and type as stored; PNGs of less than 8 bits spread
        over 8.

    Raises
    ------
    NucleusError
        As `decode_image`.
    """
    return _colours(content, name)[0]


def _colours(content: bytes, name: str) -> tuple[NDArray[Any], str]:
    """Values without alpha, and the mode of `DecodedImage`."""
    pixels = _decode(content, name)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    mode = {1: "gray", 2: "gray + alpha", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise NucleusError(f"{name}: has {channels} channels: save it as gray, RGB or RGBA")
    if pixels.dtype != np.uint8:
        mode = f"{mode} {pixels.dtype}"
    return pixels.reshape(*pixels.shape[:2], channels)[..., : 3 if channels > 2 else 1], mode


def decode_mask(content: bytes, name: str) -> NDArray[Any]:
    """Decode a PNG or TIFF mask to one channel of its own type.

    Returns
    -------
    ndarray
        (H, W), uint8 in all but odd files, values as of `decode_values`.

    Raises
    ------
    NucleusError
        As `decode_image`, and where the channels differ.
    """
    if content[:2] == _JPEG[:2]:
        raise NucleusError(f"{name}: JPEG blurs the edges of nuclei: save masks as PNG or TIFF")
    pixels = _decode(content, name)
    if pixels.ndim == 2:
        return pixels
    plane = pixels[..., 0]
    if pixels.shape[2] > 2 and not (pixels[..., 1:3] == plane[..., None]).all():
        raise NucleusError(
            f"{name}: its colour channels differ: save one channel, a number a nucleus"
        )
    return np.ascontiguousarray(plane)


def decode_labels(content: bytes, name: str) -> NDArray[np.int64]:
    """Decode a label image, 0 background and one positive number for each nucleus, lossless.

    Returns
    -------
    ndarray
        (H, W) int64, the numbers as of `decode_values`.

    Raises
    ------
    NucleusError
        As `decode_mask`, and where a value is negative, not whole, or 2⁶³ and more.
    """
    plane = decode_mask(content, name)
    # ImageJ writes labels as 32-bit floats
    if plane.dtype.kind == "f" and not np.equal(plane, np.floor(plane)).all():
        raise NucleusError(f"{name}: label values are not whole numbers: save them as integers")
    if plane.size and plane.min() < 0:
        raise NucleusError(f"{name}: has negative labels: background is 0 and nuclei are from 1")
    if plane.size and plane.max() >= 2**63:  # infinity, too
        raise NucleusError(f"{name}: has a label of 2⁶³ or more: number nuclei from 1")
    return plane.astype(np.int64)


def _to_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return np.zeros(pixels.shape, np.uint8)
    if finite.dtype.kind == "i":  # of which NumPy takes differences that overflow
        finite = finite.astype(np.float64)
    low, high = (float(value) for value in np.percentile(finite, STRETCH_PERCENTILES))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    scale = 255 / (high - low) if high > low else 0.0
    stretched = np.clip(np.rint((pixels.astype(np.float64) - low) * scale), 0, 255)
    return np.where(np.isfinite(pixels), stretched, 0).astype(np.uint8)


def _decode(content: bytes, name: str) -> NDArray[Any]:
    """Pixels as stored, (H, W) or (H, W, C) with colours in the order RGB."""
    if content.startswith(_PNG):
        _check_png(content, name)
        return _decode_opencv(content, name)
    if content.startswith(_TIFF):
        return _decode_tiff(content, name)
    if content.startswith(_JPEG):
        _check_jpeg(content, name)
        return _decode_opencv(content, name)
    raise _damaged(name, "empty" if not content else "no PNG, TIFF or JPEG")


def _damaged(name: str, how: object) -> NucleusError:
    return NucleusError(f"{name}: the file is {how}: fetch or save it again")


def _decode_opencv(content: bytes, name: str) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise NucleusError(f"{name}: has more than 2³⁰ pixels: save it as TIFF") from error
        raise _damaged(name, f"damaged ({error.err})") from error
    if pixels is None:
        raise _damaged(name, "damaged or of a kind that OpenCV cannot read")
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        order = [2, 1, 0, 3][: pixels.shape[2]]
        pixels = np.ascontiguousarray(pixels[..., order])
    return pixels


def _check_png(content: bytes, name: str) -> None:
    """Refuse a PNG that is cut short or altered: OpenCV fills what is missing without a word."""
    kind, position = b"", len(_PNG)
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", content, position)
            end = position + 8 + length
            (checksum,) = struct.unpack_from(">I", content, end)
            if zlib.crc32(memoryview(content)[position + 4 : end]) != checksum:
                raise _damaged(name, "damaged (its checksum differs)")
            position = end + 4
    except struct.error as error:
        raise _damaged(name, "truncated") from error


def _check_jpeg(content: bytes, name: str) -> None:
    """Refuse a JPEG that is cut short, as `_check_png` does; cameras may write more after its end."""
    kind, position = b"", 2
    while kind != b"\xda":  # the pixels; a thumbnail is within a segment before
        marker = _MARKER.search(content, position)
        if not marker:
            raise _damaged(name, "truncated")
        kind, length_at = marker[1], marker.end()
        position = length_at + int.from_bytes(content[length_at : length_at + 2])
    if content.find(b"\xff\xd9", position) < 0:
        raise _damaged(name, "truncated")


def _decode_tiff(content: bytes, name: str) -> NDArray[Any]:
    """The one page of a TIFF, values as stored, also where 0 is declared to be white."""
    try:
        with tifffile.TiffFile(BytesIO(content)) as tiff:
            if not tiff.pages:
                raise _damaged(name, "truncated")
            pages = len(tiff.pages)
            if tiff.is_imagej or tiff.is_shaped:  # of a large stack they describe the first alone
                pages = max(pages, tiff.series[0].size // tiff.pages.first.size)
            if pages > 1:
                raise NucleusError(
                    f"{name}: has {pages} pages, and one image a file is read: save the plane to be "
                    "segmented on its own"
                )
            page = tiff.pages.first
            ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
            if max(ends, default=0) > len(content) or not all(page.databytecounts):
                raise _damaged(name, "truncated")
            return _pixels(page, name)
    except NucleusError:
        raise
    except Exception as error:  # of a damaged file anything may come
        raise _damaged(name, f"damaged ({error})") from error


def _pixels(page: tifffile.TiffPage, name: str) -> NDArray[Any]:
    """(H, W) or (H, W, C), with the colours of a palette."""
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if photometric not in _PHOTOMETRICS and (photometric, page.compression) != _JPEG_IN_TIFF:
        raise NucleusError(f"{name}: its colours are {photometric.name}: save it as gray or RGB")
    gray = photometric in (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK)
    channels = page.samplesperpixel
    if (channels == 2 or (channels == 4 and gray)) and page.extrasamples[-1:] not in _ALPHA:
        raise NucleusError(f"{name}: has {channels} channels of gray: save the one to be segmented")
    pixels = page.asarray()
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif":
        raise NucleusError(
            f"{name}: holds {pixels.dtype} values of shape {pixels.shape}: save one plane of real "
            "numbers"
        )
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        palette = np.asarray(page.colormap)
        if palette.max() > 255:  # else it is one of 8 bits
            palette >>= 8
        return np.moveaxis(palette.astype(np.uint8)[:, pixels], 0, -1)
    separate = pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    return np.moveaxis(pixels, 0, -1) if separate else pixels
