import struct
import zlib
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from nucleus_unet.data.images import decode_channels, decode_image, decode_labels, decode_mask
from nucleus_unet.errors import NucleusError

RED, BLUE = (200, 10, 20), (1, 2, 250)
COLOURS = np.array([[RED, BLUE]], np.uint8)
GRAY = np.array([[0, 7, 255]], np.uint8)
RAMP = np.arange(1001, dtype=np.uint16)[None] + 1000


def animation(kind: str) -> bytes:
    """Two images in a file, as animated pictures are."""
    first, second = (Image.new("RGB", (9, 8), (grey,) * 3) for grey in (10, 200))
    first.save(file := BytesIO(), kind, save_all=True, append_images=[second])
    return file.getvalue()


def encode(pixels: NDArray[Any], suffix: str = ".png", options: tuple[int, ...] = ()) -> bytes:
    """Encode with OpenCV, which expects the order blue, green, red."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def stack(pixels: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(pixels[..., None], 3, axis=2)


THUMBNAIL = b"\xff\xe1" + struct.pack(">H", 2 + len(encode(GRAY, ".jpg"))) + encode(GRAY, ".jpg")
"""A segment of a JPEG that contains a complete JPEG."""
JPEG_OF_40000_PX = encode(COLOURS, ".jpg").replace(
    struct.pack(">HH", 1, 2), struct.pack(">HH", 40_000, 40_000)
)
JPEG_OF_NO_SIZE = encode(COLOURS, ".jpg").replace(struct.pack(">HH", 1, 2), bytes(4))
with tifffile.TiffFile(BytesIO(tiff(RAMP))) as _opened:
    _counts = _opened.pages.first.tags["StripByteCounts"]
    _at, _bytes = _counts.valueoffset, _counts.valuebytecount
TIFF_WITHOUT_PIXELS = tiff(RAMP)[:_at] + bytes(_bytes) + tiff(RAMP)[_at + _bytes :]
_LARGE = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
PNG_OF_40000_PX = encode(GRAY).replace(
    encode(GRAY)[12:33], _LARGE + struct.pack(">I", zlib.crc32(_LARGE))
)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (encode(COLOURS), "RGB"),
        (encode(np.dstack([COLOURS, [[0, 9]]]).astype(np.uint8)), "RGBA"),
        (encode(COLOURS, ".tif"), "RGB"),
        (tiff(COLOURS, photometric="rgb"), "RGB"),
        (tiff(np.moveaxis(COLOURS, 2, 0), photometric="rgb", planarconfig="separate"), "RGB"),
    ],
)
def test_channels_are_in_the_order_rgb(content: bytes, mode: str) -> None:
    decoded = decode_image(content, "cell")
    np.testing.assert_array_equal(decoded.image, COLOURS)
    assert decoded.image.dtype == np.uint8
    assert decoded.mode == mode


def test_a_jpeg_has_the_pixels_that_opencv_gives() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (33, 47, 3), np.uint8)
    for pixels in (noise, noise[..., 0]):
        content = encode(pixels, ".jpg")
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode_image(content, "cell").image, expected)


def test_a_jpeg_is_decoded_in_the_order_rgb() -> None:
    red = np.full((16, 16, 3), RED, np.uint8)
    assert np.abs(decode_image(encode(red, ".jpg"), "cell").image.astype(int) - red).max() < 5


def test_a_jpeg_may_have_bytes_after_its_end_and_a_thumbnail() -> None:
    content = encode(COLOURS, ".jpg")
    expected = decode_image(content, "cell").image
    for more in (b"\n", bytes(100), b"SEFH" + bytes(20) + b"SEFT", content):
        np.testing.assert_array_equal(decode_image(content + more, "cell").image, expected)
    for within in (THUMBNAIL, b"\xff\xff" + THUMBNAIL):
        np.testing.assert_array_equal(
            decode_image(content[:2] + within + content[2:], "cell").image, expected
        )


@pytest.mark.parametrize("content", [encode(GRAY), tiff(GRAY), encode(GRAY, ".tif")])
def test_gray_is_repeated_in_three_channels(content: bytes) -> None:
    decoded = decode_image(content, "cell")
    np.testing.assert_array_equal(decoded.image, stack(GRAY))
    assert decoded.mode == "gray"


@pytest.mark.parametrize(
    "content",
    [
        encode(RAMP),
        tiff(RAMP),
        encode(RAMP, ".tif", (cv2.IMWRITE_TIFF_COMPRESSION, 5)),  # LZW
        tiff(RAMP.astype(np.float32)),
        tiff(RAMP.astype(np.int32)),
        tiff(RAMP, compression="zlib"),
    ],
)
def test_more_than_8_bits_are_stretched(content: bytes) -> None:
    decoded = decode_image(content, "cell")
    # 1000.1 becomes 0 and 1999.9 becomes 255, so 1500 becomes 255 * 499.9 / 999.8.
    assert decoded.image[0, [0, 10, 500, 990, 1000], 0].tolist() == [0, 3, 128, 252, 255]
    np.testing.assert_array_equal(decode_channels(content, "cell").planes["gray"], RAMP)


def test_colours_are_stretched_together() -> None:
    image = np.array([[[4000, 2000, 1000], [0, 0, 0]]], np.uint16)
    decoded = decode_image(encode(image), "cell")
    assert decoded.image[0, 0].tolist() == [255, 128, 64]


@pytest.mark.parametrize("value", [0, 700])
def test_a_constant_image_becomes_black(value: int) -> None:
    decoded = decode_image(encode(np.full((4, 5), value, np.uint16)), "cell")
    assert decoded.image.shape == (4, 5, 3)
    assert not decoded.image.any()


def test_a_single_bright_pixel_is_kept() -> None:
    image = np.zeros((100, 100), np.uint16)
    image[3, 4] = 900
    decoded = decode_image(encode(image), "cell")
    assert decoded.image[3, 4].tolist() == [255, 255, 255]


def test_values_that_are_not_finite_become_0() -> None:
    image = np.array([[np.nan, 0, 1, np.inf]], np.float32)
    assert decode_image(tiff(image), "cell").image[0, :, 0].tolist() == [0, 0, 255, 0]


def test_a_boolean_tiff_becomes_0_and_255() -> None:
    image = np.array([[True, False, False]])
    assert decode_image(tiff(image), "cell").image[0, :, 0].tolist() == [255, 0, 0]
    assert decode_mask(tiff(image), "mask").tolist() == image.tolist()


def test_signed_values_are_stretched_without_overflow() -> None:
    image = np.full((70, 70), 10_000, np.int16)
    image[:10, :10], image[69, 69] = 12_000, -32_768  # percentile 0.01 is halfway to the outlier
    low = 10_000 - 0.51 * 42_768
    seen = decode_image(tiff(image), "cell").image[..., 0]
    assert (seen[69, 69], seen[5, 5]) == (0, 255)
    assert seen[40, 40] == round(255 * (10_000 - low) / (12_000 - low))


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_stretching_keeps_the_order_of_values(image: NDArray[np.uint16]) -> None:
    decoded = decode_image(encode(image), "cell").image[..., 0]
    order = np.argsort(image, axis=None)
    assert (np.diff(decoded.ravel()[order].astype(int)) >= 0).all()
    assert decoded.max() == (255 if image.min() < image.max() else 0)


@given(st.data())
def test_every_truncated_png_is_an_error(data: st.DataObject) -> None:
    content = encode(np.arange(600, dtype=np.uint16).reshape(20, 30))
    length = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(NucleusError, match=r"^cell\.png: the file is"):
        decode_image(content[:length], "cell.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"GIF89a", "not a PNG, TIFF, JPEG, BMP, WebP, CZI, ND2, LIF or OME-Zarr"),
        (encode(COLOURS)[:-5], "truncated"),
        (encode(COLOURS).replace(b"IDAT", b"IDAR"), "damaged .its checksum differs"),
        (encode(COLOURS, ".jpg")[:-2], "damaged .Premature end of JPEG file"),
        (encode(COLOURS, ".jpg")[:4] + b"\xff\xd9", "damaged"),
        (encode(COLOURS, ".jpg")[:200], "damaged"),
        (encode(COLOURS, ".jpg")[:2] + THUMBNAIL + encode(COLOURS, ".jpg")[2:-2], "Premature end"),
        (encode(RAMP, ".jpg")[:-40] + b"\xff\xd9", "damaged .Corrupt JPEG data: premature end"),
        (JPEG_OF_NO_SIZE, "damaged"),
        (JPEG_OF_40000_PX, "has more than 2³⁰ pixels. Save it as TIFF"),
        (PNG_OF_40000_PX, "has more than 2³⁰ pixels. Save it as TIFF"),
        (tiff(RAMP)[:1500], "truncated"),
        (encode(RAMP, ".tif")[:100], "truncated"),
        (tiff(RAMP)[:6], "damaged"),
        (TIFF_WITHOUT_PIXELS, "truncated"),
        (tiff(RAMP, compression="zlib")[:-300] + bytes(300), "damaged"),
        (tiff(np.zeros((2, 8, 9), np.uint8)), "holds 2 z planes"),
        (tiff(np.zeros((7, 8, 9), np.uint8), imagej=True, truncate=True), "holds 7 "),
        (tiff(np.zeros((7, 8, 9), np.uint8), truncate=True), "holds 7 z planes"),
        (tiff(np.zeros((8, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig"),
         "holds 5 channels"),
        (tiff(np.zeros((8, 9), np.complex64)), "Save real numbers"),
        (tiff(np.full((2, 2), np.nan, np.float32)), "has no finite value"),
        (animation("PNG"), "is an animation. Save the image to use as a file of its own"),
        (animation("WEBP"), "is an animation. Save the image to use as a file of its own"),
        (tiff(np.zeros((8, 9, 2), np.uint8), photometric="minisblack", planarconfig="contig"),
         "holds 2 channels"),
        (tiff(np.zeros((8, 9, 4), np.uint8), photometric="minisblack", planarconfig="contig"),
         "holds 4 channels"),
        (tiff(np.zeros((4, 8, 9), np.uint8), photometric="minisblack", planarconfig="separate"),
         "holds 4 channels"),
        (tiff(np.zeros((8, 9, 4), np.uint8), photometric="separated"), "colour mode SEPARATED cannot"),
    ],
)  # fmt: skip
@pytest.mark.fault(
    "Bad input",
    "images cut short, damaged, animated, without a finite value or too large",
    "refused in one line that says what to do",
)
def test_images_that_are_an_error(content: bytes, message: str) -> None:
    with pytest.raises(NucleusError, match=f"^cell.*{message}"):
        decode_image(content, "cell")


COMPRESSIONS = (None, "zlib", "lzw", "packbits")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression_of_a_tiff_gives_the_stored_values(compression: str | None) -> None:
    turned = (274, 3, 1, 6, True)
    both = np.dstack([COLOURS, [[0, 9]]]).astype(np.uint8)
    for pixels, options in (
        (RAMP, {}),
        (GRAY, {"photometric": "miniswhite"}),
        (COLOURS, {"photometric": "rgb", "extratags": [turned]}),
        (both, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    ):
        found = decode_channels(tiff(pixels, compression=compression, **options), "cell")
        expected = {"gray": pixels}
        if pixels.ndim == 3:
            expected = dict(zip(("red", "green", "blue"), np.moveaxis(pixels, -1, 0), strict=False))
        assert found.segmented == tuple(expected)
        np.testing.assert_equal(found.planes, expected)


def test_a_single_plane_with_the_description_of_its_stack() -> None:
    content = tiff(GRAY, description="ImageJ=1.54f\nimages=7\n", metadata=None)
    np.testing.assert_array_equal(decode_channels(content, "cell").planes["gray"], GRAY)


def test_a_palette_of_8_or_16_bit_colours() -> None:
    palette = np.zeros((3, 256), np.uint16)
    palette[:, 7] = 95, 130, 194
    indices = np.array([[0, 7]], np.uint8)
    for scale in (1, 257):
        content = tiff(indices, photometric="palette", colormap=palette * np.uint16(scale))
        assert decode_image(content, "cell").image.tolist() == [[[0, 0, 0], [95, 130, 194]]]


def test_gray_values_of_12_bits() -> None:
    # Two values are stored in three bytes.
    content = bytearray(tiff(np.zeros((1, 3), np.uint8)))
    with tifffile.TiffFile(BytesIO(content)) as file:
        page = file.pages.first
        for tag, value in (("BitsPerSample", 12), ("ImageWidth", 2)):
            struct.pack_into("<H", content, page.tags[tag].valueoffset, value)
        content[page.dataoffsets[0] : page.dataoffsets[0] + 3] = b"\xab\xc1\x23"
    assert decode_channels(bytes(content), "cell").planes["gray"][0].tolist() == [0xABC, 0x123]


def test_a_mask_has_the_stored_values() -> None:
    for content in (encode(GRAY), tiff(GRAY), encode(stack(GRAY))):
        np.testing.assert_array_equal(decode_mask(content, "mask"), GRAY)


@pytest.mark.parametrize("dtype", [bool, np.uint8])
@pytest.mark.parametrize("decode", [decode_mask, decode_labels])
def test_a_mask_that_declares_0_as_white_has_few_pixels(decode: Any, dtype: type) -> None:
    nucleus = np.zeros((6, 8), bool)
    nucleus[2:4, 2:5] = True
    stored = nucleus.astype(dtype) * dtype(255)
    for pixels in (stored, np.invert(stored)) if dtype is bool or decode is decode_mask else ():
        content = tiff(pixels, photometric="miniswhite")
        np.testing.assert_array_equal(decode(content, "mask") != 0, nucleus)
    content = tiff(stored, photometric="minisblack")
    np.testing.assert_array_equal(decode(content, "mask") != 0, nucleus)


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
def test_bmp_and_lossless_webp(suffix: str) -> None:
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    content = encode(image, suffix, options)
    np.testing.assert_array_equal(decode_image(content, "cell").image, image)
    for end in (1, len(content) // 2, 20):
        with pytest.raises(NucleusError, match="cell: the file is "):
            decode_image(content[:-end] if end == 1 else content[:end], "cell")


def test_masks_and_labels_as_bmp() -> None:
    for numbers in (GRAY, np.array([[0, 1, 1]], np.uint8)):
        np.testing.assert_array_equal(decode_labels(encode(numbers, ".bmp"), "labels"), numbers)
        np.testing.assert_array_equal(decode_mask(encode(stack(numbers), ".bmp"), "m"), numbers)
    with pytest.raises(NucleusError, match="mask cannot be a JPEG or WebP"):
        decode_mask(encode(GRAY, ".webp"), "mask")


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_palette_image_with_too_many_pixels_is_not_decoded(kind: str) -> None:
    Image.fromarray(GRAY, "P").save(file := BytesIO(), kind)
    content = bytearray(file.getvalue())
    if kind == "PNG":
        struct.pack_into(">II", content, 16, 2**16, 2**16)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    else:
        struct.pack_into("<ii", content, 18, 2**16, 2**16)
    with pytest.raises(NucleusError, match="mask: has more than 2³⁰ pixels"):
        decode_mask(bytes(content), "mask")


def test_palettes_of_masks_and_labels_are_ignored() -> None:
    numbers = np.array([[0, 1, 2], [3, 200, 0]], np.uint8)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    palette[0], palette[1] = 255, 0  # QuPath's background is white
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette.tobytes())
    for kind in ("PNG", "TIFF", "BMP"):
        content = BytesIO()
        image.save(content, kind)
        np.testing.assert_array_equal(decode_labels(content.getvalue(), "labels"), numbers)
        np.testing.assert_array_equal(decode_mask(content.getvalue(), "mask"), numbers)
        shown = decode_image(content.getvalue(), "cell").image
        np.testing.assert_array_equal(shown, palette[numbers])
    few = numbers % 4  # two bits per pixel, with a transparent background
    image = Image.fromarray(few, "P")
    image.putpalette(palette[:4].tobytes())
    image.save(content := BytesIO(), "PNG", bits=2, transparency=0)
    np.testing.assert_array_equal(decode_labels(content.getvalue(), "labels"), few)
    with pytest.raises(NucleusError, match="mask: the file is truncated"):
        decode_mask(content.getvalue()[:-20], "mask")


def test_labels_are_lossless() -> None:
    wide = np.array([[0, 70_000, 2**31 - 1]], np.int32)
    for content, expected in (
        (tiff(wide), wide),
        (tiff(wide.astype(np.uint32)), wide),
        (encode(RAMP), RAMP),
        (tiff(RAMP.astype(np.float32)), RAMP),
        (encode(GRAY), GRAY),
    ):
        labels = decode_labels(content, "labels")
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode(COLOURS), "its colour channels differ"),
        (encode(COLOURS, ".jpg"), "a mask cannot be a JPEG or WebP, which blurs the edges"),
        (tiff(np.array([[0, 1.5]], np.float32)), "not whole numbers"),
        (tiff(np.array([[0, np.nan]], np.float32)), "not whole numbers"),
        (tiff(np.array([[0, -1]], np.int16)), "has negative labels"),
        (tiff(np.array([[0, np.inf]], np.float32)), "has a label of 2⁶³ or more"),
        (tiff(np.array([[0, 2**63]], np.uint64)), "has a label of 2⁶³ or more"),
    ],
)
def test_labels_that_are_an_error(content: bytes, message: str) -> None:
    with pytest.raises(NucleusError, match=f"^labels: .*{message}"):
        decode_labels(content, "labels")
