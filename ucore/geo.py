"""Arithmetic of places on the earth, and the tags of a footprint.

features = read_osm("helsinki.osm.pbf", bounds=(24.93, 60.16, 24.96, 60.18))
(tags, surrounding), = tag_footprints(features, [footprint])
tags_to_text(tags, surrounding)  # "amenity of school, road of residential; surrounded by road of service"

Bounds are always (west, south, east, north) in degrees of EPSG:4326.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ucore.errors import ConfigError
from ucore.osm import KEYS, Bounds, check_bounds, clean_text, parse_bounds, read_osm, require_overlap, show

if TYPE_CHECKING:
    import geopandas

__all__ = [
    "Bounds",
    "LocalFrame",
    "TagRules",
    "check_bounds",
    "ground_resolution",
    "importance",
    "local_frame",
    "parse_bounds",
    "read_osm",
    "require_overlap",
    "seen_from_above",
    "show",
    "tag_footprints",
    "tags_to_text",
    "tile_bounds",
]

EQUATOR_M = 2 * math.pi * 6378137.0  # length of the equator of WGS84 (and of web maps), in metres
MERCATOR_LIMIT = 85.0511287798066  # latitude at which web maps end
MOST_ZOOM = 30

# Too small to be made out from above, or inside something else.
SMALL = {
    *("amenity=bench", "amenity=waste_basket", "amenity=post_box", "amenity=vending_machine", "amenity=telephone"),
    *("amenity=bicycle_parking", "amenity=drinking_water", "amenity=atm", "amenity=recycling", "amenity=clock"),
    *("amenity=parking_entrance", "amenity=parking_space", "amenity=charging_station", "amenity=waste_disposal"),
    *("highway=crossing", "highway=traffic_signals", "highway=bus_stop", "highway=street_lamp", "highway=stop"),
    *("highway=give_way", "highway=elevator", "highway=speed_camera", "highway=milestone", "highway=turning_loop"),
    *("highway=corridor", "highway=proposed", "man_made=surveillance", "man_made=manhole", "man_made=street_cabinet"),
    *("man_made=flagpole", "natural=tree", "tourism=information", "tourism=artwork", "historic=memorial"),
    *("barrier=bollard", "barrier=gate", "barrier=lift_gate", "barrier=kerb", "barrier=block", "barrier=entrance"),
    *("barrier=cycle_barrier", "barrier=swing_gate", "railway=switch", "railway=signal", "railway=crossing"),
    *("railway=tram_crossing", "railway=railway_crossing", "railway=buffer_stop", "railway=subway_entrance"),
    *("railway=subway", "railway=abandoned", "railway=razed", "railway=proposed", "power=pole", "power=cable"),
    *("man_made=wire", "man_made=beam", "man_made=utility_pole", "man_made=survey_point", "man_made=ventilation_shaft"),
    *("man_made=antenna", "power=wire", "power=box", "power=terminal", "amenity=life_ring", "amenity=artwork"),
    *("public_transport=stop_position", "public_transport=stop_area", "waterway=drain", "leisure=picnic_table"),
}
# These say little: they come last, however important their key is.
GENERIC = {"amenity=yes", "building=yes", "barrier=yes", "shop=yes", "office=yes", "historic=yes", "natural=yes"}
GENERIC_KEYS = ("public_transport", "barrier", "shop", "office", "place")


@dataclass(frozen=True)
class TagRules:
    """Which objects name a footprint, and which its surroundings (after SkyScript's centre and surrounding tags).

    An object is central when it covers or touches the middle of the footprint, or when it is an area that covers a
    sizeable share of it. Any other object is surrounding when it lies within a distance of the footprint's edge.
    """

    central_side: float = 0.8  # side of the middle, relative to the footprint: 0.8 is 64 % of its area
    min_area_share: float = 0.05  # of the footprint's area, for an area that misses the middle
    max_distance_m: float = 50.0  # from the footprint to a surrounding object
    most_central: int = 8  # tags kept of each kind, the most important ones
    most_surrounding: int = 6

    def check(self) -> None:
        """Raise ConfigError for a value out of its range, naming the setting."""
        limits = {"central_side": 1, "min_area_share": 1, "max_distance_m": 1e5, "most_central": 1000}
        for name, most in {**limits, "most_surrounding": 1000}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be from 0 to {most:g}")


Tags = tuple[list[str], list[str]]


def tag_footprints(
    features: "geopandas.GeoDataFrame", footprints: Sequence[Any], rules: TagRules | None = None
) -> list[Tags]:
    """Central and surrounding tags ("key=value") of each footprint, by `rules`.

    features: from `read_osm`. footprints: polygons in EPSG:4326; None has no tags.
    Tags are in the order of `importance`; what is said of the centre is not repeated around it.

    Distances and areas are taken in spherical Mercator divided by its scale at the footprint's latitude, which is
    right within 1 % at any latitude up to 85 degrees (the ellipsoid's flattening is what remains), so that one call
    takes places of all countries.
    """
    import shapely

    rules = rules or TagRules()
    rules.check()
    tiles = _mercator(np.array(list(footprints), dtype=object))
    shapes = _mercator(np.array(features.geometry.values, dtype=object))
    names, codes, starts = _tag_codes(list(features["tags"]), shapely.get_dimensions(shapes) == 0)
    if not len(tiles) or not names:
        return [([], []) for _ in tiles]
    used = np.flatnonzero(np.diff(starts))  # objects with a tag worth naming
    tree = shapely.STRtree(shapes[used])
    centres = shapely.get_coordinates(shapely.centroid(tiles))
    # Mercator y -> latitude; its scale is 1 / cos(latitude) = cosh(y / radius).
    reach = rules.max_distance_m * np.cosh(np.nan_to_num(_of_each(tiles, centres)[:, 1]) * 2 * math.pi / EQUATOR_M)
    tile, near = tree.query(tiles, predicate="dwithin", distance=reach)
    near = used[near]
    central = shapely.intersects(shapes[near], _shrunk(tiles, rules.central_side)[tile])
    rest = np.flatnonzero(~central & (shapely.get_dimensions(shapes[near]) == 2))
    rest = rest[shapely.intersects(shapes[near[rest]], tiles[tile[rest]])]
    shares = shapely.area(shapely.intersection(shapes[near[rest]], tiles[tile[rest]])) / shapely.area(tiles[tile[rest]])
    central[rest] = shares >= rules.min_area_share
    inner = _tags_of_tiles(tile[central], near[central], names, codes, starts, len(tiles))
    outer = _tags_of_tiles(tile[~central], near[~central], names, codes, starts, len(tiles))
    return [
        (shown[: rules.most_central], [tag for tag in around if tag not in shown][: rules.most_surrounding])
        for shown, around in zip(inner, outer, strict=True)
    ]


def _mercator(shapes: np.ndarray) -> np.ndarray:
    """Degrees -> metres of spherical Mercator, for an array of geometries or None."""
    import shapely

    def project(points: np.ndarray) -> np.ndarray:
        lat = np.radians(points[:, 1].clip(-MERCATOR_LIMIT, MERCATOR_LIMIT))
        radius = EQUATOR_M / (2 * math.pi)
        return np.column_stack([np.radians(points[:, 0]) * radius, np.arcsinh(np.tan(lat)) * radius])

    return shapely.transform(shapes, project)


def _of_each(tiles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """One row of `points` for each tile: NaN for None and empty ones, which have no centroid."""
    import shapely

    rows = np.full((len(tiles), 2), np.nan)
    rows[~(shapely.is_missing(tiles) | shapely.is_empty(tiles))] = points
    return rows


def _shrunk(tiles: np.ndarray, side: float) -> np.ndarray:
    """The tiles drawn together towards their centroids by the factor `side`."""
    import shapely

    points, owner = shapely.get_coordinates(tiles, return_index=True)
    centres = _of_each(tiles, shapely.get_coordinates(shapely.centroid(tiles)))[owner]
    return shapely.set_coordinates(tiles.copy(), centres + side * (points - centres))


def _tag_codes(tags: list[dict[str, str]], points: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of all tags, by importance; the numbers in it of each object's tags, one after the other; their starts.

    A name occurs twice where both a point and another object bear it.
    """
    listed = [[(name, bool(point)) for name in _worth_naming(of)] for of, point in zip(tags, points, strict=True)]
    names = sorted({name for of_object in listed for name in of_object}, key=lambda name: importance(*name))
    number = {name: place for place, name in enumerate(names)}
    codes = [number[name] for of_object in listed for name in of_object]
    starts = np.cumsum([0, *(len(of_object) for of_object in listed)])
    return [name for name, _ in names], np.array(codes, dtype=np.int64), starts


def _worth_naming(tags: dict[str, str]) -> list[str]:
    if not seen_from_above(tags):
        return []
    pairs = ((key, clean_text(tags[key].split(";")[0])) for key in KEYS if key in tags)
    named = (f"{key}={value}" for key, value in pairs if value and value != "no")
    return [name for name in named if name not in SMALL]


def importance(tag: str, point: bool = False) -> tuple[int, int, str]:
    """Sort key of "key=value": by `osm.KEYS`, then by name; what says little comes later.

    point: whether a point bears it. Most points are businesses inside a building, so they follow areas and lines.
    """
    key = tag.partition("=")[0]
    return 2 if tag in GENERIC or key in GENERIC_KEYS else int(point), KEYS.index(key), tag


def seen_from_above(tags: dict[str, str]) -> bool:
    """Whether an object with these tags is in the open: not in a tunnel, under the ground or inside a building."""
    hidden = (tags.get("tunnel", "no") != "no", tags.get("indoor", "no") != "no", tags.get("covered") == "yes")
    return not any(hidden) and tags.get("location") not in ("underground", "indoor")


def _tags_of_tiles(
    tile: np.ndarray, owner: np.ndarray, names: list[str], codes: np.ndarray, starts: np.ndarray, tiles: int
) -> list[list[str]]:
    """Names, by importance, of the tags of all objects `owner[i]` that belong to `tile[i]`, for every tile."""
    sizes = starts[owner + 1] - starts[owner]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found = np.unique(np.repeat(tile, sizes) * len(names) + codes[np.repeat(starts[owner], sizes) + within])
    edges = np.searchsorted(found, np.arange(tiles + 1) * len(names))
    listed = [names[code] for code in found % len(names)]
    return [list(dict.fromkeys(listed[first:last])) for first, last in pairwise(edges)]


def tags_to_text(tags: Sequence[str], surrounding_tags: Sequence[str] = ()) -> str:
    """Tags in words: "amenity of school, road of residential; surrounded by road of service"; "" without any."""
    centre, around = (", ".join(_words(tag) for tag in group) for group in (tags, surrounding_tags))
    return "; ".join(part for part in (centre, f"surrounded by {around}" if around else "") if part)


def _words(tag: str) -> str:
    key, _, value = (" ".join(clean_text(part).replace(",", " ").split()) for part in tag.partition("="))
    key, value = ("road" if key == "highway" else key).replace("_", " "), value.replace("_", " ")
    return key if value in ("", "yes") else f"{key} of {value}"


def tile_bounds(x: int, y: int, z: int) -> Bounds:
    """Bounds in degrees of a tile of web maps (row 0 in the north). Raises ConfigError for one that does not exist."""
    import mercantile

    if not 0 <= z <= MOST_ZOOM or not 0 <= x < 2**z or not 0 <= y < 2**z:
        raise ConfigError(f"There is no tile z={z}, x={x}, y={y}: z is 0 to {MOST_ZOOM}, x and y 0 to 2^z - 1.")
    west, south, east, north = mercantile.bounds(x, y, z)
    return west, south, east, north


def ground_resolution(lat: float, zoom: float, tile_size: int = 256) -> float:
    """Metres on the ground that a pixel of a web map spans at latitude `lat` (degrees), with tiles of `tile_size`."""
    return math.cos(math.radians(lat)) * EQUATOR_M / (tile_size * 2**zoom)


Shape = TypeVar("Shape")


@dataclass(frozen=True)
class LocalFrame:
    """Metres east and north of a place: degrees times the radii of WGS84 there (equirectangular).

    Exact in the origin. At a distance of d km north or south, east-west lengths are off by about
    d * tan(lat) / 63.7 percent: 0.03 % at 1 km and 0.3 % at 10 km from 60 degrees. Not for places around a pole or
    across the antimeridian.
    """

    lon: float
    lat: float

    @property
    def scale(self) -> tuple[float, float]:
        """Metres a degree of longitude and of latitude."""
        axis, eccentricity = 6378137.0, 0.0066943799901413165  # WGS84: semi-major axis, first eccentricity squared
        sine, cosine = math.sin(math.radians(self.lat)), math.cos(math.radians(self.lat))
        bent = 1 - eccentricity * sine**2
        across = axis / math.sqrt(bent) * cosine
        along = axis * (1 - eccentricity) / bent**1.5
        return math.radians(across), math.radians(along)

    def to_metres(self, geometry: Shape) -> Shape:
        """A geometry, or an array of them, from degrees to metres."""
        import shapely

        scale, origin = np.array(self.scale), np.array([self.lon, self.lat])
        return shapely.transform(geometry, lambda points: (points - origin) * scale)  # type: ignore[return-value]

    def to_degrees(self, geometry: Shape) -> Shape:
        """The inverse of `to_metres`."""
        import shapely

        scale, origin = np.array(self.scale), np.array([self.lon, self.lat])
        return shapely.transform(geometry, lambda points: points / scale + origin)  # type: ignore[return-value]


def local_frame(lon: float, lat: float) -> LocalFrame:
    """The metric frame around a place given in degrees."""
    check_bounds((lon - 1e-9, lat - 1e-9, lon + 1e-9, lat + 1e-9))
    return LocalFrame(float(lon), float(lat))
