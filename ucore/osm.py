"""OpenStreetMap extracts -> one table of tagged objects (`read_osm`).

Everything in an extract was typed by strangers: control characters are stripped and lengths are capped here, once.
Bounds are always (west, south, east, north) in degrees of EPSG:4326.
"""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.errors import ConfigError, DataError
from ucore.files import parse_json

if TYPE_CHECKING:
    import geopandas

Bounds = tuple[float, float, float, float]

# What makes an object interesting, the most telling first: the order in which a footprint's tags are named.
KEYS = (
    *("amenity", "leisure", "tourism", "historic", "aeroway", "man_made", "power", "railway", "waterway", "water"),
    *("sport", "religion", "natural", "landuse", "highway", "building", "bridge", "public_transport", "military"),
    *("craft", "barrier", "shop", "office", "place"),
)
OSM_SUFFIXES = (".osm.pbf", ".pbf", ".osm", ".osm.gz", ".osm.bz2")
JSON_SUFFIXES = (".geojson", ".json")
MOST_SIGNS = 120  # of a key or value; OpenStreetMap's own limit is 255

# A closed way is a line, not an area, when these are its only interesting tags: the values listed, or ("but") all
# but those listed. Keys of the last row qualify another tag and decide nothing.
LINES = {
    "highway": ("but", {"services", "rest_area", "platform"}),
    "railway": ("but", {"station", "platform", "turntable", "roundhouse", "yard", "engine_shed"}),
    "waterway": ("but", {"riverbank", "dock", "boatyard", "dam"}),
    "barrier": ("but", set()),
    "natural": ("only", {"cliff", "coastline", "ridge", "arete", "tree_row", "valley"}),
    "power": ("only", {"line", "minor_line", "cable"}),
    "man_made": ("only", {"pipeline", "cutline", "embankment", "goods_conveyor"}),
    "aeroway": ("only", {"runway", "taxiway", "jet_bridge"}),
    "leisure": ("only", {"track", "slipway"}),
    **{key: ("but", set()) for key in ("bridge", "sport", "religion", "public_transport")},
}


def parse_bounds(text: str) -> Bounds:
    """Bounds from "W,S,E,N". Raises ConfigError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise ConfigError(f"The bounds {text!r} must be four numbers in degrees: west,south,east,north.")
    return check_bounds(values)


def check_bounds(bounds: Sequence[float]) -> Bounds:
    """`bounds` as four floats. Raises ConfigError for bounds out of range, inverted or across the antimeridian."""
    shown = ",".join(f"{value:g}" for value in bounds)
    if len(bounds) != 4 or not all(math.isfinite(value) for value in bounds):
        raise ConfigError(f"The bounds {shown} must be four numbers: west,south,east,north in degrees.")
    west, south, east, north = (float(value) for value in bounds)
    if max(abs(south), abs(north)) > 90 or max(abs(west), abs(east)) > 180:
        raise ConfigError(
            f"The bounds {shown} leave the earth: west,south,east,north are degrees, longitudes within 180 and "
            "latitudes within 90. Metres must be converted first; longitude comes before latitude."
        )
    if south >= north:
        raise ConfigError(f"The bounds {shown} are inverted: south must be less than north (west,south,east,north).")
    if west >= east:
        raise ConfigError(
            f"The bounds {shown} are inverted: west must be less than east. An area across the antimeridian "
            "(180 degrees) is given as two, one on each side."
        )
    return west, south, east, north


def read_osm(path: str | Path, bounds: Sequence[float] | None = None) -> "geopandas.GeoDataFrame":
    """Objects of an OpenStreetMap extract that carry one of `KEYS`, sorted by kind and number.

    path: .osm.pbf, .osm, .osm.gz, .osm.bz2, or GeoJSON with the tags as properties.
    bounds: keep what touches them; objects are not cut at the edge.

    Returns columns osm_id (str: "n7", "w123", "r5"; a GeoJSON feature without one is "g" and its number), tags
    (dict[str, str], all of the object's), geometry (Point, LineString, Polygon or MultiPolygon, EPSG:4326). Closed
    ways are areas by OpenStreetMap's conventions; multipolygon relations are assembled. Nodes that the extract lacks
    are left out of their way. Raises DataError for a file that is absent, of another kind, damaged, without such
    objects, or that lies elsewhere than `bounds`.
    """
    import geopandas
    import shapely

    path = Path(path)
    limits = None if bounds is None else check_bounds(bounds)
    name = path.name.lower()
    if not path.is_file():
        raise DataError(f"There is no OpenStreetMap extract {path}. Correct the path.")
    if name.endswith(OSM_SUFFIXES):
        ids, tags, shapes = _read_osmium(path)
    elif name.endswith(JSON_SUFFIXES):
        ids, tags, shapes = _read_geojson(path)
    else:
        known = ", ".join((*OSM_SUFFIXES, *JSON_SUFFIXES))
        raise DataError(f"{path} is not an OpenStreetMap extract: its name must end in one of {known}.")
    if not ids:
        raise DataError(f"{path} holds no object with a tag like building=* or highway=*. Export an extract with tags.")
    if limits is not None:
        require_overlap(limits, shapely.total_bounds(shapes), str(path))
    rows = sorted(range(len(ids)), key=lambda row: (ids[row][0], int(ids[row][1:])))
    if limits is not None:
        inside = shapely.intersects(shapes, shapely.box(*limits))
        rows = [row for row in rows if inside[row]]
    table = {"osm_id": [ids[row] for row in rows], "tags": [tags[row] for row in rows]}
    return geopandas.GeoDataFrame(table, geometry=shapes[rows], crs="EPSG:4326")


Objects = tuple[list[str], list[dict[str, str]], np.ndarray]


def _read_osmium(path: Path) -> Objects:
    """Ids, tags and geometries (object array) of the interesting objects of a file that osmium reads."""
    import osmium
    import osmium.filter
    import osmium.geom
    import shapely

    keys = osmium.filter.KeyFilter(*KEYS)
    factory = osmium.geom.WKBFactory()
    ids: list[str] = []
    tags: list[dict[str, str]] = []
    codes: list[str] = []
    item: Any
    try:
        for item in osmium.FileProcessor(str(path)).with_areas(keys).with_filter(keys):
            values, kind, number = clean_tags(item.tags), item.type_str(), item.id
            if kind == "r" or not is_interesting(values):
                continue
            if kind == "a":
                kind, number = "w" if item.from_way() else "r", item.orig_id()
                if kind == "w" and not _is_area(values):
                    continue  # it came before, as a line
            elif kind == "w" and item.is_closed() and _is_area(values):
                continue  # it comes again, as an area
            code = _geometry(item, factory)
            if code:
                ids.append(f"{kind}{number}")
                tags.append(values)
                codes.append(code)
    except (RuntimeError, OSError, ValueError, osmium.InvalidLocationError) as error:  # texts, tags, places
        raise DataError(_osmium_problem(path, " ".join(str(error).split()))) from error
    shapes = shapely.from_wkb(np.array(codes, dtype=object))
    kinds, parts = shapely.get_type_id(shapes), shapely.get_num_geometries(shapes)
    single = (kinds == shapely.GeometryType.MULTIPOLYGON) & (parts == 1)
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    return ids, tags, shapes


def _geometry(item: Any, factory: Any) -> str:
    """Hexadecimal WKB of an osmium object; an empty string where too little of it is in the extract."""
    import osmium
    import shapely

    try:
        if item.is_node():
            return factory.create_point(item)
        return factory.create_multipolygon(item) if item.is_area() else factory.create_linestring(item)
    except (RuntimeError, osmium.InvalidLocationError):  # a node is missing or lies nowhere
        points = [(node.lon, node.lat) for node in item.nodes if node.location.valid()] if item.is_way() else []
        return shapely.LineString(points).wkb_hex if len(set(points)) > 1 else ""


def _osmium_problem(path: Path, reason: str) -> str:
    if path.stat().st_size == 0:
        return f"{path} is empty. Download the extract again."
    if any(sign in reason for sign in ("EOF", "no element found", "unclosed", "read close failed", "truncated")):
        return f"{path} is cut short ({reason}). Download the extract again."
    return f"{path} is not an OpenStreetMap extract, or is damaged ({reason}). Download it again."


def _read_geojson(path: Path) -> Objects:
    """The same from GeoJSON, whose properties (or their member "tags") are the tags."""
    import geopandas
    import shapely

    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # GDAL and its wrapper raise several kinds
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not whole GeoJSON ({reason}). Export it again.") from error
    if "geometry" not in frame or not len(frame):
        return [], [], np.empty(0, object)
    frame = frame.to_crs("EPSG:4326") if frame.crs is not None else frame
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)].reset_index(drop=True)
    west, south, east, north = frame.total_bounds if len(frame) else (0, 0, 0, 0)
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise DataError(
            f"{path} has coordinates outside longitude 180 and latitude 90: GeoJSON holds degrees, longitude first. "
            "Export it in EPSG:4326."
        )
    ids, tags, kept = [], [], []
    table: Any = frame.drop(columns="geometry")
    for number, row in enumerate(table.to_dict("records")):
        values = clean_tags(_properties(row).items())
        if is_interesting(values):
            ids.append(_json_id(row, number))
            tags.append({key: value for key, value in values.items() if key not in ("osm_id", "osm_type", "@id", "id")})
            kept.append(number)
    shapes = np.array(frame.geometry.values, dtype=object)[kept]
    polygons = shapely.get_dimensions(shapes) == 2
    shapes[polygons] = shapely.make_valid(shapes[polygons], method="structure", keep_collapsed=False)
    return ids, tags, shapes


def _properties(row: dict[str, Any]) -> dict[str, Any]:
    nested = row.get("tags")
    if isinstance(nested, str) and nested.startswith("{"):
        try:
            nested = parse_json(nested)
        except ValueError:
            nested = None
    return {**row, **nested, "tags": None} if isinstance(nested, dict) else row


def _json_id(row: dict[str, Any], number: int) -> str:
    """ "w123" from osm_type and osm_id, from "way/123", or "g" and the feature's number."""
    full = str(row.get("@id") or row.get("id") or "")
    kind, _, code = full.rpartition("/") if "/" in full else (str(row.get("osm_type")), "", str(row.get("osm_id")))
    code = code.removesuffix(".0")
    known = kind in ("node", "way", "relation") and code.isascii() and code.isdigit()
    return f"{kind[0]}{code}" if known else f"g{number}"


def require_overlap(bounds: Bounds, extent: Any, what: str) -> None:
    """Raise DataError, giving both, when `bounds` lie outside the `extent` of `what`."""

    def apart(west: float, south: float, east: float, north: float) -> bool:
        return west > extent[2] or east < extent[0] or south > extent[3] or north < extent[1]

    if apart(*bounds):
        west, south, east, north = bounds
        swapped = not apart(south, west, north, east)
        advice = "Latitude and longitude look swapped" if swapped else "Correct the bounds, or give another file"
        raise DataError(f"The bounds {show(bounds)} lie outside {what}, which covers {show(extent)}. {advice}.")


def show(bounds: Sequence[float]) -> str:
    """Bounds for a message: "24.93,60.16,24.96,60.18"."""
    return ",".join(f"{value:.5g}" if abs(value) < 1 else f"{value:.4f}" for value in bounds)


def clean_tags(pairs: Any) -> dict[str, str]:
    """Tags without empty values, control characters and excessive lengths."""
    cleaned = ((clean_text(key), clean_text(value)) for key, value in pairs)
    return {key: value for key, value in cleaned if key and value}


def clean_text(value: Any) -> str:
    """`value` as one line of at most `MOST_SIGNS` printable characters; "" for None and NaN."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if not text.isascii() or not text.isprintable():
        text = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
    return " ".join(text.split())[:MOST_SIGNS].strip()


def is_interesting(tags: dict[str, str]) -> bool:
    """Whether any of `KEYS` has a value other than "no"."""
    return any(tags.get(key, "no") != "no" for key in KEYS)


def _is_area(tags: dict[str, str]) -> bool:
    """Whether a closed way with these tags bounds an area."""
    if tags.get("area") in ("yes", "no"):
        return tags["area"] == "yes"
    for key in KEYS:
        value = tags.get(key, "no")
        rule, values = LINES.get(key, ("only", set()))
        if value != "no" and (value in values) != (rule == "only"):
            return True
    return False
