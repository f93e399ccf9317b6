"""Filters let through what they say: against loops over rows that a person can check."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ucore.columns import Columns
from ucore.errors import ConfigError
from ucore.filters import Filter, distance_km, polygon_in

ROWS = pd.DataFrame(
    {
        "domain": ["finland", "finland", "spain", "fiji"],
        "source": ["a", "b", "b", "b"],
        "tags": [["building=house", "highway=service"], [], ["building=school"], ["natural=beach"]],
        "lon": [24.94, math.nan, -3.7, 179.5],
        "lat": [60.17, math.nan, 40.42, -17.0],
    }
)
HELSINKI, MADRID = (60.17, 24.94), (40.42, -3.7)


def passed(**named) -> list[int]:
    return np.flatnonzero(Filter(**named).mask(ROWS)).tolist()


def test_names_and_tags():
    assert passed() == [0, 1, 2, 3] and Filter().empty
    assert passed(domains="finland") == [0, 1] and passed(domains=["finland", "fiji"]) == [0, 1, 3]
    assert passed(sources=("b",), domains=("finland",)) == [1]
    assert passed(tags=("building",)) == [0, 2] and passed(tags="building=house") == [0]
    assert passed(tags=("building", "highway")) == [0]
    assert passed(any_tags=("building=school", "natural")) == [2, 3]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (dict(domains="finlnd"), "No row has the domain 'finlnd'; did you mean 'finland'"),
        (dict(domains="x"), "'x'; there are: fiji, finland, spain"),
        (dict(sources="c"), "No row has the source 'c'"),
        (dict(tags="bilding"), "tag 'bilding'; did you mean 'building'"),
        (dict(tags="building=hous"), "did you mean 'building=house'"),
        (dict(any_tags=("building", "=house")), "tag '=house'"),
    ],
)
def test_a_name_that_no_row_has_is_told_with_the_nearest(named, said):
    with pytest.raises(ConfigError) as told:
        Filter(**named).mask(ROWS)
    assert said in str(told.value)


def test_boxes():
    assert passed(box=(24.94, 60.17, 24.94, 60.17)) == [0]  # edges are inside
    assert passed(box=(-180, -90, 180, 90)) == [0, 2, 3]  # nowhere is outside
    assert passed(box=(175, -30, -175, 0)) == [3] == passed(box=(175, -30, 185, 0))
    assert passed(box=(-5, 0, 30, 50)) == [2]
    at = pd.DataFrame({"lon": [-179.0, 179.0, -170.0, 180.0, -180.0], "lat": [0.0] * 5})
    assert Filter(box=(178, -1, -178, 1)).mask(at).tolist() == [True, True, False, True, True]


def test_circles_are_great_circles():
    degree = math.pi * 6371.0088 / 180  # kilometres
    assert distance_km(np.array([0.0]), np.array([1.0]), 0.0, 0.0) == pytest.approx(degree)
    assert distance_km(np.array([179.5]), np.array([0.0]), -179.5, 0.0) == pytest.approx(degree)
    assert distance_km(np.array([0.0]), np.array([90.0]), 123.0, -90.0) == pytest.approx(180 * degree)
    assert passed(near=HELSINKI, km=1e-6) == [0]
    distance = float(distance_km(np.array([-3.7]), np.array([40.42]), 24.94, 60.17)[0])
    assert distance == pytest.approx(2950, abs=5)  # Helsinki to Madrid
    assert passed(near=HELSINKI, km=distance + 0.1) == [0, 2] and passed(near=HELSINKI, km=distance - 0.1) == [0]
    assert passed(near=(-17.0, -179.9), km=100) == [3] and passed(near=(90, 0), km=20020) == [0, 2, 3]


def test_polygons():
    triangle = {"type": "Polygon", "coordinates": [[[-10, 35], [5, 35], [0, 45], [-10, 35]]]}
    assert (
        passed(polygon=triangle) == [2] == passed(polygon={"type": "Feature", "geometry": triangle, "properties": {}})
    )
    assert passed(polygon=shapely.box(24.94, 60, 30, 61)) == [0]  # the border is inside
    hole = shapely.box(-10, 35, 30, 65).difference(shapely.box(-4, 40, -3, 41))
    assert passed(polygon=hole) == [0]
    assert passed(polygon=shapely.box(175, -20, 190, -10)) == [3] == passed(polygon=shapely.box(-185, -20, -175, -10))
    assert passed(polygon=shapely.box(-10, 35, 30, 65), box=(0, 0, 90, 90), domains="finland") == [0]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (dict(box=(1, 5, 2, 4)), "inverted: its south 5 lies north of its north 4"),
        (dict(box=(25, 60, 24, 61)), "inverted: its west 25 lies east of its east 24"),
        (dict(box=(0, 0, 1, 91)), "latitudes lie within 90"),
        (dict(box=(0, math.nan, 1, 2)), "finite"),
        (dict(box=(0, 1, 2)), "west, south, east, north"),
        (dict(near=HELSINKI), "near and km belong together"),
        (dict(km=5), "near and km belong together"),
        (dict(near=HELSINKI, km=0), "km is 0"),
        (dict(near=HELSINKI, km=math.inf), "km is inf"),
        (dict(near=HELSINKI, km=True), "km is True"),
        (dict(near=(124.94, 60.17), km=5), "latitude comes first"),
        (dict(near=("a", 1), km=5), "latitude, longitude"),
        (dict(polygon={"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}), "Self-inter"),
        (dict(polygon={"type": "Point", "coordinates": [0, 0]}), "is a Point"),
        (dict(polygon={"type": "Polygon", "coordinates": "no"}), "no GeoJSON"),
        (dict(polygon={"hello": 1}), "no GeoJSON"),
        (dict(polygon={"type": "Feature", "geometry": None}), "no GeoJSON"),
        (dict(polygon=shapely.Polygon()), "empty"),
        (dict(polygon="POLYGON"), "is a str"),
        (dict(tags=("",)), "not empty"),
        (dict(domains=(3,)), "must be names"),
    ],
)
def test_what_cannot_be_meant_is_refused(named, said):
    with pytest.raises(ConfigError) as told:
        Filter(**named)
    assert said in str(told.value)


def test_rows_without_the_columns_cannot_be_filtered_by_them():
    assert Filter().mask(ROWS[["domain"]]).tolist() == [True] * 4
    with pytest.raises(ConfigError, match="no column 'tags'"):
        Filter(tags="building").mask(ROWS[["domain"]])
    assert not Filter(box=(0, 0, 1, 1)).mask(ROWS.iloc[:0]).any()


def test_columns_tell_what_there_is():
    columns = Columns.of(ROWS)
    assert columns.names("domain") == ["fiji", "finland", "spain"]
    assert columns.names("tags") == ["building=house", "building=school", "highway=service", "natural=beach"]
    assert columns.placed.tolist() == [True, False, True, True]


LON, LAT = st.integers(-180, 180), st.integers(-90, 90)


@settings(max_examples=100, deadline=None)
@given(LON, LAT, st.integers(0, 180), LAT, st.lists(st.tuples(LON, LAT), min_size=1, max_size=20))
def test_a_box_is_so_many_degrees_east_of_its_west(west, south, width, north, places):
    south, north = sorted((south, north))
    inside = [(lon - west) % 360 <= width and south <= lat <= north for lon, lat in places]
    rows = pd.DataFrame(places, columns=["lon", "lat"])
    assert Filter(box=(west, south, west + width, north)).mask(rows).tolist() == inside
    turned = (west + width + 180) % 360 - 180
    if turned < west and width < 180:
        assert Filter(box=(west, south, turned, north)).mask(rows).tolist() == inside


def test_an_area_file_may_hold_several_polygons_but_in_degrees(tmp_path):
    squares = [shapely.box(0, 0, 1, 1), shapely.box(4, 4, 5, 5)]
    features = [{"type": "Feature", "geometry": shapely.geometry.mapping(square)} for square in squares]
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert polygon_in(path).equals(shapely.union_all(squares))
    path.write_text(json.dumps(shapely.geometry.mapping(shapely.box(2.7e6, 8.4e6, 2.8e6, 8.5e6))))
    with pytest.raises(ConfigError, match="reproject it to EPSG:4326"):
        polygon_in(path)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    with pytest.raises(ConfigError, match="holds no polygon"):
        polygon_in(path)
