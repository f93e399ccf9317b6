import bz2
import gzip
import json
import os
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from ucore.errors import ConfigError, DataError, UserError
from ucore.geo import (
    TagRules,
    check_bounds,
    ground_resolution,
    local_frame,
    parse_bounds,
    read_osm,
    tag_footprints,
    tags_to_text,
    tile_bounds,
)

HELSINKI = "osm/finland_helsinki_centre.osm.pbf"
PLACE = (24.94, 60.17)


def osm_xml(path: Path) -> Path:
    """A place of a few objects. Nodes 1 to 4 and 11 to 14 are squares, one inside the other; node 99 is missing."""
    square = [(0, 0), (0, 4), (4, 4), (4, 0)]
    hole = [(1, 1), (1, 2), (2, 2), (2, 1)]
    nodes = {1 + i: corner for i, corner in enumerate(square)} | {11 + i: corner for i, corner in enumerate(hole)}
    places = "".join(f'<node id="{i}" lat="{60 + y / 1000}" lon="{24 + x / 1000}"/>' for i, (x, y) in nodes.items())

    def way(number: int, refs: list[int], tags: str) -> str:
        return f'<way id="{number}">{"".join(f"<nd ref={chr(34)}{ref}{chr(34)}/>" for ref in refs)}{tags}</way>'

    ring, inner = [1, 2, 3, 4, 1], [11, 12, 13, 14, 11]
    path.write_text(
        f"""<osm version="0.6">{places}
        <node id="7" lat="60.001" lon="24.001"><tag k="amenity" v="school"/><tag k="name" v="a&#9;b  &#x202e;c"/></node>
        <node id="8" lat="60.001" lon="24.001"><tag k="note" v="nothing to see"/></node>
        <node id="9" lat="60.001" lon="24.001"><tag k="building" v="no"/></node>
        {way(21, ring, '<tag k="building" v="yes"/>')}
        {way(22, ring, '<tag k="highway" v="residential"/><tag k="junction" v="roundabout"/>')}
        {way(23, ring, '<tag k="highway" v="pedestrian"/><tag k="area" v="yes"/>')}
        {way(24, ring, "")}{way(25, inner, "")}
        {way(26, [1, 99, 3], '<tag k="waterway" v="stream"/>')}
        {way(27, ring, '<tag k="leisure" v="track"/><tag k="sport" v="running"/>')}
        <relation id="31"><member type="way" ref="24" role="outer"/><member type="way" ref="25" role="inner"/>
        <tag k="type" v="multipolygon"/><tag k="natural" v="water"/></relation></osm>""",
        "utf-8",
    )
    return path


def features(*rows: tuple[dict[str, str], tuple[float, float, float, float] | tuple[float, float]]):
    """Boxes or points in metres around PLACE."""
    shapes = [shapely.box(*place) if len(place) == 4 else shapely.Point(place) for _, place in rows]
    placed = local_frame(*PLACE).to_degrees(np.array(shapes, dtype=object))
    return geopandas.GeoDataFrame({"tags": [tags for tags, _ in rows]}, geometry=placed, crs="EPSG:4326")


def tile(side: float = 100.0):
    """A square footprint in the middle of PLACE."""
    return local_frame(*PLACE).to_degrees(shapely.box(-side / 2, -side / 2, side / 2, side / 2))


@pytest.mark.parametrize("suffix", [".osm", ".osm.gz", ".osm.bz2"])
def test_an_extract_becomes_points_lines_and_areas(tmp_path, suffix):
    plain = osm_xml(tmp_path / "plain.osm")
    path = tmp_path / f"a{suffix}"
    packed = {".osm": bytes, ".osm.gz": gzip.compress, ".osm.bz2": bz2.compress}[suffix](plain.read_bytes())
    path.write_bytes(packed)
    frame = read_osm(path).set_index("osm_id")
    kinds = {name: shape.geom_type for name, shape in frame.geometry.items()}
    assert kinds == {
        **{"n7": "Point", "r31": "Polygon", "w21": "Polygon", "w22": "LineString", "w23": "Polygon"},
        **{"w26": "LineString", "w27": "LineString"},
    }
    assert frame.crs.to_epsg() == 4326
    assert frame.geometry["r31"].area == pytest.approx(15e-6) and len(frame.geometry["r31"].interiors) == 1
    assert len(frame.geometry["w26"].coords) == 2  # without the node that is not there
    assert frame.tags["n7"] == {"amenity": "school", "name": "a b c"}


def test_bounds_keep_what_touches_them_and_refusals_name_the_extent(tmp_path):
    path = osm_xml(tmp_path / "a.osm")
    assert set(read_osm(path, (24.0039, 60.0001, 24.01, 60.0002)).osm_id) >= {"w21", "r31"}
    assert "n7" not in set(read_osm(path, (24.0039, 60.0001, 24.01, 60.0002)).osm_id)
    with pytest.raises(DataError, match=r"lie outside .*a\.osm, which covers 24\.0000,60\.0000,24\.0040,60\.0040"):
        read_osm(path, (10, 50, 11, 51))
    with pytest.raises(DataError, match="look swapped"):
        read_osm(path, (60, 24, 60.01, 24.01))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.osm.pbf", b"", "is empty"),
        ("a.osm.pbf", b"no protobuf at all", "is not an OpenStreetMap extract, or is damaged"),
        (
            "a.osm",
            b'<osm version="0.6"><node id="1" version="1" lat="r5.0" lon="1"/></osm>',
            "is damaged .wrong format",
        ),
        (
            "a.osm",
            b'<osm version="0.6"><node id="1" version="1" lat="5" lon="1"><tag k="'
            + b"k" * 70_000
            + b'" v="x"/></node></osm>',
            "is damaged .*too long",
        ),
        ("a.osm", b"<html><body>404</body></html>", "is not an OpenStreetMap extract"),
        ("a.osm", b'<osm version="0.6"><node id="1" lat="1"', "is cut short"),
        ("a.osm.gz", gzip.compress(np.random.default_rng(0).bytes(5000))[:2000], "damaged|cut short"),
        ("a.osm", b'<osm version="0.6"></osm>', "no object with a tag"),
        (
            "a.osm",
            b'<osm version="0.6"><node id="1" lat="95" lon="200"><tag k="shop" v="a"/></node></osm>',
            "no object",
        ),
        ("a.txt", b"x", "name must end in one of"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": [', "not whole GeoJSON"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": []}', "no object with a tag"),
    ],
)
def test_files_that_are_no_extract_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_osm(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_cut_pbf_is_refused(tmp_path, real):
    (tmp_path / "a.osm.pbf").write_bytes((real / HELSINKI).read_bytes()[:400_000])
    with pytest.raises(DataError, match="is cut short"):
        read_osm(tmp_path / "a.osm.pbf")


def test_geojson_properties_are_tags(tmp_path):
    def feature(properties, ring=((24, 60), (24.1, 60), (24.1, 60.1), (24, 60))):
        return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}

    rows = [
        feature({"osm_type": "way", "osm_id": 5, "building": "yes", "levels": 2, "amenity": None}),
        feature(
            {"@id": "relation/6", "tags": {"natural": "water"}}, ((24, 60), (25, 61), (25, 60), (24, 61), (24, 60))
        ),
        feature({"name": "nothing"}),
        feature({"shop": "bakery"}),
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": rows}))
    frame = read_osm(path).set_index("osm_id")
    assert dict(frame.tags) == {
        **{"w5": {"building": "yes", "levels": "2"}, "r6": {"natural": "water"}, "g3": {"shop": "bakery"}}
    }
    assert frame.is_valid.all()
    path.write_text(
        json.dumps({"type": "FeatureCollection", "features": [feature(rows[0]["properties"], ((3e5, 7e6),) * 4)]})
    )
    with pytest.raises(DataError, match="longitude first"):
        read_osm(path)


def test_real_extracts_are_read(real):
    frame = read_osm(real / HELSINKI)
    assert len(frame) > 15_000 and frame.osm_id.is_unique and frame.is_valid.all()
    assert any("railway" in tags for tags in frame.tags)
    banepa = read_osm(real / "osm" / "nepal_banepa_osm_features.geojson")
    assert set(banepa.osm_id.str[0]) == {"w"} and all("building" in tags for tags in banepa.tags)


def test_centre_and_surrounding_by_hand():
    frame = features(
        ({"building": "yes"}, (-5, -5, 5, 5)),  # central, generic: last
        ({"amenity": "school", "religion": "none"}, (-20, -20, -10, -10)),  # central
        ({"landuse": "forest"}, (42, -60, 60, 60)),  # misses the middle, covers 8 % of the tile
        ({"landuse": "meadow"}, (46, 40, 60, 60)),  # covers 0.4 %: surrounding
        ({"highway": "service"}, (90, 0, 95, 1)),  # 40 m from the edge
        ({"highway": "primary"}, (105, 0, 110, 1)),  # 55 m from the edge: too far
        ({"shop": "bakery"}, (0, 0)),  # a point inside the building
        ({"amenity": "bench"}, (0, 1)),  # too small to see
        ({"railway": "rail", "tunnel": "yes"}, (-50, 0, 50, 1)),  # under the ground
        ({"natural": "wood;scrub"}, (60, 0, 61, 1)),
        ({"amenity": "school"}, (60, 0, 61, 1)),  # said already
    )
    (central, around), nothing = tag_footprints(frame, [tile(), None])
    assert central == ["amenity=school", "religion=none", "landuse=forest", "building=yes", "shop=bakery"]
    assert around == ["natural=wood", "landuse=meadow", "highway=service"]
    assert nothing == ([], [])
    assert tag_footprints(frame, [tile()], TagRules(most_central=1, max_distance_m=0)) == [
        (["amenity=school"], ["landuse=meadow"])
    ]
    assert tag_footprints(frame, []) == [] and tag_footprints(frame[:0], [tile()]) == [([], [])]
    with pytest.raises(ConfigError, match="central_side"):
        tag_footprints(frame, [tile()], TagRules(central_side=2))


def test_tags_agree_with_loops_in_a_national_projection(real):
    frame = read_osm(real / HELSINKI, (24.938, 60.166, 24.944, 60.169))
    frame = frame[[seen in ("Point", "Polygon", "LineString") for seen in frame.geom_type]].reset_index(drop=True)
    frame["tags"] = [{"place": name} for name in frame.osm_id]  # every object is named by itself
    boxes = [tile(80)] + [shapely.affinity.translate(tile(60), x, 0.0002) for x in (-0.001, 0.002)]
    rules = TagRules(most_central=1000, most_surrounding=1000)
    found = tag_footprints(frame, boxes, rules)
    metres = frame.to_crs("EPSG:3067").geometry
    footprints = geopandas.GeoSeries(boxes, crs="EPSG:4326").to_crs("EPSG:3067")
    doubtful = 0
    for (central, around), footprint in zip(found, footprints, strict=True):
        middle = shapely.affinity.scale(footprint, rules.central_side, rules.central_side)
        for name, shape in zip(frame.osm_id, metres, strict=True):
            share = shape.intersection(footprint).area / footprint.area
            inside = shape.distance(middle) == 0 or share >= rules.min_area_share
            near = not inside and shape.distance(footprint) <= rules.max_distance_m
            agrees = (f"place={name}" in central, f"place={name}" in around) == (inside, near)
            close = min(shape.distance(middle.exterior), abs(shape.distance(footprint) - 50)) < 0.5
            assert agrees or close or abs(share - 0.05) < 0.001, name
            doubtful += not agrees
    assert doubtful <= 5


def test_text_reads_as_documented():
    assert (
        tags_to_text(["amenity=school", "highway=residential"], ["highway=service"])
        == "amenity of school, road of residential; surrounded by road of service"
    )
    assert (
        tags_to_text([], ["building=yes", "man_made=storage_tank"])
        == "surrounded by building, man made of storage tank"
    )
    assert tags_to_text(["shop=a,\x00b\n<i>"]) == "shop of a b <i>"
    assert tags_to_text([]) == ""


def test_tiles_and_resolutions():
    west, south, east, north = tile_bounds(1, 1, 1)
    assert (west, east, north) == pytest.approx((0, 180, 0)) and south == pytest.approx(-85.0511, abs=1e-4)
    with pytest.raises(ConfigError, match="no tile z=1, x=2"):
        tile_bounds(2, 0, 1)
    assert ground_resolution(0, 0) == pytest.approx(156543.034, abs=1e-3)
    assert ground_resolution(60, 18) == pytest.approx(0.29858, abs=1e-5)
    west, south, east, north = tile_bounds(74590, 37940, 17)
    across = local_frame(west, (south + north) / 2).to_metres(shapely.Point(east, (south + north) / 2)).x
    assert across / 256 == pytest.approx(ground_resolution((south + north) / 2, 17), rel=4e-3)  # sphere and ellipsoid


@pytest.mark.parametrize("lat", [-33.0, 0.0, 60.0])
def test_a_local_frame_measures_like_the_ellipsoid(lat):
    from pyproj import Geod

    frame = local_frame(24, lat)
    east, north = frame.to_degrees(np.array([shapely.Point(1000, 0), shapely.Point(0, 1000)], dtype=object))
    for point in (east, north):
        assert Geod(ellps="WGS84").inv(24, lat, point.x, point.y)[2] == pytest.approx(1000, rel=1e-5)
        assert frame.to_metres(point).distance(shapely.Point(0, 0)) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2,3", "four numbers"),
        ("a,b,c,d", "four numbers"),
        ("nan,0,1,1", "four numbers"),
        ("0,1,1,0", "south must be less"),
        ("170,0,-170,1", "antimeridian"),
        ("0,100,1,101", "longitude comes before"),
        ("385000,6670000,386000,6671000", "Metres must be converted"),
    ],
)
def test_bad_bounds_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_bounds(text)


def test_good_bounds_pass():
    assert parse_bounds("-8.7, 41.0,-8.4,41.2") == check_bounds([-8.7, 41.0, -8.4, 41.2]) == (-8.7, 41.0, -8.4, 41.2)


@pytest.fixture(scope="module")
def real() -> Path:
    folder = Path(os.environ.get("UCORE_DATA", ""))
    if not (folder / HELSINKI).is_file():
        pytest.skip("UCORE_DATA names no folder with osm/ in it")
    return folder
