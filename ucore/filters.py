"""Which rows of a gallery may be found: by domain, tags, source, box, distance or polygon, decided before the search.

A filter is one value; all that it names must hold. Rows without a place (lon or lat unknown) lie outside every
geographic filter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.columns import Columns
from ucore.errors import ConfigError
from ucore.files import parse_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

EARTH_KM = 6371.0088  # mean radius (IUGG)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Filter:
    """What a row must be to be found; a filter that names nothing lets everything through.

    domains, sources: one of these names. tags: all of these; any_tags: at least one of them. A tag is "key=value", or
        a bare "key" for every value of it.
    box: west, south, east, north in degrees, edges included. west > east crosses the antimeridian where the box is at
        most 180 degrees wide, and so does east > 180.
    near, km: latitude and longitude, and the great-circle distance in kilometres that is still near.
    polygon: shapely Polygon or MultiPolygon, or GeoJSON (a geometry or a feature), longitude before latitude, border
        included; longitudes may pass 180.
    Raises ConfigError for what cannot be meant: an inverted box, a polygon that crosses itself, numbers that are not
    finite or out of range, near without km.
    """

    domains: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    any_tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    box: Box | None = None
    near: tuple[float, float] | None = None
    km: float | None = None
    polygon: Any = None

    def __post_init__(self) -> None:
        for name in ("domains", "tags", "any_tags", "sources"):
            value = getattr(self, name)
            values = (value,) if isinstance(value, str) else tuple(value)
            if not all(isinstance(one, str) and one for one in values):
                raise ConfigError(f"{name} must be names that are not empty, not {value!r}")
            object.__setattr__(self, name, values)
        if self.box is not None:
            object.__setattr__(self, "box", _checked_box(self.box))
        if (self.near is None) != (self.km is None):
            raise ConfigError("near and km belong together: give a place (latitude, longitude) and a distance")
        if self.near is not None:
            object.__setattr__(self, "near", _checked_place(self.near))
            object.__setattr__(self, "km", _checked_km(self.km))
        if self.polygon is not None:
            object.__setattr__(self, "polygon", _checked_polygon(self.polygon))

    @property
    def geographic(self) -> bool:
        """Whether rows without a place are outside."""
        return self.box is not None or self.near is not None or self.polygon is not None

    @property
    def empty(self) -> bool:
        """Whether everything passes."""
        return not (self.geographic or self.domains or self.tags or self.any_tags or self.sources)

    def mask(self, rows: "pd.DataFrame | pa.Table | Columns") -> np.ndarray:
        """Which of N rows pass, bool (N,).

        rows: a table with the columns that this filter names (`columns.FILTERED`), or `Columns` of one.
        Raises ConfigError for a domain, source or tag that no row has, offering the nearest one.
        """
        columns = rows if isinstance(rows, Columns) else Columns.of(rows)
        passed = np.ones(len(columns), bool)
        if self.domains:
            passed &= columns.named("domain", self.domains)
        if self.sources:
            passed &= columns.named("source", self.sources)
        for tag in self.tags:
            passed &= columns.tagged((tag,))
        if self.any_tags:
            passed &= columns.tagged(self.any_tags)
        if self.box is not None:
            _narrow(passed, lambda lon, lat: _in_box(lon, lat, self.box), columns)
        if self.near is not None and self.km is not None:
            _narrow(passed, lambda lon, lat: _is_near(lon, lat, self.near, self.km), columns)
        if self.polygon is not None:
            _narrow(passed, lambda lon, lat: _in_polygon(lon, lat, self.polygon), columns)
        return passed


def _numbers(value: Any, count: int, what: str, how: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(one) for one in value)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(one) for one in numbers):
        raise ConfigError(f"{what} is {value!r}; it must be {how}, finite numbers in degrees")
    return numbers


def _checked_box(box: Any) -> Box:
    west, south, east, north = _numbers(box, 4, "box", "west, south, east, north")
    if south > north:
        raise ConfigError(f"The box is inverted: its south {south:g} lies north of its north {north:g}; swap them")
    if south < -90 or north > 90 or not -180 <= west <= 180 or not -180 <= east <= 360:
        raise ConfigError(f"box is {box!r}; latitudes lie within 90 degrees, longitudes within 180 (east may pass it)")
    if west > east and east + 360 - west > 180:
        raise ConfigError(
            f"The box is inverted: its west {west:g} lies east of its east {east:g}; swap them "
            f"(west > east is read as crossing the antimeridian up to a width of 180 degrees)"
        )
    return west, south, east + 360 if west > east else east, north


def _checked_place(near: Any) -> tuple[float, float]:
    lat, lon = _numbers(near, 2, "near", "latitude, longitude")
    if abs(lat) > 90 or abs(lon) > 180:
        swapped = "; latitude comes first" if abs(lon) <= 90 and abs(lat) <= 180 else ""
        raise ConfigError(f"near is {near!r}; latitude lies within 90 degrees, longitude within 180{swapped}")
    return lat, lon


def _checked_km(km: Any) -> float:
    if isinstance(km, bool) or not isinstance(km, int | float | np.number) or not (math.isfinite(km) and km > 0):
        raise ConfigError(f"km is {km!r}; it must be a finite number above 0")
    return float(km)


def _checked_polygon(polygon: Any) -> Any:
    import shapely
    from shapely.geometry import shape

    if isinstance(polygon, Mapping):
        geometry: Any = polygon.get("geometry") if polygon.get("type") == "Feature" else polygon
        try:
            polygon = shape(geometry)
        except Exception as error:  # shapely raises what the broken value happens to cause
            raise ConfigError("The polygon is no GeoJSON geometry; give a Polygon or a feature") from error
    kind = getattr(polygon, "geom_type", type(polygon).__name__)
    if kind not in ("Polygon", "MultiPolygon"):
        raise ConfigError(f"The polygon is a {kind}; give a Polygon or MultiPolygon, or GeoJSON of one")
    if polygon.is_empty or not np.isfinite(shapely.get_coordinates(polygon)).all():
        raise ConfigError("The polygon is empty or has coordinates that are not finite numbers")
    west, south, east, north = polygon.bounds
    if south < -90 or north > 90 or west < -360 or east > 360:
        raise ConfigError(f"The polygon reaches from {west:g}, {south:g} to {east:g}, {north:g}: no longitudes and "
                          "latitudes in degrees (WGS 84); reproject it to EPSG:4326")  # fmt: skip
    if not polygon.is_valid:
        reason = shapely.is_valid_reason(polygon)
        raise ConfigError(f"The polygon is not valid ({reason}, longitude and latitude): its border crosses itself "
                          "or touches itself; draw it again")  # fmt: skip
    return polygon


def _narrow(passed: np.ndarray, test: Any, columns: Columns) -> None:
    """Let pass only what also passes `test`, asked of the places that have passed so far."""
    if passed.all():
        passed[:] = test(columns.lon, columns.lat)
        return
    rows = np.flatnonzero(passed)
    passed[rows] = test(columns.lon[rows], columns.lat[rows])


def _in_box(lon: np.ndarray, lat: np.ndarray, box: Any) -> np.ndarray:
    west, south, east, north = box
    inside = (lon >= west) & (lon <= east)
    if east >= 180:  # -180 and 180 are one meridian
        inside |= lon <= east - 360
    if west == -180:
        inside |= lon == 180
    return inside & (lat >= south) & (lat <= north)


def _is_near(lon: np.ndarray, lat: np.ndarray, near: Any, km: Any) -> np.ndarray:
    """Haversine distance of at most `km`; the latitude alone decides for most rows."""
    here_lat, here_lon = near
    inside = np.abs(lat - here_lat) <= np.degrees(km / EARTH_KM) * (1 + 1e-9) + 1e-9
    rows = np.flatnonzero(inside)
    inside[rows] = distance_km(lon[rows], lat[rows], here_lon, here_lat) <= km
    return inside


def distance_km(lon: np.ndarray, lat: np.ndarray, here_lon: float, here_lat: float) -> np.ndarray:
    """Great-circle distance on a sphere, kilometres, float64 (N,); NaN for a place that is unknown."""
    a, b = np.radians(lat), np.radians(here_lat)
    across = np.sin(np.radians(lon - here_lon) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(np.sin((a - b) / 2) ** 2 + np.cos(a) * np.cos(b) * across, 0, 1)))


def _in_polygon(lon: np.ndarray, lat: np.ndarray, polygon: Any) -> np.ndarray:
    """Inside or on the border; also one turn further where the polygon passes 180 degrees."""
    import shapely

    shapely.prepare(polygon)
    west, south, east, north = polygon.bounds
    inside = np.zeros(len(lon), bool)
    for turn in (0, *(360,) * (east > 180), *(-360,) * (west < -180)):
        x = lon + turn
        rows = np.flatnonzero((x >= west) & (x <= east) & (lat >= south) & (lat <= north) & ~inside)
        inside[rows] = shapely.intersects_xy(polygon, x[rows], lat[rows])
    return inside


def _joined(shapes: list[Any]) -> Any:
    """What lies in any of several areas; None of none."""
    import shapely

    known = [shape for shape in shapes if shape is not None]
    return Filter(polygon=shapely.union_all(known)).polygon if known else None


def polygon_in(path: Path) -> Any:
    """The area of a GeoJSON file, all its polygons, as `Filter.polygon`. Raises ConfigError for a file without one."""
    try:
        area = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--polygon {path} is no GeoJSON file ({error})") from error
    features = area.get("features") if isinstance(area, dict) else None
    parts = features if isinstance(features, list) and area.get("type") == "FeatureCollection" else [area]
    try:
        shapes = [Filter(polygon=part).polygon for part in parts]
        area = shapes[0] if len(shapes) == 1 else _joined(shapes)
    except ConfigError as error:
        raise ConfigError(f"--polygon {path}: {error}") from error
    if area is None:
        raise ConfigError(f"--polygon {path} holds no polygon; give GeoJSON of one")
    return area
