"""CZI files, written here segment by segment."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data.images import decode_channels, decode_image
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

pytest.importorskip("czifile")

GRAY8, GRAY16, BGR24, BGRA32 = 0, 1, 3, 9
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
XML = """<ImageDocument><Metadata><Information><Image><Dimensions><Channels>
<Channel Id="Channel:0" Name="DAPI"/><Channel Id="Channel:1" Name="GFP"/></Channels><S><Scenes>
<Scene Index="0" Name="A1"/><Scene Index="1" Name="B2"/></Scenes></S></Dimensions></Image></Information>
<Scaling><Items><Distance Id="X"><Value>3.25e-07</Value></Distance>
<Distance Id="Y"><Value>3.25e-07</Value></Distance></Items></Scaling></Metadata></ImageDocument>"""


class Tile(NamedTuple):
    """Pixels and where they are."""

    pixels: NDArray[Any]
    at: dict[str, int]
    """Start along each axis."""
    kind: int = GRAY8
    compression: int = 0
    content: bytes | bytearray | None = None
    """The stored bytes, if they are not those of the pixels."""
    stored: int = 1
    """Divides the stored size, as in a pyramid."""
    part: int = 0
    """Number of the file."""


def segment(kind: bytes, data: bytes) -> bytes:
    return struct.pack("<16sqq", kind, len(data), len(data)) + data


def entry(tile: Tile, position: int) -> bytes:
    """Where a tile is in the image and in the file."""
    height, width = tile.pixels.shape[:2]
    sizes = {"X": width, "Y": height}
    axes = {"X": 0, "Y": 0} | tile.at
    dimensions = [
        struct.pack("<4siifi", axis.encode(), start, size, 0.0, size // tile.stored)
        for axis, start in axes.items()
        for size in [sizes.get(axis, 1)]
    ]
    head = (b"DV", tile.kind, position, tile.part, tile.compression, 0, 0, b"", len(dimensions))
    return struct.pack("<2siqiiBB4si", *head) + b"".join(dimensions)


def czi(tiles: Sequence[Tile], xml: str = XML) -> bytes:
    metadata = struct.pack("<ii248x", len(xml.encode()), 0) + xml.encode()
    body, entries = segment(b"ZISRAWMETADATA", metadata), []
    start = 32 + 512
    for tile in tiles:
        content = tile.pixels.tobytes() if tile.content is None else tile.content
        placed = entry(tile, start + len(body))
        entries.append(placed)
        data = struct.pack("<iiq", 0, 0, len(content)) + placed.ljust(240, b"\0") + content
        body += segment(b"ZISRAWSUBBLOCK", data)
    directory = start + len(body)
    body += segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries))
    head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, b"", b"", 0, directory, start, 0, 0).ljust(
        512, b"\0"
    )
    return segment(b"ZISRAWFILE", head) + body


def read(content: bytes, **chosen: Any) -> NDArray[Any]:
    found = decode_channels(content, "cells.czi", Plane(**chosen))
    return np.stack([found.planes[name] for name in found.segmented], axis=-1)


def planes() -> list[Tile]:
    """Two channels of three depths; the plane at position (1, 2) has the value 12."""
    return [
        Tile(np.full((4, 6), 10 * c + z, np.uint16), {"C": c, "Z": z}, GRAY16)
        for c in range(2)
        for z in range(3)
    ]


def test_one_plane_with_its_pixel_size() -> None:
    decoded = decode_image(czi([Tile(PIXELS, {"C": 0})]), "cells.czi")
    np.testing.assert_array_equal(decoded.image, np.repeat(PIXELS[..., None], 3, axis=2))
    assert (decoded.mode, decoded.pixel_size_um) == ("gray", pytest.approx(0.325))


def test_without_metadata_the_pixel_size_is_unknown() -> None:
    assert decode_image(czi([Tile(PIXELS, {})], "<a/>"), "cells.czi").pixel_size_um is None


def test_a_plane_is_chosen() -> None:
    content = czi(planes())
    assert np.unique(read(content, channel="gfp", z=3)) == [12]
    assert np.unique(read(content, channel="1", z="max")) == [2]
    assert np.unique(read(content, channel="2", z="middle")) == [11]
    with pytest.raises(NucleusError) as caught:
        read(content)
    assert str(caught.value) == (
        "cells.czi: holds 2 channels (DAPI, GFP), 3 z planes. Choose what to segment with "
        "--channel DAPI or a number and --z max, middle or a number."
    )


def test_names_of_channels_may_be_those_of_the_display() -> None:
    unnamed = XML.replace(' Name="DAPI"', "").replace(' Name="GFP"', "")
    shown = '<Channels><Channel Name="a"/><Channel Name="b"/></Channels>'
    display = f"<DisplaySetting>{shown}</DisplaySetting></Metadata>"
    content = czi(planes(), unnamed.replace("</Metadata>", display))
    assert np.unique(read(content, channel="b", z=1)) == [10]


def test_a_scene_is_chosen() -> None:
    content = czi([Tile(PIXELS + 100 * s, {"S": s, "X": 50 * s}) for s in range(2)])
    for choice in ("B2", "b2", "2"):
        np.testing.assert_array_equal(read(content, scene=choice)[..., 0], PIXELS + 100)
    with pytest.raises(NucleusError) as caught:
        read(content)
    assert str(caught.value) == (
        "cells.czi: holds 2 images (A1, B2). Choose one with --scene A1 or a number."
    )


def test_tiles_are_joined_in_their_order_and_gaps_are_black() -> None:
    first, second = np.full((2, 3), 1, np.uint8), np.full((2, 3), 2, np.uint8)
    content = czi([Tile(second, {"M": 1, "X": -2, "Y": 6}), Tile(first, {"M": 0, "X": -4, "Y": 5})])
    assert read(content)[..., 0].tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 2, 2, 2],
        [0, 0, 2, 2, 2],
    ]


def test_smaller_copies_are_ignored() -> None:
    content = czi([Tile(PIXELS, {}), Tile(PIXELS, {}, stored=2, content=bytes(6))])
    np.testing.assert_array_equal(read(content)[..., 0], PIXELS)


@pytest.mark.parametrize(("kind", "channels"), [(BGR24, 3), (BGRA32, 4)])
def test_colours_are_stored_as_blue_green_red(kind: int, channels: int) -> None:
    stored = np.arange(24 * channels, dtype=np.uint8).reshape(4, 6, channels)
    decoded = decode_image(czi([Tile(stored, {}, kind)]), "cells.czi")
    np.testing.assert_array_equal(decoded.image, stored[..., 2::-1])


def hi_lo(pixels: NDArray[np.uint16]) -> bytes:
    """All low bytes, then all high bytes."""
    return pixels.view(np.uint8).reshape(-1, 2).T.tobytes()


WIDE = np.arange(0, 24_000, 1000, dtype=np.uint16).reshape(4, 6)


@pytest.mark.parametrize(
    ("compression", "content"),
    [
        (2, imagecodecs.lzw_encode(WIDE.tobytes())),
        (4, imagecodecs.jpegxr_encode(WIDE)),
        (5, imagecodecs.zstd_encode(WIDE.tobytes())),
        (6, b"\1" + imagecodecs.zstd_encode(WIDE.tobytes())),
        (6, b"\3\1\0" + imagecodecs.zstd_encode(WIDE.tobytes())),
        (6, b"\3\1\1" + imagecodecs.zstd_encode(hi_lo(WIDE))),
    ],
)
def test_compressed_tiles(compression: int, content: bytes) -> None:
    tile = Tile(WIDE, {}, GRAY16, compression, content)
    np.testing.assert_array_equal(read(czi([tile]))[..., 0], WIDE)


def test_a_tile_with_the_compression_of_a_photograph() -> None:
    colours = np.full((8, 8, 3), (200, 10, 20), np.uint8)
    tile = Tile(colours, {}, BGR24, 1, imagecodecs.jpeg8_encode(colours, level=100))
    assert np.abs(read(czi([tile])).astype(int) - colours).max() < 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (czi([Tile(PIXELS, {})])[:700], "file cannot be read"),
        (czi([Tile(PIXELS, {})])[:50], "file cannot be read"),
        (b"ZISRAWFILE", "file cannot be read"),
        (czi([Tile(PIXELS, {}, content=bytes(23))]), "file cannot be read"),
        (czi([Tile(PIXELS, {}, compression=77)]), "compression 77 is not known"),
        (czi([Tile(PIXELS, {}, 4711)]), "file cannot be read"),
        (czi([Tile(PIXELS, {}, compression=5, content=b"no Zstandard")]), "file cannot be read"),
        (
            czi([Tile(PIXELS, {}, compression=5, content=imagecodecs.zstd_encode(bytes(9**6)))]),
            "too small",
        ),
        (czi([]), "it holds no pixels"),
        (czi([Tile(PIXELS, {}, part=1)]), "parts of it are in other files"),
        (czi([Tile(PIXELS, {}), Tile(PIXELS, {"X": 2**31 - 7})]), "and the limit is 2³⁰"),
        (czi([Tile(PIXELS, {"H": h}) for h in range(2)]), "2 positions along the axis H"),
        (czi([Tile(PIXELS, {}, 10)]), "not understood"),  # complex numbers
        (czi([Tile(PIXELS, {})], "<broken"), "file cannot be read"),
    ],
)
def test_files_that_are_an_error(content: bytes, message: str) -> None:
    with pytest.raises(NucleusError, match=f"^cells.czi: .*{message}") as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_a_missing_plane_is_no_black_one() -> None:
    with pytest.raises(NucleusError, match="a plane is missing"):
        read(czi(planes()[:-1]), channel="GFP", z=3)
