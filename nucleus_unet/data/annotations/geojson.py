"""Nuclei from GeoJSON, as QuPath writes it."""

from collections.abc import Iterator
from typing import Any

from nucleus_unet.data.annotations.polygons import Ring, draw_polygons, read_ring
from nucleus_unet.data.masks import DataProblem, Region
from nucleus_unet.errors import UNPRINTABLE, NucleusError

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
        The region of each Polygon or MultiPolygon, and a problem for each feature that is no nucleus:
        one without area, one of a class that QuPath ignores, a cell without a nucleus, and an annotation
        in a file with detections or cells, because it only marks the region where they are.

    Raises
    ------
    NucleusError
        If a feature is malformed, or has coordinates that are not in pixels.

    Notes
    -----
    QuPath describes a cell by two outlines. That of the nucleus, ``nucleusGeometry``, is read.
    """
    features = _features(document, file)
    has_detections = any(_type(feature) in ("detection", "cell") for feature in features)
    for number, feature in enumerate(features, 1):
        where = f"{file}, feature {number}"
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise NucleusError(f"{where}: not a GeoJSON feature. Export it again.")
        geometry = feature.get("nucleusGeometry", feature.get("geometry"))
        class_ = _class(feature)
        if class_.endswith("*"):
            yield DataProblem(where, "ignored class", f"{class_}: skipped")
            continue
        if _type(feature) == "cell" and "nucleusGeometry" not in feature:
            yield DataProblem(where, "no nucleus", "a cell without its nucleus: skipped")
            continue
        if _type(feature) == "annotation" and has_detections:
            yield DataProblem(where, "region", "marks where detections or cells are: skipped")
            continue
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


def _type(feature: object) -> str | None:
    """The kind of an object in QuPath."""
    return _text(_properties(feature).get("objectType"))


def _class(feature: object) -> str:
    """The name of an object's class in QuPath."""
    found = _properties(feature).get("classification")
    return _text(found.get("name")) or "" if isinstance(found, dict) else ""


def _properties(feature: object) -> dict[str, object]:
    found = feature.get("properties") if isinstance(feature, dict) else None
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return UNPRINTABLE.sub("?", value[:40]) if isinstance(value, str) else None


def _rings(polygon: object, where: str) -> list[Ring]:
    return [read_ring(ring, where) for ring in _listed(polygon, where)]


def _listed(coordinates: object, where: str) -> list[Any]:
    if isinstance(coordinates, list):
        return coordinates
    raise NucleusError(f"{where}: its coordinates are not a list. Export it again.")
