"""A city to photograph, read from an OpenStreetMap extract and dressed in a country's colours."""

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from ucore.city import City
from ucore.countries import CountryStyle
from ucore.errors import DataError
from ucore.geo import local_frame
from ucore.kinds import COVER, KINDS, Feature, kind_of
from ucore.site import pick

if TYPE_CHECKING:
    import geopandas

LEVEL_M = 3.1  # metres a storey of `building:levels`
SMALL_HOUSE, LARGE_HALL = 260.0, 1500.0  # square metres: what a building of unknown kind is taken for


def city_from_osm(table: "geopandas.GeoDataFrame", style: CountryStyle, source: str = "") -> City:
    """The features of an extract (as from `read_osm`) as a city in a country's colours.

    Lines get their class's usual width; colours and unknown heights are drawn from the style, by place.
    Raises DataError when nothing can be drawn.
    """
    kinds = [kind_of(tags) for tags in table["tags"]]
    rows = [number for number, kind in enumerate(kinds) if kind]
    if not rows:
        raise DataError("The extract holds nothing that can be drawn (buildings, roads, land use). Use a larger one.")
    west, south, east, north = table.total_bounds
    frame = local_frame((west + east) / 2, (south + north) / 2)
    shapes = frame.to_metres(np.asarray(table.geometry.values)[rows])
    features = [
        feature
        for number, shape in zip(rows, shapes, strict=True)
        for feature in _mapped(str(kinds[number]), shape, table["tags"].iloc[number], style)
    ]
    corners = shapely.get_coordinates(frame.to_metres(shapely.points([(west, south), (east, north)])))
    width, height = corners[1] - corners[0]
    return City(style, frame, float(width), float(height), features, source or "OpenStreetMap extract", True)


def _mapped(kind: str, shape: Any, tags: dict[str, str], style: CountryStyle) -> list[Feature]:
    """Features of one mapped object: lines widened, groups taken apart, colour, height and roof chosen."""
    layer = KINDS[kind].layer
    if shape.geom_type == "Point":
        if kind == "tree":
            rng = np.random.default_rng(Feature(kind, shape).seed)
            return [Feature(kind, shape, tags, height=8.0, radius=style.crown * rng.uniform(0.8, 1.3))]
        if kind not in ("storage_tank", "chimney", "crane", "wind_turbine"):
            return []
        shape = shape.buffer(3.0)
    elif "Line" in shape.geom_type:
        width = KINDS[kind].width * style.street_scale
        if kind == "river":
            width = {"stream": 3.0, "canal": 12.0}.get(tags.get("waterway", ""), style.river_width)
        if not width:
            return []
        shape = shape.buffer(width / 2, quad_segs=3)
    features = []
    for part in getattr(shape, "geoms", [shape]):
        if part.geom_type != "Polygon" or part.area < 1:
            continue
        feature = Feature(kind, part, tags, height=_height(kind, tags))
        if KINDS[kind].paint == "building":
            _dress(feature, style)
        elif layer == COVER and kind == "farmland":
            feature.colour = style.crops[feature.seed % len(style.crops)]
            feature.angle = (feature.seed % 314) / 100
        features.append(feature)
    return features


def _dress(feature: Feature, style: CountryStyle) -> None:
    """A roof for a mapped building: colour by place, shape by size."""
    rng = np.random.default_rng(feature.seed)
    area = feature.geometry.area
    if feature.kind == "building":
        feature.kind = "house" if area < SMALL_HOUSE else "warehouse" if area > LARGE_HALL else "building"
        feature.height = feature.height * (0.7 if area < SMALL_HOUSE else 1.0)
    sloped = feature.kind in ("house", "terrace", "barn", "church") or area < 700
    feature.colour_name, feature.colour = pick(style.house_roofs if sloped else style.flat_roofs, rng)
    feature.roof = style.house_roof if sloped else "flat"


def _height(kind: str, tags: dict[str, str]) -> float:
    for key, unit in (("height", 1.0), ("building:levels", LEVEL_M)):
        try:
            value = float(tags.get(key, "").removesuffix("m").strip()) * unit
        except ValueError:
            continue
        if 1 <= value <= 400:
            return value
    return KINDS[kind].height
