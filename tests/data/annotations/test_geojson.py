import json
from typing import Any

import pytest

from nucleus_unet.data.annotations.geojson import read_geojson
from nucleus_unet.data.masks import DataProblem, Region
from nucleus_unet.errors import NucleusError

SQUARE = [[1, 1], [3, 1], [3, 3], [1, 3], [1, 1]]
HOLE = [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]


def feature(type_: str = "Polygon", coordinates: Any = (SQUARE,), **more: Any) -> dict[str, Any]:
    geometry = {"type": type_, "coordinates": list(coordinates)}
    return {"type": "Feature", "geometry": geometry, **more}


def read(document: Any) -> list[Region | DataProblem]:
    return list(read_geojson(document, "a.geojson", (4, 5)))


def areas(document: Any) -> list[int]:
    regions = read(document)
    assert all(isinstance(region, Region) for region in regions)
    return [int(region.pixels.sum()) for region in regions if isinstance(region, Region)]


def test_a_collection_a_list_and_one_feature() -> None:
    one = feature()
    assert areas({"type": "FeatureCollection", "features": [one, one]}) == [4, 4]
    assert areas([one, one]) == [4, 4]
    assert areas(one) == [4]
    assert areas([]) == areas({"type": "FeatureCollection", "features": []}) == []


def test_holes_and_several_polygons() -> None:
    assert areas(feature("Polygon", [SQUARE, HOLE])) == [3]
    far = [[4, 0], [5, 0], [5, 1], [4, 1]]
    assert areas(feature("MultiPolygon", [[SQUARE, HOLE], [far]])) == [4]
    assert areas(feature("Polygon", [])) == areas(feature("MultiPolygon", [])) == [0]


def test_the_nucleus_of_a_cell_is_read() -> None:
    nucleus = {"type": "Polygon", "coordinates": [HOLE]}
    assert areas(feature(nucleusGeometry=nucleus)) == [1]


@pytest.mark.parametrize("kind", ["Point", "MultiPoint", "LineString", "MultiLineString"])
def test_a_feature_without_area_is_reported(kind: str) -> None:
    assert read([feature(kind, [1, 2])]) == [
        DataProblem("a.geojson, feature 1", "no area", f"{kind}: skipped")
    ]


def test_a_feature_without_geometry_is_reported() -> None:
    _, problem = read([feature(), {"type": "Feature", "geometry": None}])
    assert problem == DataProblem("a.geojson, feature 2", "no area", "no geometry: skipped")


@pytest.mark.parametrize(
    "document", [None, 1, "text", {}, {"type": "FeatureCollection"}, {"type": "Polygon"}]
)
def test_another_document(document: Any) -> None:
    with pytest.raises(NucleusError, match=r"^a.geojson: neither a GeoJSON FeatureCollection"):
        read(document)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (None, "not a GeoJSON feature"),
        ([], "not a GeoJSON feature"),
        ({"type": "Polygon"}, "not a GeoJSON feature"),
        (feature("GeometryCollection"), "its geometry is not a Polygon"),
        ({"type": "Feature", "geometry": "Polygon"}, "its geometry is not a Polygon"),
        ({"type": "Feature", "geometry": {"type": ["Polygon"]}}, "its geometry is not a Polygon"),
        ({"type": "Feature", "geometry": {"type": "Polygon"}}, "its coordinates are not a list"),
        ({"type": "Feature", "geometry": {"type": "MultiPolygon"}}, "its coordinates are not"),
        (feature("MultiPolygon", [1]), "its coordinates are not a list"),
        (feature("Polygon", [1]), "the outline is not a list of points"),
        (feature("Polygon", [[[1, 1], [2, 2], [float("inf"), 3]]]), "the coordinate inf is not"),
    ],
)
def test_a_malformed_feature(second: Any, message: str) -> None:
    with pytest.raises(NucleusError, match=rf"^a.geojson, feature 2: {message}") as caught:
        read([feature(), second])
    assert "\n" not in str(caught.value)


def test_deep_nesting() -> None:
    deep: Any = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(NucleusError, match="the outline is not a list of points"):
        read([feature("Polygon", deep)])


def of_qupath(type_: str, class_: str = "", **more: Any) -> dict[str, Any]:
    classification = {"classification": {"name": class_}} if class_ else {}
    return feature(properties={"objectType": type_, **classification}, **more)


def test_what_is_no_nucleus_in_qupath() -> None:
    nucleus = {"type": "Polygon", "coordinates": [HOLE]}
    objects = [
        of_qupath("annotation", "Region"),
        of_qupath("detection", "Tumor"),
        of_qupath("detection", "Ignore*"),
        of_qupath("cell"),
        of_qupath("cell", nucleusGeometry=nucleus),
    ]
    region, detection, ignored, cell, whole = read(objects)
    assert isinstance(detection, Region)
    assert isinstance(whole, Region)
    assert whole.pixels.sum() == 1
    found = [one.kind for one in (region, ignored, cell) if isinstance(one, DataProblem)]
    assert found == ["region", "ignored class", "no nucleus"]


def test_annotations_alone_are_nuclei() -> None:
    assert areas([of_qupath("annotation"), of_qupath("annotation", "Nucleus")]) == [4, 4]
