"""What stands on simulated ground: kinds of map features, their OpenStreetMap tags, and the way from tags to kinds.

A procedural city and a real OpenStreetMap extract both become `Feature`s, which the painter draws by their kind.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

# Order of painting; within a layer, lower features come first.
COVER, AREA, SURFACE, WAY, RAISED, TREE = range(6)


class Kind(NamedTuple):
    """One kind of feature: how OpenStreetMap tags it, how captions name it, how it is painted."""

    tags: dict[str, str]
    noun: str  # of captions, singular
    plural: str
    paint: str  # the painter's name in `painters.PAINTERS`
    layer: int
    height: float = 0.0  # metres above ground, casts a shadow
    weight: float = 1.0  # how much a caption wants to mention it; 0: never
    width: float = 0.0  # metres, of ways drawn from a line


def _kind(tags: str, noun: str, paint: str, layer: int, height: float = 0.0, weight: float = 1.0, plural: str = "",
          width: float = 0.0) -> Kind:  # fmt: skip
    pairs = dict(part.split("=") for part in tags.split())
    return Kind(pairs, noun, plural or f"{noun}s", paint, layer, height, weight, width)


KINDS: dict[str, Kind] = {
    # ground cover
    "residential": _kind("landuse=residential", "residential area", "garden", COVER, weight=0.0),
    "commercial": _kind("landuse=commercial", "commercial area", "paved", COVER, weight=0.0),
    "industrial": _kind("landuse=industrial", "industrial area", "yard", COVER, weight=0.3),
    "farmland": _kind("landuse=farmland", "field", "field", COVER, weight=0.6),
    "meadow": _kind("landuse=meadow", "meadow", "grass", COVER, weight=0.5),
    "scrub": _kind("natural=scrub", "patch of scrub", "scrub", COVER, weight=0.5, plural="patches of scrub"),
    "forest": _kind("landuse=forest", "forest", "canopy", COVER, 14.0, 0.9),
    "orchard": _kind("landuse=orchard", "orchard", "orchard", COVER, weight=1.1),
    "olive_grove": _kind("landuse=orchard trees=olive_trees", "olive grove", "orchard", COVER, weight=1.2),
    "vineyard": _kind("landuse=vineyard", "vineyard", "vineyard", COVER, weight=1.2),
    "beach": _kind("natural=beach", "beach", "sand", COVER, weight=1.2, plural="beaches"),
    "quarry": _kind("landuse=quarry", "quarry", "quarry", COVER, weight=1.5, plural="quarries"),
    # areas on it
    "park": _kind("leisure=park", "park", "park", AREA, weight=0.9),
    "square": _kind("place=square", "square", "paved", AREA, weight=1.0),
    "school_grounds": _kind("amenity=school", "school", "schoolyard", AREA, weight=1.6),
    "hospital": _kind("amenity=hospital", "hospital", "paved", AREA, weight=1.6),
    "cemetery": _kind("landuse=cemetery", "cemetery", "cemetery", AREA, weight=1.6, plural="cemeteries"),
    "allotments": _kind("landuse=allotments", "allotment garden", "allotments", AREA, weight=1.5),
    "construction": _kind("landuse=construction", "construction site", "construction", AREA, weight=1.6),
    "farmyard": _kind("landuse=farmyard", "farm", "yard", AREA, weight=1.0),
    "solar_plant": _kind("power=plant plant:source=solar", "solar plant", "solar", AREA, weight=1.7),
    "wastewater_plant": _kind("man_made=wastewater_plant", "sewage plant", "grass", AREA, weight=1.6),
    "harbour": _kind("leisure=marina", "harbour", "paved", AREA, weight=1.6),
    "lake": _kind("natural=water water=lake", "lake", "water", AREA, weight=1.2),
    "pond": _kind("natural=water water=pond", "pond", "water", AREA, weight=1.1),
    "river": _kind("natural=water water=river", "river", "water", AREA, weight=1.4),
    "basin": _kind("natural=water water=basin", "harbour basin", "water", AREA, weight=0.3),
    # surfaces
    "parking": _kind("amenity=parking", "parking lot", "parking", SURFACE, weight=1.2),
    "running_track": _kind("leisure=track sport=running", "running track", "running", SURFACE, weight=1.5),
    "pitch": _kind("leisure=pitch sport=soccer", "football field", "pitch", SURFACE, weight=1.5),
    "tennis_court": _kind("leisure=pitch sport=tennis", "tennis court", "tennis", SURFACE, weight=1.5),
    "basketball_court": _kind("leisure=pitch sport=basketball", "basketball court", "tennis", SURFACE, weight=1.3),
    "playground": _kind("leisure=playground", "playground", "playground", SURFACE, weight=0.9),
    "swimming_pool": _kind("leisure=swimming_pool", "swimming pool", "pool", SURFACE, weight=1.3),
    "clarifier": _kind("man_made=reservoir_covered", "round basin", "clarifier", SURFACE, weight=1.0),
    "pier": _kind("man_made=pier", "pier", "pier", SURFACE, weight=0.8),
    "boat": _kind("seamark:type=small_craft", "boat", "boat", SURFACE, weight=0.7),
    # ways
    "footway": _kind("highway=footway", "path", "road", WAY, weight=0.2, width=2.2),
    "track": _kind("highway=track", "dirt track", "road", WAY, weight=0.4, width=3.2),
    "street": _kind("highway=residential", "street", "road", WAY, weight=0.3, width=7.0),
    "road": _kind("highway=secondary", "main road", "road", WAY, weight=0.6, width=11.0),
    "motorway": _kind("highway=motorway", "motorway", "road", WAY, weight=1.5, width=26.0),
    "roundabout": _kind("junction=roundabout highway=secondary", "roundabout", "roundabout", WAY, weight=1.6),
    "railway": _kind("railway=rail", "railway line", "rail", WAY, weight=1.4, width=9.0),
    "bridge": _kind("man_made=bridge", "bridge", "bridge", WAY, 5.0, 1.6),
    # raised
    "house": _kind("building=house", "house", "building", RAISED, 6.0, 0.9),
    "terrace": _kind("building=terrace", "row house", "building", RAISED, 7.0, 0.9),
    "apartments": _kind("building=apartments", "apartment block", "building", RAISED, 16.0, 1.0),
    "office": _kind("building=office", "office tower", "building", RAISED, 38.0, 1.3),
    "retail": _kind("building=retail", "store", "building", RAISED, 7.0, 1.3),
    "warehouse": _kind("building=warehouse", "warehouse", "building", RAISED, 10.0, 1.2),
    "school": _kind("building=school", "school building", "building", RAISED, 10.0, 0.4),
    "hospital_building": _kind("building=hospital", "hospital building", "building", RAISED, 20.0, 0.3),
    "church": _kind("amenity=place_of_worship building=church", "church", "building", RAISED, 17.0, 1.7, "churches"),
    "tower": _kind("man_made=tower", "tower", "building", RAISED, 32.0, 0.0),
    "stadium": _kind("leisure=stadium", "stadium", "building", RAISED, 18.0, 2.0),
    "train_station": _kind("railway=station building=train_station", "train station", "building", RAISED, 10.0, 1.7),
    "barn": _kind("building=barn", "barn", "building", RAISED, 7.0, 0.8),
    "garage": _kind("building=garage", "garage", "building", RAISED, 3.0, 0.0),
    "shed": _kind("building=shed", "shed", "building", RAISED, 2.6, 0.0),
    "building": _kind("building=yes", "building", "building", RAISED, 9.0, 0.8),
    "greenhouse": _kind("building=greenhouse", "greenhouse", "greenhouse", RAISED, 4.0, 1.6),
    "storage_tank": _kind("man_made=storage_tank", "storage tank", "tank", RAISED, 12.0, 1.6),
    "chimney": _kind("man_made=chimney", "chimney", "tank", RAISED, 45.0, 0.8),
    "crane": _kind("man_made=crane", "crane", "crane", RAISED, 0.0, 0.9),
    "wind_turbine": _kind("power=generator generator:source=wind", "wind turbine", "turbine", RAISED, 0.0, 1.6),
    "tree": _kind("natural=tree", "tree", "tree", TREE, 8.0, 0.25),
}


@dataclass
class Feature:
    """One thing on the ground, in local metres (x east, y north).

    geometry: a shapely Polygon or Point. tags: as OpenStreetMap would have them.
    colour: RGB 0..255 and its word for captions, or None where the painter decides. angle: of rows, radians, or None
    for the longer side's.
    """

    kind: str
    geometry: Any
    tags: dict[str, str] = field(default_factory=dict)
    colour: tuple[int, int, int] | None = None
    colour_name: str = ""
    roof: str = "flat"  # flat, gable or hip
    height: float = 0.0
    angle: float | None = None
    radius: float = 0.0  # metres, of a tree's crown
    _insets: dict[float, list[np.ndarray]] = field(default_factory=dict, repr=False)

    @cached_property
    def rings(self) -> list[np.ndarray]:
        """Exterior and holes, float64 (n, 2) each; the one position of a point."""
        from shapely import get_coordinates
        from shapely.geometry import Point

        if isinstance(self.geometry, Point):
            return [get_coordinates(self.geometry)]
        parts = getattr(self.geometry, "geoms", [self.geometry])
        return [get_coordinates(ring) for part in parts for ring in (part.exterior, *part.interiors)]

    def inset(self, metres: float) -> list[np.ndarray]:
        """Exteriors of the polygon shrunk by `metres`, or grown where negative, float64 (n, 2) each; kept."""
        from shapely import get_coordinates

        if metres not in self._insets:
            shape = self.geometry.buffer(-metres, quad_segs=2, join_style="round" if metres > 0 else "mitre")
            parts = [part for part in getattr(shape, "geoms", [shape]) if not part.is_empty]
            self._insets[metres] = [get_coordinates(part.exterior) for part in parts]
        return self._insets[metres]

    @cached_property
    def seed(self) -> int:
        """A number of its place, so that decorations stay the same whichever tile shows the feature."""
        return zlib.crc32(np.round(self.rings[0][0] * 10).astype(np.int64).tobytes() + self.kind.encode())


# --- from OpenStreetMap's tags to kinds -------------------------------------------------------------------------

# (key, value or "*", kind): the first that fits decides.
RULES: tuple[tuple[str, str, str], ...] = (
    ("leisure", "stadium", "stadium"),
    ("building", "stadium", "stadium"),
    ("building", "grandstand", "stadium"),
    ("amenity", "place_of_worship", "church"),
    *(("building", value, "church") for value in ("church", "cathedral", "chapel", "mosque", "temple", "synagogue")),
    ("building", "train_station", "train_station"),
    *(("building", value, "house") for value in ("house", "detached", "semidetached_house", "bungalow", "cabin")),
    *(("building", value, "apartments") for value in ("apartments", "residential", "dormitory", "hotel")),
    *(("building", value, "school") for value in ("school", "kindergarten", "university", "college")),
    *(("building", value, "garage") for value in ("garage", "garages", "carport")),
    *(("building", value, "shed") for value in ("shed", "hut", "kiosk", "roof")),
    *(("building", value, "warehouse") for value in ("warehouse", "industrial", "hangar", "manufacture")),
    *(("building", value, "retail") for value in ("retail", "supermarket")),
    *(("building", value, "office") for value in ("office", "commercial", "public", "civic", "government")),
    *(("building", value, "barn") for value in ("barn", "farm", "farm_auxiliary", "stable", "cowshed")),
    ("building", "terrace", "terrace"),
    ("building", "hospital", "hospital_building"),
    ("building", "greenhouse", "greenhouse"),
    ("building", "*", "building"),
    ("trees", "olive_trees", "olive_grove"),
    ("man_made", "storage_tank", "storage_tank"),
    ("man_made", "silo", "storage_tank"),
    ("man_made", "chimney", "chimney"),
    ("man_made", "tower", "tower"),
    ("man_made", "reservoir_covered", "clarifier"),
    ("man_made", "crane", "crane"),
    ("man_made", "pier", "pier"),
    ("man_made", "bridge", "bridge"),
    ("man_made", "wastewater_plant", "wastewater_plant"),
    ("generator:source", "wind", "wind_turbine"),
    ("plant:source", "solar", "solar_plant"),
    ("natural", "tree", "tree"),
    ("natural", "wood", "forest"),
    ("landuse", "forest", "forest"),
    ("natural", "scrub", "scrub"),
    ("natural", "heath", "scrub"),
    ("natural", "beach", "beach"),
    ("natural", "sand", "beach"),
    ("water", "river", "river"),
    ("waterway", "riverbank", "river"),
    ("water", "pond", "pond"),
    ("water", "basin", "basin"),
    ("natural", "water", "lake"),
    ("landuse", "basin", "pond"),
    ("waterway", "river", "river"),
    ("waterway", "canal", "river"),
    ("waterway", "stream", "river"),
    ("leisure", "swimming_pool", "swimming_pool"),
    ("leisure", "track", "running_track"),
    ("sport", "tennis", "tennis_court"),
    ("sport", "basketball", "basketball_court"),
    ("leisure", "pitch", "pitch"),
    ("leisure", "playground", "playground"),
    ("leisure", "marina", "harbour"),
    *(("leisure", value, "park") for value in ("park", "garden", "golf_course")),
    ("amenity", "parking", "parking"),
    ("amenity", "school", "school_grounds"),
    ("amenity", "hospital", "hospital"),
    ("amenity", "grave_yard", "cemetery"),
    ("landuse", "cemetery", "cemetery"),
    ("landuse", "allotments", "allotments"),
    ("landuse", "construction", "construction"),
    ("landuse", "farmyard", "farmyard"),
    ("landuse", "farmland", "farmland"),
    ("landuse", "orchard", "orchard"),
    ("landuse", "vineyard", "vineyard"),
    ("landuse", "quarry", "quarry"),
    *(("landuse", value, "meadow") for value in ("meadow", "grass", "village_green", "recreation_ground")),
    ("natural", "grassland", "meadow"),
    ("landuse", "residential", "residential"),
    ("landuse", "industrial", "industrial"),
    ("landuse", "railway", "industrial"),
    ("landuse", "commercial", "commercial"),
    ("landuse", "retail", "commercial"),
    ("place", "square", "square"),
    ("junction", "roundabout", "street"),
    ("highway", "motorway", "motorway"),
    ("highway", "trunk", "motorway"),
    *(("highway", value, "road") for value in ("primary", "secondary", "tertiary", "motorway_link", "trunk_link")),
    *(("highway", value, "street") for value in ("residential", "unclassified", "living_street", "service")),
    ("highway", "pedestrian", "square"),
    ("highway", "track", "track"),
    *(("highway", value, "footway") for value in ("footway", "path", "cycleway", "steps")),
    ("railway", "rail", "railway"),
    ("railway", "light_rail", "railway"),
)
_ORDER = {(key, value): number for number, (key, value, _) in reversed(list(enumerate(RULES)))}


def kind_of(tags: Mapping[str, Any]) -> str | None:
    """The kind that OpenStreetMap `tags` describe, None for what is not drawn."""
    found = [_ORDER[key, value] for key, value in tags.items() if (key, value) in _ORDER]
    found += [_ORDER[key, "*"] for key in tags if (key, "*") in _ORDER and tags[key] != "no"]
    return RULES[min(found)][2] if found else None
