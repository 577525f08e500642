"""Decode image files to arrays: PNG, TIFF, JPEG, BMP, WebP, and the formats of microscopes."""

import logging
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.PngImagePlugin import PngImageFile

from nucleus_unet.data.layouts import KINDS_OF_FILES
from nucleus_unet.data.microscopy import microscope_kind, read_microscope_file
from nucleus_unet.data.pixel_size import tiff_pixel_size_um
from nucleus_unet.data.stacks import (
    MOST_PIXELS,
    Channels,
    Chosen,
    choose_plane,
    require_channel,
    tiff_scenes,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes
from nucleus_unet.recipe import ONLY_PLANE, Plane

STRETCH_PERCENTILES = (0.01, 99.99)
"""Percentiles of an image with more than 8 bits that become 0 and 255."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_BMP, _BMP_BITS = b"BM", 28
"""How a BMP begins, and the position of the number of bits per pixel."""
_WEBP = b"RIFF", b"WEBP"
_WEBP_EXTENDED, _WEBP_ANIMATED = b"VP8X", 2
"""Name of the first part of a WebP with features, and the bit that stands for several images."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PHOTOMETRICS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
)
_GRAY = (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK)
_JPEG_IN_TIFF = (tifffile.PHOTOMETRIC.YCBCR, tifffile.COMPRESSION.JPEG)
_ALPHA = ((tifffile.EXTRASAMPLE.ASSOCALPHA,), (tifffile.EXTRASAMPLE.UNASSALPHA,))
_PNG_COLOUR_TYPE, _PNG_PALETTE = 25, 3
"""Position of the byte with the colour type, and its value if the pixels are indices into a palette."""

_Role = Literal["image", "mask", "labels"]


@dataclass(frozen=True)
class DecodedImage:
    """An 8-bit image, and the mode of the file that it was read from."""

    image: NDArray[np.uint8]
    """Pixels (H, W, 3), RGB."""
    mode: str
    """Channels of the file (gray, RGB or RGBA), and its type unless that is uint8: "gray uint16"."""
    pixel_size_um: float | None
    """Side of a pixel in µm.

    None if the metadata of the file do not name it, or if its pixels are not square.
    """


def decode_image(content: bytes, name: str, plane: Plane = ONLY_PLANE) -> DecodedImage:
    """Decode a PNG, TIFF, JPEG, BMP, WebP, CZI, ND2, LIF or OME-Zarr file to 8-bit RGB at its own size.

    Parameters
    ----------
    content : bytes
        The bytes of the file. They decide what kind of file it is, not the name.
    name : str
        The name of the file for error messages.
    plane : Plane
        Which plane of a stack is the image.

    Raises
    ------
    NucleusError
        If the file is truncated, damaged, an animation or of another kind, if it has no finite value, or
        if it is a stack and no plane is chosen.

    Notes
    -----
    - Gray images are repeated in three channels. An alpha channel is dropped.
    - 8-bit values are kept. False becomes 0 and true 255.
    - Other values are stretched linearly, so that the `STRETCH_PERCENTILES` of all channels together
      become 0 and 255. Values beyond them are clipped, and values that are not finite become 0. If
      both percentiles are equal, the smallest and the largest value are used instead. A constant
      image becomes 0.
    - An orientation in the metadata is not applied, because masks are drawn on the stored pixels.
    - The size of a pixel is read from the metadata of OME and ImageJ. The resolution per inch or cm of
      other files is ignored: many programs write 72 dpi there, whatever the size of a pixel is.
    """
    stored = _decode(content, name, "image", plane)
    colours, mode = _colours(stored.pixels, name)
    if colours.dtype.kind == "f" and not np.isfinite(colours).any():
        raise NucleusError(f"{name}: has no finite value. Save it again.")
    image = _to_uint8(colours)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return DecodedImage(np.ascontiguousarray(image), mode, stored.pixel_size_um)


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 over the pixels of an image, the same for its eight flips and turns.

    Parameters
    ----------
    image : (H, W, 3) uint8

    Examples
    --------
    >>> image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    >>> pixel_digest(image) == pixel_digest(np.rot90(image)) == pixel_digest(image[:, ::-1])
    True
    """
    views = (np.rot90(view, turns) for view in (image, image[:, ::-1]) for turns in range(4))
    shape, content = min((view.shape, view.tobytes()) for view in views)
    return sha256_bytes(repr(shape).encode() + content)


def decode_channels(content: bytes, name: str, plane: Plane = ONLY_PLANE) -> Channels:
    """Decode an image file without changing its values; an alpha channel is dropped.

    The values of a PNG of less than 8 bits are scaled to 8 bits.

    Parameters
    ----------
    content, name, plane
        As for `decode_image`.

    Raises
    ------
    NucleusError
        As for `decode_image`.
    """
    found = _decode(content, name, "image", plane, every_channel=True)
    if found.channels:
        return found.channels
    values = _colours(found.pixels, name)[0]
    names = ("gray",) if values.shape[2] == 1 else ("red", "green", "blue")
    return Channels(dict(zip(names, np.moveaxis(values, -1, 0), strict=True)), names)


def _colours(pixels: NDArray[Any], name: str) -> tuple[NDArray[Any], str]:
    """The values without alpha, and the mode as in `DecodedImage`."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    mode = {1: "gray", 2: "gray + alpha", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise NucleusError(f"{name}: has {channels} channels. Save it as gray, RGB or RGBA.")
    if pixels.dtype != np.uint8:
        mode = f"{mode} {pixels.dtype}"
    return pixels.reshape(*pixels.shape[:2], channels)[..., : 3 if channels > 2 else 1], mode


def decode_mask(content: bytes, name: str) -> NDArray[Any]:
    """Decode a PNG, TIFF or BMP mask to a single channel.

    Parameters
    ----------
    content, name
        As for `decode_image`.

    Returns
    -------
    ndarray
        (H, W), nearly always uint8. Values and type are as `decode_channels` gives them, with two
        exceptions. Of an image with a palette they are the indices. Of a TIFF that declares 0 as white,
        programs mean the nucleus by either value; it is the one with fewer pixels, which is not 0 here.

    Raises
    ------
    NucleusError
        As for `decode_image`, or if the file is a JPEG or WebP, or its channels differ.
    """
    return _plane(content, name, "mask")


def decode_labels(content: bytes, name: str) -> NDArray[np.int64]:
    """Decode a label image: 0 is background, and every positive number is one nucleus.

    Parameters
    ----------
    content, name
        As for `decode_image`.

    Returns
    -------
    ndarray
        (H, W) int64, with the numbers of the file; of an image with a palette these are the indices. A
        file of one bit is read like a mask.

    Raises
    ------
    NucleusError
        As for `decode_mask`, or if a number is negative, not whole, or 2⁶³ or more.
    """
    plane = _plane(content, name, "labels")
    if plane.dtype == np.bool_:
        return plane.astype(np.int64)
    # Floats are allowed because ImageJ saves labels as 32-bit floats.
    if plane.dtype.kind == "f" and not np.equal(plane, np.floor(plane)).all():
        raise NucleusError(f"{name}: some labels are not whole numbers. Save labels as integers.")
    if plane.size and plane.min() < 0:
        raise NucleusError(
            f"{name}: has negative labels. Use 0 for background, 1, 2, ... for nuclei."
        )
    if plane.size and plane.max() >= 2**63:  # also if it is infinite
        raise NucleusError(f"{name}: has a label of 2⁶³ or more. Use 1, 2, ... for nuclei.")
    return plane.astype(np.int64)


def _plane(content: bytes, name: str, role: _Role) -> NDArray[Any]:
    if content.startswith((_JPEG[:2], _WEBP[0])):
        raise NucleusError(
            f"{name}: a mask cannot be a JPEG or WebP, which blurs the edges of nuclei. "
            "Save masks as PNG or TIFF."
        )
    if kind := microscope_kind(content):
        raise NucleusError(
            f"{name}: a mask cannot be a file of the kind {kind}. Save it as PNG or TIFF."
        )
    pixels = _decode(content, name, role).pixels
    if pixels.ndim == 2:
        return pixels
    plane = pixels[..., 0]
    if pixels.shape[2] > 2 and not (pixels[..., 1:3] == plane[..., None]).all():
        raise NucleusError(
            f"{name}: its colour channels differ. "
            "Save a mask as one channel, with one number for each nucleus."
        )
    return np.ascontiguousarray(plane)


def _to_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    finite = pixels[np.isfinite(pixels)]
    if finite.dtype.kind == "i":  # differences of integers may overflow
        finite = finite.astype(np.float64)
    low, high = (float(value) for value in np.percentile(finite, STRETCH_PERCENTILES))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    scale = 255 / (high - low) if high > low else 0.0
    stretched = np.clip(np.rint((pixels.astype(np.float64) - low) * scale), 0, 255)
    return np.where(np.isfinite(pixels), stretched, 0).astype(np.uint8)


def _decode(
    content: bytes,
    name: str,
    role: _Role,
    plane: Plane = ONLY_PLANE,
    *,
    every_channel: bool = False,
) -> Chosen:
    if content.startswith(_TIFF):
        return _decode_tiff(content, name, role, plane, every_channel)
    if microscope_kind(content):
        return read_microscope_file(content, name, plane, every_channel=every_channel)
    reader: type[PngImageFile | BmpImageFile] | None = None
    if content.startswith(_PNG):
        _check_png(content, name)
        reader = PngImageFile if content[_PNG_COLOUR_TYPE] == _PNG_PALETTE else None
    elif content.startswith(_BMP):
        _check_length(content, name, 2, from_start=True)
        reader = BmpImageFile if content[_BMP_BITS : _BMP_BITS + 1] <= b"\x08" else None
    elif content.startswith(_WEBP[0]) and content[8:12] == _WEBP[1]:
        _check_length(content, name, 4, from_start=False)
        if content[12:16] == _WEBP_EXTENDED and int.from_bytes(content[20:21]) & _WEBP_ANIMATED:
            raise _animated(name)
    elif not content.startswith(_JPEG):
        raise _damaged(name, "empty" if not content else f"not a {KINDS_OF_FILES}")
    if reader and role != "image":
        return Chosen(_palette_indices(reader, content, name))
    decode = _decode_jpeg if content.startswith(_JPEG) else _decode_opencv
    pixels = decode(content, name)
    require_channel(plane.channel, name, pixels)
    return Chosen(pixels)


def _damaged(name: str, how: object) -> NucleusError:
    return NucleusError(f"{name}: the file is {how}. Download or save it again.")


def _animated(name: str) -> NucleusError:
    return NucleusError(f"{name}: is an animation. Save the image to use as a file of its own.")


def _decode_opencv(content: bytes, name: str) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise NucleusError(f"{name}: has more than 2³⁰ pixels. Save it as TIFF.") from error
        raise _damaged(name, f"damaged ({error.err})") from error
    if pixels is None:
        raise _damaged(name, "damaged or of a kind that OpenCV cannot read")
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        order = [2, 1, 0, 3][: pixels.shape[2]]
        pixels = np.ascontiguousarray(pixels[..., order])
    return pixels


def _decode_jpeg(content: bytes, name: str) -> NDArray[np.uint8]:
    """The pixels as OpenCV gives them, which fills the missing parts of a damaged JPEG silently."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if height * width > MOST_PIXELS:
            raise NucleusError(f"{name}: has more than 2³⁰ pixels. Save it as TIFF.")
        if colours == "Gray":
            return simplejpeg.decode_jpeg(content, "GRAY", strict=True)[..., 0]
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        raise _damaged(name, f"damaged ({error})") from error


def _palette_indices(
    reader: type[PngImageFile | BmpImageFile], content: bytes, name: str
) -> NDArray[np.uint8]:
    try:
        with reader(BytesIO(content)) as file:
            if file.width * file.height > MOST_PIXELS:
                raise NucleusError(f"{name}: has more than 2³⁰ pixels. Save it as TIFF.")
            return np.asarray(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(name, f"damaged ({error})") from error


def _check_png(content: bytes, name: str) -> None:
    """Raise if a PNG is truncated or damaged, because OpenCV fills missing parts silently."""
    kind, position = b"", len(_PNG)
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", content, position)
            end = position + 8 + length
            (checksum,) = struct.unpack_from(">I", content, end)
            if zlib.crc32(memoryview(content)[position + 4 : end]) != checksum:
                raise _damaged(name, "damaged (its checksum differs)")
            if kind == b"acTL" and content[position + 8 : position + 12] > b"\0\0\0\1":
                raise _animated(name)
            position = end + 4
    except struct.error as error:
        raise _damaged(name, "truncated") from error


def _check_length(content: bytes, name: str, position: int, *, from_start: bool) -> None:
    """Raise if a BMP or WebP is shorter than it says at a position of its header."""
    length = int.from_bytes(content[position : position + 4], "little")
    if len(content) < length + (0 if from_start else position + 4):
        raise _damaged(name, "truncated")


def _decode_tiff(
    content: bytes, name: str, role: _Role, plane: Plane, every_channel: bool
) -> Chosen:
    """The only page of a TIFF, or the chosen plane of an image."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # an error says what is wrong
    try:
        with tifffile.TiffFile(BytesIO(content)) as tiff:
            if not tiff.pages:
                raise _damaged(name, "truncated")
            pages = len(tiff.pages)
            if tiff.is_imagej or tiff.is_shaped:  # a large stack may list only its first page
                pages = max(pages, tiff.series[0].size // tiff.pages.first.size)
            for page in tiff.pages:
                ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
                if max(ends, default=0) > len(content) or not all(page.databytecounts):
                    raise _damaged(name, "truncated")
            page = tiff.pages.first
            is_named = tiff.is_ome and page.photometric == tifffile.PHOTOMETRIC.MINISBLACK
            if pages == 1 and not (role == "image" and (is_named or _has_channels(page))):
                pixels = _pixels(page, name, role)
                require_channel(plane.channel, name, pixels)
                return Chosen(pixels, tiff_pixel_size_um(tiff))
            if role != "image":
                raise NucleusError(
                    f"{name}: has {pages} pages, but the annotation of an image has one. Save it as a "
                    "file of its own."
                )
            scenes = tiff_scenes(tiff, name, lambda page: _check_kind(page.dtype, page, name))
            return choose_plane(scenes, name, plane, every_channel=every_channel)
    except NucleusError:
        raise
    except Exception as error:  # tifffile raises errors of any type for damaged files
        raise _damaged(name, f"damaged ({error})") from error


def _has_channels(page: tifffile.TiffPage) -> bool:
    """Whether the samples of a pixel are gray channels, not colours or alpha."""
    samples, gray = page.samplesperpixel, page.photometric in _GRAY
    alpha = page.extrasamples[-1:] in _ALPHA
    return samples > 1 and gray and not (alpha and samples == 2)


def _check_kind(dtype: np.dtype[Any] | None, page: tifffile.TiffPage, name: str) -> None:
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if photometric not in _PHOTOMETRICS and (photometric, page.compression) != _JPEG_IN_TIFF:
        raise NucleusError(
            f"{name}: its colour mode {photometric.name} cannot be read. Save it as gray or RGB."
        )
    if dtype is None or dtype.kind not in "buif":
        raise NucleusError(f"{name}: contains {dtype} values. Save real numbers.")


def _pixels(page: tifffile.TiffPage, name: str, role: _Role) -> NDArray[Any]:
    """Pixels (H, W) or (H, W, C).

    Indices into a palette are replaced by its colours in an image only.
    """
    _check_kind(page.dtype, page, name)
    photometric, pixels = tifffile.PHOTOMETRIC(page.photometric), page.asarray()
    if pixels.ndim not in (2, 3):
        raise _damaged(name, f"damaged (its pixels have the shape {pixels.shape})")
    is_mask = role == "mask" or (role == "labels" and pixels.dtype == np.bool_)
    if is_mask and photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "bu":
        # Viewers show the inverse; but tifffile and scikit-image write every bool array like this.
        return min(np.invert(pixels), pixels, key=np.count_nonzero)
    if photometric == tifffile.PHOTOMETRIC.PALETTE and role == "image":
        palette = np.asarray(page.colormap)
        if palette.max() > 255:  # 16-bit colours, as TIFF demands; some programs write 8-bit ones
            palette >>= 8
        return np.moveaxis(palette.astype(np.uint8)[:, pixels], 0, -1)
    separate = pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    return np.moveaxis(pixels, 0, -1) if separate else pixels
