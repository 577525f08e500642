"""Which plane of a TIFF with several is read."""

from io import BytesIO
from typing import Any

import cv2
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
    channels = decode_channels(content, "cells.tif", Plane(**chosen))
    [name] = channels.segmented
    pixels = channels.planes[name]
    assert pixels.shape == SIZE
    [found] = np.unique(pixels)
    return int(found)


TWO_CHANNELS = ome(stack(2), "CYX", ["GFP", "DAPI"])
ALL_AXES = ome(stack(2, 3, 4), "TCZYX", ["DAPI", "GFP", "RFP"])


@pytest.mark.parametrize(("channel", "expected"), [("DAPI", 1), ("gfp", 0), ("1", 0), ("2", 1)])
def test_a_channel_is_chosen_by_name_or_number(channel: str, expected: int) -> None:
    assert value(TWO_CHANNELS, channel=channel) == expected


def test_the_other_channels_are_read_at_the_same_depth_and_time() -> None:
    chosen = Plane(channel="GFP", z="max", time=2)
    found = decode_channels(ALL_AXES, "cells.tif", chosen)
    assert found.segmented == ("GFP",)
    assert {name: plane.max() for name, plane in found.planes.items()} == {
        "DAPI": 103,
        "GFP": 113,
        "RFP": 123,
    }
    unnamed = decode_channels(ome(stack(3, 2), "ZCYX"), "cells.tif", Plane(channel="2", z=3))
    assert ([*unnamed.planes], unnamed.segmented) == (["1", "2"], ("2",))


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
    for one in (tiff(colours[0], photometric="rgb"), bytes(cv2.imencode(".png", colours[0])[1])):
        with pytest.raises(NucleusError, match=r"^c: is a colour image without channels"):
            decode_image(one, "c", Plane(channel="blue"))


PNG = bytes(cv2.imencode(".png", np.zeros(SIZE, np.uint8))[1])


@pytest.mark.parametrize("content", [PNG, tiff(stack(1)), ome(stack(1, 1), "CZYX", ["GFP"])])
def test_a_file_with_one_plane_needs_no_choice(content: bytes) -> None:
    assert value(content) == value(content, channel="gfp", z=7, time=3, scene="b") == 0
    with pytest.raises(NucleusError, match=r"holds 1 channel.*, and 2 is none of them"):
        value(content, channel="2")


@pytest.mark.parametrize("planes", [(1,), (1, 3)])
def test_the_only_channel_is_not_taken_for_another(planes: tuple[int, ...]) -> None:
    content = ome(stack(*planes), "CZYX"[: len(planes)] + "YX", ["GFP"])
    assert value(content, channel="GFP", z=1) == 0
    with pytest.raises(NucleusError) as caught:
        value(content, channel="DAPI", z=1)
    assert str(caught.value) == "cells.tif: holds 1 channel (GFP), and DAPI is none of them."


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


def series(*names: str) -> bytes:
    """Images of different sizes; the one at position k has the value k."""
    with tifffile.TiffWriter(file := BytesIO(), ome=bool(names)) as writer:
        for k in range(2):
            pixels = np.full((4, 6 + k), k, np.uint8)
            size = 0.25 * (k + 1)
            metadata: dict[str, Any] | None = None
            if names:
                metadata = {"axes": "YX", "Name": names[k]}
                metadata |= {"PhysicalSizeX": size, "PhysicalSizeY": size}
            writer.write(pixels, metadata=metadata, photometric="minisblack")
    return file.getvalue()


@pytest.mark.parametrize("choice", ["2", "after", "After"])
def test_an_image_of_a_file_is_chosen(choice: str) -> None:
    decoded = decode_image(series("Before", "After"), "cells.tif", Plane(scene=choice))
    assert decoded.image.shape == (4, 7, 3)
    assert np.unique(decoded.image) == [1]
    assert decoded.pixel_size_um == 0.5


@pytest.mark.parametrize(
    ("content", "scene", "message"),
    [
        (
            series("on day 1", "on day 2"),
            None,
            "cells.tif: holds 2 images (on day 1, on day 2). Choose one with --scene 'on day 1' or a "
            "number.",
        ),
        (series(), None, "cells.tif: holds 2 images. Choose one with --scene NUMBER."),
        (series("a", "A"), None, "cells.tif: holds 2 images. Choose one with --scene NUMBER."),
        (series("a", "b"), "c", "cells.tif: holds 2 images (a, b), and c is none of them."),
        (series(), "3", "cells.tif: holds 2 images, and 3 is none of them."),
    ],
)
def test_the_images_of_a_file_are_said(content: bytes, scene: str | None, message: str) -> None:
    with pytest.raises(NucleusError) as caught:
        decode_image(content, "cells.tif", Plane(scene=scene))
    assert str(caught.value) == message


def test_a_scene_of_another_colour_mode() -> None:
    with tifffile.TiffWriter(file := BytesIO()) as writer:
        writer.write(np.zeros((4, 6), np.uint8), metadata=None)
        writer.write(np.zeros((4, 5, 4), np.uint8), metadata=None, photometric="separated")
    assert value(file.getvalue(), scene="1") == 0
    with pytest.raises(NucleusError, match="its colour mode SEPARATED cannot be read"):
        value(file.getvalue(), scene="2")


def test_names_of_channels_that_are_equal_are_not_used() -> None:
    content = ome(stack(2), "CYX", ["Gray", "gray"])
    with pytest.raises(
        NucleusError, match=r"holds 2 channels\. Choose what to segment with --channel N"
    ):
        value(content)
    with pytest.raises(NucleusError, match="holds 2 channels, and gray is none of them"):
        value(content, channel="gray")


def test_an_axis_that_cannot_be_chosen() -> None:
    content = tiff(stack(2, 3), metadata={"axes": "ZHYX"}, photometric="minisblack")
    with pytest.raises(NucleusError, match="has 3 positions along the axis H, which is not known"):
        value(content, z=1)


def test_an_annotation_has_one_page() -> None:
    with pytest.raises(NucleusError, match="has 3 pages, but the annotation of an image has one"):
        decode_labels(tiff(stack(3), photometric="minisblack"), "labels.tif")


def test_a_truncated_stack() -> None:
    content = tiff(stack(3), photometric="minisblack", metadata=None)
    with pytest.raises(NucleusError, match="the file is "):
        value(content[:-30], z=3)
