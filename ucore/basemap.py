"""Vector features of OpenStreetMap as the plain background of a map: a few kinds, in a few quiet colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import geopandas

MOST_POINTS = 150_000  # of all paths together: about 2 MB of a page


@dataclass(frozen=True)
class Kind:
    """How one kind of feature is drawn: fill and line colour ("" none), width of the line in pixels at zoom 16."""

    fill: str
    line: str
    width: float = 1.0


# In drawing order: what comes later lies on top.
KINDS = {
    "ground": Kind("#ece6da", ""),
    "green": Kind("#d5e5cb", ""),
    "water": Kind("#bcd7e8", ""),
    "stream": Kind("", "#a5c8de", 2.0),
    "building": Kind("#cfc6bd", "#b5aaa0", 0.7),
    "railway": Kind("", "#8c8c8c", 1.2),
    "path": Kind("", "#ffffff", 1.4),
    "road": Kind("", "#f7d9a0", 4.0),
}
_GREEN = {
    *("forest", "grass", "meadow", "village_green", "recreation_ground", "cemetery", "allotments", "orchard"),
    *("vineyard", "farmland", "wood", "scrub", "heath", "grassland", "wetland", "park", "garden", "pitch"),
    *("golf_course", "playground", "nature_reserve", "common"),
}
_PATHS = {"footway", "path", "steps", "cycleway", "track", "pedestrian", "service", "bridleway", "corridor"}


def kind_of(tags: Mapping[str, str], is_area: bool) -> str | None:
    """The kind (a key of KINDS) of a feature with these tags; None: not drawn."""
    if is_area:
        if tags.get("building", "no") != "no":
            return "building"
        if tags.get("natural") == "water" or "water" in tags or tags.get("waterway") in ("riverbank", "dock"):
            return "water"
        if any(tags.get(key) in _GREEN for key in ("landuse", "natural", "leisure")):
            return "green"
        return "ground" if "landuse" in tags or "amenity" in tags or "natural" in tags else None
    if "highway" in tags:
        return "path" if tags["highway"] in _PATHS else "road"
    if "railway" in tags:
        return "railway"
    return "stream" if "waterway" in tags else None


def background_paths(features: "geopandas.GeoDataFrame", most_points: int = MOST_POINTS) -> dict[str, list[np.ndarray]]:
    """The lines and outlines to draw, a list of float64 (N, 2) lon, lat for each kind, in drawing order.

    features: as from `geo.read_osm`, columns tags (dict) and geometry in EPSG:4326; points are left out. The largest
    features come first and the rest is dropped once `most_points` positions are taken. Holes are not kept.
    """
    import shapely

    found: list[tuple[float, str, np.ndarray]] = []
    for tags, geometry in zip(features["tags"], features.geometry, strict=True):
        if geometry is None or geometry.is_empty:
            continue
        for part in getattr(geometry, "geoms", [geometry]):
            is_area = part.geom_type == "Polygon"
            kind = kind_of(tags, is_area)
            if kind is None or part.geom_type not in ("Polygon", "LineString"):
                continue
            simple = shapely.simplify(part.exterior if is_area else part, 3e-6)
            points = shapely.get_coordinates(simple)
            found.append((float(np.ptp(points, axis=0).max()), kind, points))
    found.sort(key=lambda each: -each[0])
    kept: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    taken = 0
    for _, kind, points in found:
        taken += len(points)
        if taken > most_points:
            break
        kept[kind].append(points)
    return {kind: paths for kind, paths in kept.items() if paths}


def page_features(features: "geopandas.GeoDataFrame") -> list[dict[str, Any]]:
    """`background_paths` as a page takes them: positions in millionths of a degree, each as a step from the last."""
    kinds = []
    for kind, paths in background_paths(features).items():
        style = KINDS[kind]
        steps = [np.diff((path * 1e6).round().astype(int), axis=0, prepend=0).ravel().tolist() for path in paths]
        kinds.append({"fill": style.fill, "line": style.line, "width": style.width, "paths": steps})
    return kinds
