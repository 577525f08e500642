"""Nuclei from regions of interest (ROIs) of ImageJ and Fiji."""

import zipfile
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from nucleus_unet.data.annotations.polygons import draw_oval, draw_polygons, read_ring
from nucleus_unet.data.masks import DataProblem, Region
from nucleus_unet.data.raw import DAMAGED_ZIP
from nucleus_unet.errors import UNPRINTABLE, NucleusError
from nucleus_unet.recipe import ONLY_PLANE, Depth, Plane

LARGEST_ROI_BYTES = 2**26
"""Limit for an unpacked ROI, about five million points."""
_ROI, _ZIP = b"Iout", (b"PK\3\4", b"PK\5\6")
_OUTLINED = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
_BOXED = (ROI_TYPE.RECT, ROI_TYPE.OVAL)


def is_rois(content: bytes) -> bool:
    """Whether the bytes of a file are those of a ROI or of a zip file."""
    return content.startswith((_ROI, *_ZIP))


def read_rois(
    content: bytes, file: str, shape: tuple[int, int], plane: Plane = ONLY_PLANE
) -> Iterator[Region | DataProblem]:
    """Draw one ROI, or the ROIs in a zip file.

    Parameters
    ----------
    content : bytes
        The bytes of the file.
    file : str
        Name of the file, for messages.
    shape : (int, int)
        Height and width of the image in pixels.
    plane : Plane
        Which plane of a stack is the image. ROIs at other z planes or times are left out.

    Yields
    ------
    Region or DataProblem
        The region of each polygon, freehand and traced selection, rectangle, oval and composite, and
        a problem for each other ROI.

    Raises
    ------
    NucleusError
        If the file or a ROI is damaged or too large, if the zip file has files but no ROI, or if ROIs
        lie at several z planes or times and none is chosen.

    Notes
    -----
    ImageJ counts from the corner of the first pixel, like our GeoJSON.
    """
    if content.startswith(_ROI):
        yield _read(_decoded(content, file), file, shape)
        return
    found = seen = 0
    places = set()
    for member, roi in _members(content, file):
        where = f"{file}, {UNPRINTABLE.sub('?', member)}"
        seen += 1
        if roi.startswith(_ROI):
            found += 1
            decoded = _decoded(roi, where)
            place = _place(decoded, plane)
            if all(at in (0, wanted) for at, wanted in place if isinstance(wanted, int)):
                places.add(tuple(at for at, _ in place))
                yield _read(decoded, where, shape)
        else:
            yield DataProblem(where, "not read", "not a ROI: skipped")
    if seen and not found:
        raise NucleusError(f"{file}: holds no ROI. Save the ROIs from ImageJ's ROI Manager.")
    if any(len(set(axis) - {0}) > 1 for axis in zip(*places, strict=True)):
        raise NucleusError(
            f"{file}: its ROIs lie at several planes of a stack. Choose one with --z NUMBER or --time "
            "NUMBER."
        )


def _members(content: bytes, file: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.file_size > LARGEST_ROI_BYTES:
                    raise NucleusError(
                        f"{file}: {info.filename!r} is larger than {LARGEST_ROI_BYTES >> 20} MiB when "
                        "unpacked, which is too large for a ROI. Save the ROIs again."
                    )
                if not info.filename.endswith("/"):
                    yield info.filename, archive.read(info)
    except DAMAGED_ZIP as error:
        raise NucleusError(
            f"{file}: not a complete zip file ({error}). Save the ROIs again."
        ) from error


def _place(roi: ImagejRoi, plane: Plane) -> tuple[tuple[int, Depth | None], ...]:
    """Where a ROI is in a stack, from 1, or 0 if it is everywhere; and which place is chosen."""
    in_hyperstack = (roi.z_position, plane.z), (roi.t_position, plane.time)
    # The position in a plain stack is a depth or a time.
    return *in_hyperstack, (roi.position, plane.z if isinstance(plane.z, int) else plane.time)


def _decoded(content: bytes, where: str) -> ImagejRoi:
    try:
        return ImagejRoi.frombytes(content)
    except Exception as error:  # roifile raises errors of any type for damaged files
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> NucleusError:
    return NucleusError(f"{where}: damaged ({error!s:.80}). Save the ROIs again.")


def _read(roi: ImagejRoi, where: str, shape: tuple[int, int]) -> Region | DataProblem:
    try:
        paths = roi.coordinates(multi=True)
    except NotImplementedError:
        return DataProblem(where, "not read", "has curves: skipped")
    except Exception as error:  # as above
        raise _damaged(where, error) from error
    if roi.composite or (roi.roitype in _OUTLINED and not roi.options & ROI_OPTIONS.SPLINE_FIT):
        return draw_polygons(where, [[read_ring(path.tolist(), where) for path in paths]], shape)
    is_plain = roi.subtype == ROI_SUBTYPE.UNDEFINED and not roi.rounded_rect_arc_size
    if roi.roitype not in _BOXED or not is_plain:
        kind = f"{roi.roitype.name.lower()} {roi.subtype.name.lower()}".removesuffix(" undefined")
        return DataProblem(where, "not read", f"{kind}, not a plain area: skipped")
    corners = np.array([(roi.left, roi.top), (roi.right, roi.bottom)], np.float64)
    if roi.subpixelrect:
        corners = np.array([(roi.xd, roi.yd), (roi.xd + roi.widthd, roi.yd + roi.heightd)])
    corners = read_ring(corners.tolist(), where)
    if roi.roitype == ROI_TYPE.OVAL:
        return draw_oval(where, corners, shape)
    (left, top), (right, bottom) = corners
    ring = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return draw_polygons(where, [[ring]], shape)
