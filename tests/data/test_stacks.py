"""Which plane of a TIFF with several is read."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from nucleus_unet.data.images import decode_channels, decode_image, decode_labels
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Depth, Plane

SIZE = (4, 6)


def stack(*counts: int, dtype: type = np.uint16) -> NDArray[Any]:
    """Planes of constants: the plane at position (1, 2) has the value 12."""
    values: NDArray[Any] = np.zeros(counts, dtype)
    for at in np.ndindex(*counts):
        values[at] = int("".join(map(str, at)))
    return np.broadcast_to(values[..., None, None], (*counts, *SIZE)).astype(dtype)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    tifffile.imwrite(file := BytesIO(), pixels, **options)
    return file.getvalue()


def ome(pixels: NDArray[Any], axes: str, names: list[str] | None = None) -> bytes:
    metadata: dict[str, Any] = {"axes": axes} | ({"Channel": {"Name": names}} if names else {})
    return tiff(pixels, ome=True, metadata=metadata, photometric="minisblack")


def value(content: bytes, **chosen: Any) -> int:
    """The value of the chosen plane."""
    [pixels] = decode_channels(content, "cells.tif", Plane(**chosen)).planes.values()
    assert pixels.shape == SIZE
    [found] = np.unique(pixels)
    return int(found)


TWO_CHANNELS = ome(stack(2), "CYX", ["GFP", "DAPI"])
ALL_AXES = ome(stack(2, 3, 4), "TCZYX", ["DAPI", "GFP", "RFP"])


@pytest.mark.parametrize(("channel", "expected"), [("DAPI", 1), ("gfp", 0), ("1", 0), ("2", 1)])
def test_a_channel_is_chosen_by_name_or_number(channel: str, expected: int) -> None:
    assert value(TWO_CHANNELS, channel=channel) == expected


@pytest.mark.parametrize(("z", "expected"), [("max", 113), ("middle", 112), (1, 110), (4, 113)])
def test_a_depth_is_chosen_by_number_or_rule(z: Depth, expected: int) -> None:
    assert value(ALL_AXES, channel="GFP", z=z, time=2) == expected


@pytest.mark.parametrize(
    "content",
    [
        tiff(stack(3, 2), imagej=True, metadata={"axes": "ZCYX"}),
        ome(stack(3, 2), "ZCYX"),
        tiff(stack(3, 2), metadata={"axes": "ZCYX"}, photometric="minisblack"),
    ],
)
def test_hyperstacks_of_other_programs(content: bytes) -> None:
    assert value(content, channel="2", z=3) == 21
    with pytest.raises(NucleusError, match="holds 2 channels, 3 z planes"):
        value(content)


@pytest.mark.parametrize(
    "content",
    [
        tiff(stack(3), photometric="minisblack"),
        tiff(stack(3), photometric="minisblack", metadata=None),
        tiff(stack(3), imagej=True, metadata={"axes": "ZYX"}),
    ],
)
def test_pages_without_a_meaning_count_as_depths(content: bytes) -> None:
    assert [value(content, z=z) for z in (1, 2, "max")] == [0, 1, 2]


@pytest.mark.parametrize("samples", [2, 4, 5])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_gray_samples_of_a_page_are_channels(samples: int, planar: str) -> None:
    planes = stack(samples)
    pixels = planes if planar == "separate" else np.moveaxis(planes, 0, -1)
    extra = ["unspecified"] * (samples - 1)
    content = tiff(
        np.ascontiguousarray(pixels),
        photometric="minisblack",
        planarconfig=planar,
        extrasamples=extra,
    )
    assert value(content, channel="2") == 1
    with pytest.raises(NucleusError, match=f"cells.tif: holds {samples} channels. Choose what to"):
        value(content)


def test_colours_are_no_channels() -> None:
    colours = np.arange(2 * 24 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    content = tiff(colours, photometric="rgb")
    np.testing.assert_array_equal(decode_image(content, "c", Plane(z=2)).image, colours[1])
    np.testing.assert_array_equal(
        decode_image(tiff(colours[0], photometric="rgb"), "c", Plane(channel="DAPI")).image,
        colours[0],
    )


def test_a_file_with_one_plane_needs_no_choice_and_takes_any() -> None:
    for content in (tiff(stack(1)), ome(stack(1, 1), "CZYX", ["GFP"])):
        assert value(content) == value(content, channel="DAPI", z=7, time=3) == 0


@pytest.mark.parametrize(
    ("content", "chosen", "message"),
    [
        (
            TWO_CHANNELS,
            {},
            "cells.tif: holds 2 channels (GFP, DAPI). Choose what to segment with --channel GFP or a "
            "number.",
        ),
        (
            ALL_AXES,
            {"channel": "DAPI"},
            "cells.tif: holds 3 channels (DAPI, GFP, RFP), 4 z planes, 2 times. Choose what to segment "
            "with --channel DAPI or a number and --z max, middle or a number and --time NUMBER.",
        ),
        (
            TWO_CHANNELS,
            {"channel": "Cy5"},
            "cells.tif: holds 2 channels (GFP, DAPI), and Cy5 is none of them.",
        ),
        (
            ALL_AXES,
            {"channel": "4", "z": 1, "time": 1},
            "cells.tif: holds 3 channels (DAPI, GFP, RFP), and 4 is none of them.",
        ),
        (
            ALL_AXES,
            {"channel": "1", "z": 5, "time": 1},
            "cells.tif: holds 4 z planes, and 5 is none of them.",
        ),
    ],
)
def test_what_a_file_holds_is_said(content: bytes, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(NucleusError) as caught:
        value(content, **chosen)
    assert str(caught.value) == message


def test_images_of_different_sizes() -> None:
    with tifffile.TiffWriter(file := BytesIO()) as writer:
        for side in (4, 5):
            writer.write(np.zeros((side, side), np.uint8), metadata=None)
    with pytest.raises(NucleusError, match="holds 2 images of different sizes"):
        value(file.getvalue(), z=1)


def test_an_annotation_has_one_page() -> None:
    with pytest.raises(NucleusError, match="has 3 pages, but the annotation of an image has one"):
        decode_labels(tiff(stack(3), photometric="minisblack"), "labels.tif")


def test_a_truncated_stack() -> None:
    content = tiff(stack(3), photometric="minisblack", metadata=None)
    with pytest.raises(NucleusError, match="the file is "):
        value(content[:-30], z=3)
