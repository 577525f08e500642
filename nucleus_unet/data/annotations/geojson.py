"""Nuclei from GeoJSON, as QuPath writes it."""

from collections.abc import Iterator
from typing import Any

from nucleus_unet.data.annotations.polygons import Ring, draw_polygons, read_ring
from nucleus_unet.data.masks import DataProblem, Region
from nucleus_unet.errors import NucleusError

_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def read_geojson(
    document: object, file: str, shape: tuple[int, int]
) -> Iterator[Region | DataProblem]:
    """Draw the features of a GeoJSON document, RFC 7946.

    Parameters
    ----------
    document : object
        The parsed document: a FeatureCollection, a list of features or one feature.
    file : str
        Name of the file, for messages.
    shape : (int, int)
        Height and width of the image in pixels.

    Yields
    ------
    Region or DataProblem
        The region of each Polygon or MultiPolygon, and a problem for each feature without area.

    Raises
    ------
    NucleusError
        If a feature is malformed, or has coordinates that are not in pixels.

    Notes
    -----
    QuPath describes a cell by two outlines. That of the nucleus, ``nucleusGeometry``, is read.
    """
    for number, feature in enumerate(_features(document, file), 1):
        where = f"{file}, feature {number}"
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise NucleusError(f"{where}: not a GeoJSON feature. Export it again.")
        geometry = feature.get("nucleusGeometry", feature.get("geometry"))
        described = geometry if isinstance(geometry, dict) else {}
        kind, coordinates = described.get("type"), described.get("coordinates")
        if kind in ("Polygon", "MultiPolygon"):
            polygons = [coordinates] if kind == "Polygon" else _listed(coordinates, where)
            rings = [_rings(polygon, where) for polygon in polygons]
            yield draw_polygons(where, rings, shape)
        elif geometry is None or kind in _WITHOUT_AREA:
            yield DataProblem(where, "no area", f"{kind or 'no geometry'}: skipped")
        else:
            raise NucleusError(
                f"{where}: its geometry is not a Polygon or MultiPolygon. Export it again."
            )


def _features(document: object, file: str) -> list[Any]:
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, dict) and document.get("type") == "Feature":
        document = [document]
    if isinstance(document, list):
        return document
    raise NucleusError(
        f"{file}: neither a GeoJSON FeatureCollection, a list of features nor COCO JSON. "
        "Export it again."
    )


def _rings(polygon: object, where: str) -> list[Ring]:
    return [read_ring(ring, where) for ring in _listed(polygon, where)]


def _listed(coordinates: object, where: str) -> list[Any]:
    if isinstance(coordinates, list):
        return coordinates
    raise NucleusError(f"{where}: its coordinates are not a list. Export it again.")
