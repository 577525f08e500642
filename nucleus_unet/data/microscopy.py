"""Read the files of microscopes: CZI, ND2, LIF and OME-Zarr. Their libraries are an extra."""

from collections.abc import Callable, Mapping
from importlib import metadata
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

from numpy.typing import NDArray

from nucleus_unet.data.czi import czi_scenes
from nucleus_unet.data.ome_zarr import zarr_scenes
from nucleus_unet.data.pixel_size import square_side_um
from nucleus_unet.data.stacks import MOST_PIXELS, Chosen, Scenes, Stack, choose_plane
from nucleus_unet.errors import NucleusError
from nucleus_unet.extras import import_extra
from nucleus_unet.recipe import Plane

_ND2_HEADER = 4096  # before the pixels of a frame that is not compressed


class _Kind(NamedTuple):
    """A kind of file."""

    name: str
    magic: bytes
    """How the files begin."""
    library: str
    scenes: Callable[[Any, bytes], Scenes]
    """Opens a file with the library."""


def microscope_kind(content: bytes) -> str | None:
    """The name of the kind of a microscope's file; None for other files."""
    kind = _kind(content)
    return kind.name if kind else None


def reader_versions() -> dict[str, str | None]:
    """The version of each library of the extra, or None if it is not installed."""
    found: dict[str, str | None] = {}
    for kind in _KINDS:
        try:
            found[kind.library] = metadata.version(kind.library)
        except metadata.PackageNotFoundError:
            found[kind.library] = None
    return found


def reader_of(content: bytes) -> str:
    """Library and version that decide the pixels of a microscope's file; empty for other files."""
    kind = _kind(content)
    return f"{kind.library} {reader_versions()[kind.library]}" if kind else ""


def read_microscope_file(
    content: bytes, name: str, plane: Plane, *, every_channel: bool = False
) -> Chosen:
    """Read the chosen plane of a CZI, ND2, LIF or OME-Zarr file.

    Parameters
    ----------
    content : bytes
        The bytes of the file. An OME-Zarr, which is a folder, is a zip file of it.
    name : str
        Name of the file, for messages.
    plane, every_channel
        As for `choose_plane`.

    Raises
    ------
    NucleusError
        If the extra is not installed, the file is damaged or of an unusual kind, a plane has more than
        `MOST_PIXELS`, or as for `choose_plane`.
    """
    kind = _kind(content)
    assert kind is not None
    library = import_extra(kind.library, "microscopy", name, f", which reads {kind.name} files")
    try:
        names, opened = kind.scenes(library, content)
        limited = names, _limited(opened, name)
        chosen = choose_plane(limited, name, plane, every_channel=every_channel)
    except NucleusError:
        raise
    except Exception as error:  # the libraries raise errors of any type
        why = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise NucleusError(
            f"{name}: this {kind.name} file cannot be read ({why}). Copy it again, or export it as "
            "OME-TIFF."
        ) from error
    if chosen.pixels.dtype.kind not in "buif":
        raise NucleusError(f"{name}: contains {chosen.pixels.dtype} values. Save real numbers.")
    return chosen


def _kind(content: bytes) -> _Kind | None:
    return next((kind for kind in _KINDS if content.startswith(kind.magic)), None)


def _limited(opened: Callable[[int], Stack], name: str) -> Callable[[int], Stack]:
    """Refuses an image that is too large, before its pixels are read."""

    def open_limited(scene: int) -> Stack:
        stack = opened(scene)
        height, width = stack.size
        if height < 1 or width < 1:
            raise ValueError(f"its size is {height}×{width}")
        if height * width > MOST_PIXELS:
            raise NucleusError(
                f"{name}: has {height}×{width} pixels, and the limit is 2³⁰. Export a smaller part."
            )
        return stack

    return open_limited


def _nd2_scenes(nd2: Any, content: bytes) -> Scenes:
    """The positions of an ND2."""
    file = nd2.ND2File(BytesIO(content))
    found = file.attributes
    channels = found.channelCount or 1
    colours = found.componentCount // channels
    loops = [(_ND2_AXES.get(loop.type, loop.type), loop.count) for loop in file.experiment]
    points = [loop.parameters.points for loop in file.experiment if loop.type == "XYPosLoop"]
    scenes = [point.name or "" for point in points[0]] if points else [""]
    counts = {"C": channels if colours == 3 else found.componentCount}
    counts |= {axis: count for axis, count in loops if axis != "P"}
    if len(dict(loops)) != len(loops):
        raise ValueError("an axis occurs twice")
    shape = (channels, found.heightPx, found.widthPx, colours)

    def stack(scene: int) -> Stack:
        def read(at: Mapping[str, int]) -> NDArray[Any]:
            index = 0  # of the frame: the first loop is the outermost
            for axis, count in loops:
                index = index * count + (scene if axis == "P" else at[axis])
            _require_frame(file, index, content)
            planes = file.read_frame(index).reshape(shape)
            if colours == 3:  # as blue, green, red, by ome/bioformats pull request 4321
                return planes[at["C"], ..., ::-1]
            return planes[at["C"] // colours, ..., at["C"] % colours]

        # The public metadata fail for planes without a dye.
        seen = file._rdr._cached_raw_metadata()
        listed = seen.get("sPicturePlanes", {})
        planes = (listed.get("sPlaneNew") or listed.get("sPlane", {})).values()
        names = [found.get("sDescription", "") for found in planes]
        side = seen.get("dCalibration") if seen.get("bCalibrated") else None
        size = square_side_um(side, side)
        return Stack(shape[1:3], counts, names, size, read)

    return scenes, stack


def _require_frame(file: Any, index: int, content: bytes) -> None:
    """Raise if a frame is missing or incomplete, because the library returns zeros for it."""
    offset, _ = file._rdr.chunkmap[f"ImageDataSeq|{index}!".encode()]
    length = file.attributes.heightPx * (file.attributes.widthBytes or 0)
    is_compressed = file.attributes.compressionType == "lossless"
    if not is_compressed and offset + _ND2_HEADER + length > len(content):
        raise ValueError(f"frame {index + 1} is truncated")


def _lif_scenes(liffile: Any, content: bytes) -> Scenes:
    """The series of a LIF."""
    file = liffile.LifFile(BytesIO(content), squeeze=False)
    if file.type.name != "LIF" or file.xml_element.find(".//Children/Reference") is not None:
        raise ValueError("its images are in other files")
    images = list(file.images)

    def stack(scene: int) -> Stack:
        image = images[scene]
        if image.is_flim:
            raise ValueError(f"{image.path} is a measurement of lifetimes and no image")
        sizes, inner = image.sizes, image.frames.frame_dims
        if inner not in (("Y", "X"), ("Y", "X", "S")) or sizes.get("S", 3) != 3:
            raise ValueError(f"{image.path} has planes of the axes {''.join(inner)}")
        if prod(sizes.values()) * image.dtype.itemsize > image.memory_block.size:
            raise ValueError("it is truncated")
        counts = {axis: count for axis, count in sizes.items() if axis not in inner}
        described = image.xml_element.find("Data/Image/ImageDescription")
        names = [
            next(
                (p.findtext("Value", "") for p in found if p.findtext("Key") == "DyeName"),
                found.get("LUTName", ""),
            )
            for found in described.iterfind("Channels/ChannelDescription")
        ]
        return Stack(
            (sizes["Y"], sizes["X"]),
            counts,
            names,
            _lif_pixel_size_um(described),
            lambda at: image.frame(**at),
        )

    return [image.path for image in images], stack


def _lif_pixel_size_um(described: Any) -> float | None:
    """The side of a pixel; LIF stores the distance from the first to the last one."""
    sides = []
    for number in "12":  # x and y
        found = described.find(f"Dimensions/DimensionDescription[@DimID='{number}']")
        steps = int(found.get("NumberOfElements")) - 1
        sides.append((float(found.get("Length")) / steps if steps else None, found.get("Unit")))
    (x, unit_x), (y, unit_y) = sides
    return square_side_um(x, y, unit_x, unit_y)


_ND2_AXES = {"XYPosLoop": "P", "ZStackLoop": "Z", "TimeLoop": "T", "NETimeLoop": "T"}
_KINDS = (
    _Kind("CZI", b"ZISRAWFILE", "czifile", czi_scenes),
    _Kind("ND2", b"\xda\xce\xbe\x0a", "nd2", _nd2_scenes),
    _Kind("LIF", b"\x70\0\0\0", "liffile", _lif_scenes),
    _Kind("OME-Zarr", b"PK\x03\x04", "zarr", zarr_scenes),
)
