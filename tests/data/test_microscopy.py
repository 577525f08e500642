"""ND2 and LIF files, written here byte by byte, and what all files of microscopes have in common."""

import contextlib
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nucleus_unet.data.images import decode_channels, decode_image, decode_labels
from nucleus_unet.data.microscopy import microscope_kind, reader_of, reader_versions
from nucleus_unet.data.prepared import prepare_images
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Plane

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
COLOURS = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)


def read(content: bytes, name: str = "cells", **chosen: Any) -> NDArray[Any]:
    found = decode_channels(content, name, Plane(**chosen))
    return np.stack([found.planes[one] for one in found.segmented], axis=-1)


def value(content: bytes, **chosen: Any) -> int:
    """The value of a plane of constants."""
    [found] = np.unique(read(content, **chosen))
    return int(found)


def lite(name: str, held: Any) -> bytes:
    """A value of the metadata of an ND2."""
    kinds = {bool: (1, "<?"), int: (3, "<I"), float: (6, "<d")}
    kind = 8 if isinstance(held, str) else 11 if isinstance(held, dict) else kinds[type(held)][0]
    head = bytes([kind, len(name) + 1]) + f"{name}\0".encode("utf-16-le")
    if isinstance(held, str):
        return head + f"{held}\0".encode("utf-16-le")
    if isinstance(held, dict):
        body = b"".join(lite(key, item) for key, item in held.items())
        size = struct.pack("<IQ", len(held), len(head) + 12 + len(body))
        return head + size + body + bytes(8 * len(held))
    return head + struct.pack(kinds[type(held)][1], held)


def listed(*items: Any) -> dict[str, Any]:
    return {f"i{number:010}": item for number, item in enumerate(items)}


def chunk(name: bytes, data: bytes, name_length: int = 0) -> bytes:
    length = name_length or len(name)
    return struct.pack("<IIQ", 0x0ABECEDA, length, len(data)) + name.ljust(length, b"\0") + data


def positions(*names: str) -> dict[str, Any]:
    points = listed(*({"dPosX": 0.0, "dPosY": 0.0, "dPosName": name} for name in names))
    return {"eType": 2, "uLoopPars": {"Points": points}}


def depths(count: int) -> dict[str, Any]:
    return {"eType": 4, "uLoopPars": {"uiCount": count, "dZStep": 1.0}}


def times(count: int) -> dict[str, Any]:
    parameters = {"uiCount": count, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}
    return {"eType": 1, "uLoopPars": parameters}


def nd2(
    frames: list[NDArray[Any]],
    channels: tuple[str, ...] = ("DAPI",),
    loops: tuple[dict[str, Any], ...] = (),
    calibrated: bool = True,
    **attributes: Any,
) -> bytes:
    """Frames (H, W, components); the loops are named from the outermost to the innermost one."""
    height, width, components = frames[0].shape
    bits = frames[0].itemsize * 8
    image = {
        **{"uiWidth": width, "uiHeight": height, "uiWidthBytes": width * components * bits // 8},
        **{"uiComp": components, "uiBpcInMemory": bits, "uiBpcSignificant": bits},
        **{"uiSequenceCount": len(frames), "eCompression": 2, **attributes},
    }
    planes = [
        {"sDescription": name, "uiCompCount": components // len(channels), "uiColor": 0}
        for name in channels
    ]
    picture = {"uiCount": len(channels), "sPlaneNew": listed(*planes)}
    seen = {"bCalibrated": calibrated, "dCalibration": 0.325, "sPicturePlanes": picture}
    experiment: dict[str, Any] = {}
    for loop in reversed(loops):
        experiment = loop | ({"ppNextLevelEx": listed(experiment)} if experiment else {})
    chunks = [
        (b"ImageAttributesLV!", lite("SLxImageAttributes", image), 0),
        (b"ImageMetadataSeqLV|0!", lite("SLxPictureMetadata", seen), 0),
    ]
    if experiment:
        chunks.append((b"ImageMetadataLV!", lite("SLxExperiment", experiment), 0))
    for number, frame in enumerate(frames):
        data = frame.tobytes()
        packed = zlib.compress(data) if image["eCompression"] == 0 else data
        chunks.append((b"ImageDataSeq|%d!" % number, bytes(8) + packed, 4072))
    content = chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"))
    places = b""
    for name, data, name_length in chunks:
        places += name + struct.pack("<QQ", len(content), len(data))
        content += chunk(name, data, name_length)
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(content))
    return content + chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", places + end)


def constant(number: int, components: int = 1) -> NDArray[np.uint16]:
    """Component k of the frame has the value 10 * number + k."""
    values = [10 * number + k for k in range(components)]
    return np.broadcast_to(np.array(values, np.uint16), (4, 6, components)).copy()


@pytest.mark.parametrize("compression", [0, 2])
def test_an_nd2_with_one_plane(compression: int) -> None:
    pytest.importorskip("nd2")
    decoded = decode_image(nd2([PIXELS[..., None]], eCompression=compression), "cells.nd2")
    np.testing.assert_array_equal(decoded.image[..., 0], PIXELS)
    assert (decoded.mode, decoded.pixel_size_um) == ("gray", pytest.approx(0.325))


def test_an_nd2_without_calibration_names_no_pixel_size() -> None:
    pytest.importorskip("nd2")
    content = nd2([PIXELS[..., None]], calibrated=False)
    assert decode_image(content, "cells.nd2").pixel_size_um is None


def test_an_nd2_with_all_axes() -> None:
    pytest.importorskip("nd2")
    loops = (times(2), positions("left", "right"), depths(3))
    content = nd2([constant(n, 2) for n in range(12)], ("DAPI", "GFP"), loops)
    chosen = {"scene": "right", "channel": "GFP", "z": 3, "time": 2}
    assert value(content, **chosen) == 111
    assert value(content, **chosen | {"scene": "1", "time": 1}) == 21
    assert value(content, **chosen | {"z": "max", "channel": "1"}) == 110
    with pytest.raises(NucleusError) as caught:
        read(content, "cells.nd2")
    assert str(caught.value) == (
        "cells.nd2: holds 2 images (left, right). Choose one with --scene left or a number."
    )
    with pytest.raises(NucleusError, match=r"2 channels \(DAPI, GFP\), 3 z planes, 2 times"):
        read(content, scene="left")
    with pytest.raises(NucleusError, match=r"holds 2 images \(left, right\), and up is none"):
        read(content, scene="up")


def test_the_colours_of_an_nd2_are_stored_as_blue_green_red() -> None:
    pytest.importorskip("nd2")
    np.testing.assert_array_equal(read(nd2([COLOURS])), COLOURS[..., ::-1])


def test_rows_of_an_nd2_may_be_padded() -> None:
    pytest.importorskip("nd2")
    padded = np.pad(PIXELS, ((0, 0), (0, 2)), constant_values=99)[..., None]
    content = nd2([padded], uiWidth=6, uiWidthBytes=8)
    np.testing.assert_array_equal(read(content)[..., 0], PIXELS)


def lif_image(
    name: str, axes: tuple[tuple[int, int, int], ...], tags: tuple[int, ...], more: str = ""
) -> str:
    """An image with its axes (number, count, bytes from one to the next) and 8-bit channels."""
    channels = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="{tag}" Resolution="8" Min="0" Max="255" '
        f'NameOfMeasuredQuantity="" Unit="" LUTName="LUT {k}" IsLUTInverted="0" BytesInc="{at}" '
        f'BitInc="0">{more if k == 0 else ""}</ChannelDescription>'
        for k, (tag, at) in enumerate(zip(tags, _channel_places(axes, tags), strict=True))
    )
    dimensions = "".join(
        f'<DimensionDescription DimID="{number}" NumberOfElements="{count}" Origin="0" '
        f'Length="{(count - 1) * 5e-7}" Unit="m" BytesInc="{step}" BitInc="0"/>'
        for number, count, step in axes
    )
    return (
        f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
        f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="1" MemoryBlockID="{name}"/></Element>'
    )


def _channel_places(axes: tuple[tuple[int, int, int], ...], tags: tuple[int, ...]) -> list[int]:
    """Interleaved colours, or one channel after the other."""
    step = 1 if axes[0][2] == len(tags) else 24
    return [k * step for k in range(len(tags))]


def lif(images: dict[str, str], blocks: dict[str, bytes], more: str = "") -> bytes:
    elements = "".join(images.values())
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="project"><Children>'
        f"{elements}{more}</Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    content = struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2) + xml
    for name, data in blocks.items():
        head = struct.pack("<IIBQBI", 0x70, 0, 0x2A, len(data), 0x2A, len(name))
        content += head + name.encode("utf-16-le") + data
    return content


PLANE = ((1, 6, 1), (2, 4, 6))
STACK = (*PLANE, (3, 3, 48))
STACKED = b"".join(bytes([10 * c + z]) * 24 for z in range(3) for c in range(2))
DYE = "<ChannelProperty><Key>DyeName</Key><Value>DAPI</Value></ChannelProperty>"


def one_lif(axes: Any = PLANE, tags: Any = (0,), data: bytes = PIXELS.tobytes()) -> bytes:
    return lif({"a": lif_image("a", axes, tags, DYE)}, {"a": data})


def test_a_lif_with_one_plane() -> None:
    pytest.importorskip("liffile")
    decoded = decode_image(one_lif(), "cells.lif")
    np.testing.assert_array_equal(decoded.image[..., 0], PIXELS)
    assert (decoded.mode, decoded.pixel_size_um) == ("gray", pytest.approx(0.5))


def test_a_lif_with_channels_and_depths() -> None:
    pytest.importorskip("liffile")
    content = one_lif(STACK, (0, 0), STACKED)
    assert value(content, channel="LUT 1", z=3) == 12
    assert value(content, channel="dapi", z="max") == 2
    with pytest.raises(NucleusError, match=r"holds 2 channels \(DAPI, LUT 1\), 3 z planes"):
        read(content)


@pytest.mark.parametrize(("tags", "order"), [((1, 2, 3), [0, 1, 2]), ((3, 2, 1), [2, 1, 0])])
def test_the_colours_of_a_lif(tags: tuple[int, ...], order: list[int]) -> None:
    pytest.importorskip("liffile")
    content = one_lif(((1, 6, 3), (2, 4, 18)), tags, COLOURS.tobytes())
    np.testing.assert_array_equal(read(content), COLOURS[..., order])


def test_a_series_of_a_lif_is_chosen() -> None:
    pytest.importorskip("liffile")
    images = {name: lif_image(name, PLANE, (0,)) for name in ("Series 1", "Series 2")}
    content = lif(images, {"Series 1": bytes(24), "Series 2": bytes([7]) * 24})
    assert value(content, scene="series 2") == value(content, scene="2") == 7
    with pytest.raises(NucleusError) as caught:
        read(content, "cells.lif")
    assert str(caught.value) == (
        "cells.lif: holds 2 images (Series 1, Series 2). Choose one with --scene 'Series 1' or a number."
    )


BAD_ND2 = nd2([PIXELS[..., None]])
MISSING = BAD_ND2.replace(b"ImageDataSeq|0!", b"ImageDataSeq|1!")


@pytest.mark.parametrize(
    ("library", "content", "message"),
    [
        ("nd2", BAD_ND2[:-1], "file cannot be read"),
        ("nd2", BAD_ND2[:4], "file cannot be read"),
        ("nd2", MISSING, "file cannot be read"),
        ("nd2", nd2([PIXELS[..., None]], uiHeight=4000), "frame 1 is truncated"),
        ("nd2", nd2([PIXELS[..., None]], uiHeight=2**31), "and the limit is 2³⁰"),
        ("nd2", nd2([PIXELS[..., None]], uiWidth=0), "its size is 4×0"),
        ("nd2", nd2([PIXELS[..., None]], uiBpcInMemory=0), "file cannot be read"),
        ("nd2", nd2([constant(0)], loops=(times(2), times(2))), "file cannot be read"),
        ("liffile", one_lif()[:-1], "file cannot be read"),
        ("liffile", one_lif()[:100], "file cannot be read"),
        ("liffile", one_lif()[:4], "file cannot be read"),
        ("liffile", one_lif(data=bytes(23)), "it is truncated"),
        ("liffile", one_lif(((1, 2**20, 1), (2, 2**20, 2**20))), "it is truncated"),
        ("liffile", one_lif(((1, 6, 1), (3, 4, 6))), "has planes of the axes"),
        ("liffile", one_lif((*PLANE, (10, 2, 24)), data=bytes(48)), "2 positions along the axis M"),
        (
            "liffile",
            lif({}, {}, "<Reference File='/etc/passwd'/>"),
            "its images are in other files",
        ),
    ],
)
def test_files_that_are_an_error(library: str, content: bytes, message: str) -> None:
    pytest.importorskip(library)
    with pytest.raises(NucleusError, match=f"^cells: .*{message}") as caught:
        read(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("library", "content"), [("nd2", BAD_ND2), ("liffile", one_lif())])
def test_a_damaged_byte_gives_pixels_or_an_error_of_the_program(
    library: str, content: bytes
) -> None:
    pytest.importorskip(library)

    @given(at=st.integers(0, len(content) - 1), byte=st.integers(0, 255), end=st.booleans())
    def check(at: int, byte: int, end: bool) -> None:
        damaged = content[:at] + bytes([byte]) + (b"" if end else content[at + 1 :])
        with contextlib.suppress(NucleusError):  # and no other error
            assert read(damaged).ndim == 3

    check()


@pytest.mark.parametrize(
    ("content", "kind", "library"),
    [
        (b"ZISRAWFILE....", "CZI", "czifile"),
        (BAD_ND2, "ND2", "nd2"),
        (one_lif(), "LIF", "liffile"),
        (b"PK\3\4....", "OME-Zarr", "zarr"),
    ],
)
def test_without_the_extra_a_message_names_the_command_that_installs_it(
    content: bytes, kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert microscope_kind(content) == kind
    with pytest.raises(NucleusError) as caught:
        read(content)
    assert str(caught.value) == (
        f"cells: {library} is not installed, which reads {kind} files. Install it with: "
        "make install EXTRAS=microscopy"
    )


def test_the_reader_is_part_of_what_an_image_is_made_from() -> None:
    assert list(reader_versions()) == ["czifile", "nd2", "liffile", "zarr"]
    assert reader_of(BAD_ND2) == f"nd2 {reader_versions()['nd2']}"
    assert reader_of(b"\x89PNG") == ""


def test_a_mask_is_no_file_of_a_microscope() -> None:
    with pytest.raises(NucleusError, match="labels: a mask cannot be a file of the kind ND2"):
        decode_labels(BAD_ND2, "labels")


def test_images_of_a_folder_are_prepared(tmp_path: Path) -> None:
    for library in ("nd2", "liffile"):
        pytest.importorskip(library)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nd2").write_bytes(BAD_ND2)
    (tmp_path / "in/b.LIF").write_bytes(one_lif())
    entries = prepare_images([tmp_path / "in"], tmp_path / "store", "code").entries
    assert [(entry.id, entry.pixel_size_um) for entry in entries] == [
        ("a", pytest.approx(0.325)),
        ("b", pytest.approx(0.5)),
    ]
