"""How three countries look from above, and how cameras see them: what the simulator may vary, and nothing else.

The palettes and frequencies are this project's own simplification of what differs between the countries'
settlements: a controlled stand-in, not a measurement of them.
"""

from dataclasses import dataclass, field, replace

from ucore.config import did_you_mean
from ucore.errors import ConfigError

RGB = tuple[int, int, int]
Palette = tuple[tuple[str, RGB, float], ...]  # word for captions, colour, frequency


@dataclass(frozen=True)
class CountryStyle:
    """What a country's ground looks like. Lengths in metres, colours RGB in 0..255, frequencies unnormalised."""

    name: str
    place: tuple[float, float]  # lon, lat of the simulated city's centre
    block: tuple[float, float]  # mean and spread of the distance between streets
    warp: float  # how far streets leave the straight grid
    centre: str  # filler of blocks in the centre
    estate: str  # filler of dense blocks around it
    chamfer: float  # cut from the corners of central blocks
    street_scale: float  # widths of ways, relative
    house_roofs: Palette
    flat_roofs: Palette
    house_roof: str  # shape: gable, hip or flat
    colours: dict[str, RGB]
    crops: tuple[RGB, ...]
    field_strip: float  # width of a strip of farmland; large: whole fields
    tree_density: float  # trees beside houses and in courtyards, relative
    crown: float  # radius of a tree
    conifers: float  # share of dark, narrow crowns
    pools: float  # share of houses with a pool
    lakes: float  # per square kilometre
    river_width: float
    uses: dict[str, dict[str, float]] = field(repr=False)  # urbanity class -> filler -> frequency


@dataclass(frozen=True)
class Camera:
    """How the ground becomes a picture: the dial that is not the country."""

    gsd_m: float = 0.8  # metres a pixel
    sun_azimuth: float = 145.0  # degrees clockwise from north, where the light comes from
    sun_elevation: float = 42.0  # degrees above the horizon
    haze: float = 0.06  # share of bluish white mixed in
    warmth: float = 0.0  # > 0 redder, < 0 bluer
    season: float = 0.0  # > 0 drier and yellower vegetation, < 0 lusher
    noise: float = 2.5  # standard deviation of sensor noise, levels of 255
    blur: float = 0.45  # standard deviation of the optics' blur, pixels
    contrast: float = 1.0


SHARED_CAMERA = Camera()
# As in UrbanCross's sources, where each country has its own sensor and resolution.
OWN_CAMERAS = {
    "finland": replace(SHARED_CAMERA, gsd_m=1.2, sun_elevation=28.0, haze=0.12, warmth=-0.06, blur=0.7, contrast=0.9),
    "germany": replace(SHARED_CAMERA, gsd_m=0.8, sun_azimuth=165.0, haze=0.05, season=-0.15, noise=4.0),
    "spain": replace(SHARED_CAMERA, gsd_m=0.5, sun_elevation=58.0, haze=0.02, warmth=0.08, noise=1.5, contrast=1.12),
}

_FACILITIES = {
    "school": 1.2, "church": 0.8, "sports": 1.0, "park": 1.4, "retail": 1.0, "hospital": 0.35, "cemetery": 0.5,
    "construction": 0.6, "parking": 0.7, "square": 0.5, "stadium": 0.3, "station": 0.4,
}  # fmt: skip
_FRINGE = {
    "tanks": 0.5, "warehouses": 1.2, "solar": 0.7, "greenhouses": 0.6, "sewage": 0.5, "quarry": 0.35, "farm": 1.0,
    "turbines": 0.4, "sports": 0.4, "cemetery": 0.2,
}  # fmt: skip


def _uses(centre: dict, urban: dict, suburb: dict, fringe: dict) -> dict[str, dict[str, float]]:
    return {
        "centre": {**_FACILITIES, "offices": 1.0, **centre},
        "urban": {**_FACILITIES, "warehouses": 0.6, **urban},
        "suburb": {**_FACILITIES, "warehouses": 0.5, "allotments": 0.2, **suburb},
        "fringe": {**_FRINGE, **fringe},
    }


COUNTRIES = {
    "finland": CountryStyle(
        name="finland", place=(24.94, 60.20), block=(150.0, 35.0), warp=38.0, centre="perimeter", estate="open",
        chamfer=0.0, street_scale=1.0, house_roof="gable", field_strip=400.0, tree_density=1.7, crown=2.6, conifers=0.7,
        pools=0.01, lakes=2.2, river_width=26.0,
        house_roofs=(("grey", (96, 98, 102), 4), ("dark", (58, 58, 62), 3), ("red", (134, 62, 52), 2),
                     ("brown", (104, 80, 66), 2), ("green", (86, 110, 92), 0.6)),
        flat_roofs=(("grey", (136, 138, 140), 4), ("dark", (84, 86, 90), 3), ("white", (206, 208, 210), 1.5),
                    ("green", (104, 132, 114), 0.5)),
        colours={"grass": (92, 108, 62), "forest": (50, 68, 46), "soil": (122, 112, 92), "asphalt": (104, 106, 110),
                 "paved": (150, 150, 150), "water": (34, 48, 58), "sand": (176, 168, 146), "scrub": (104, 108, 70),
                 "track": (150, 142, 124), "park": (84, 112, 64), "pitch": (84, 142, 88), "yard": (120, 118, 104),
                 "graves": (70, 92, 56), "ballast": (120, 116, 114)},
        crops=((138, 140, 82), (110, 128, 66), (150, 138, 100), (176, 166, 112)),
        uses=_uses({"perimeter": 3.5, "open": 1.5}, {"open": 5.0, "houses": 1.5, "forest": 0.8},
                   {"houses": 5.0, "open": 1.5, "forest": 3.0, "terraces": 0.8},
                   {"forest": 8.0, "fields": 2.5, "meadow": 1.5, "cottages": 1.4, "harbour": 1.0}),
    ),
    "germany": CountryStyle(
        name="germany", place=(12.55, 52.40), block=(112.0, 24.0), warp=20.0, centre="perimeter", estate="slabs",
        chamfer=0.0, street_scale=1.0, house_roof="gable", field_strip=38.0, tree_density=1.0, crown=3.6, conifers=0.15,
        pools=0.06, lakes=0.4, river_width=44.0,
        house_roofs=(("red", (158, 84, 62), 5), ("orange", (184, 108, 74), 3), ("brown", (118, 82, 68), 2),
                     ("grey", (98, 96, 98), 2)),
        flat_roofs=(("grey", (150, 148, 146), 4), ("white", (214, 212, 208), 2), ("dark", (90, 88, 88), 2),
                    ("green", (112, 130, 84), 0.8)),
        colours={"grass": (96, 124, 62), "forest": (60, 88, 50), "soil": (150, 128, 98), "asphalt": (118, 116, 116),
                 "paved": (168, 162, 156), "water": (66, 82, 70), "sand": (206, 190, 150), "scrub": (112, 122, 72),
                 "track": (178, 164, 134), "park": (98, 132, 64), "pitch": (92, 136, 68), "yard": (142, 146, 116),
                 "graves": (92, 118, 66), "ballast": (134, 120, 108)},
        crops=((172, 156, 94), (98, 128, 58), (196, 180, 116), (134, 112, 82), (120, 142, 70), (206, 190, 70)),
        uses=_uses({"perimeter": 6.0}, {"perimeter": 2.5, "slabs": 2.5, "terraces": 1.5, "allotments": 1.0},
                   {"houses": 4.0, "terraces": 2.5, "slabs": 0.8, "allotments": 1.5},
                   {"fields": 9.0, "forest": 2.0, "meadow": 1.5, "village": 1.5, "vineyard": 0.5, "orchard": 0.8}),
    ),
    "spain": CountryStyle(
        name="spain", place=(-0.45, 39.55), block=(108.0, 6.0), warp=5.0, centre="chamfered", estate="chamfered",
        chamfer=17.0, street_scale=1.15, house_roof="hip", field_strip=90.0, tree_density=0.5, crown=2.8, conifers=0.1,
        pools=0.45, lakes=0.15, river_width=30.0,
        house_roofs=(("orange", (196, 122, 82), 5), ("red", (176, 96, 68), 2), ("brown", (156, 114, 86), 2),
                     ("white", (222, 214, 200), 2)),
        flat_roofs=(("red", (172, 110, 84), 3), ("white", (226, 220, 208), 3), ("brown", (176, 150, 124), 3),
                    ("grey", (166, 160, 152), 2)),
        colours={"grass": (146, 138, 88), "forest": (78, 90, 58), "soil": (188, 150, 110), "asphalt": (138, 132, 126),
                 "paved": (196, 184, 168), "water": (58, 104, 112), "sand": (222, 204, 164), "scrub": (160, 146, 104),
                 "track": (206, 182, 146), "park": (188, 170, 124), "pitch": (190, 160, 112), "yard": (206, 190, 160),
                 "graves": (186, 178, 164), "ballast": (162, 138, 118)},
        crops=((196, 162, 112), (180, 142, 100), (162, 148, 88), (206, 186, 134)),
        uses=_uses({"chamfered": 7.0}, {"chamfered": 5.0, "terraces": 1.0, "slabs": 1.0},
                   {"houses": 4.5, "terraces": 2.0, "scrub": 1.0},
                   {"fields": 2.5, "olives": 5.0, "orchard": 2.0, "scrub": 3.0, "greenhouses": 1.8, "solar": 1.4,
                    "vineyard": 1.4, "beach": 0.9, "villas": 1.6}),
    ),
}  # fmt: skip


def country_style(name: str) -> CountryStyle:
    """The style of a simulated country. Raises ConfigError with the names there are."""
    key = name.strip().lower()
    if key not in COUNTRIES:
        known = ", ".join(COUNTRIES)
        raise ConfigError(f"There is no simulated country {name!r}{did_you_mean(key, COUNTRIES)}. Choose from {known}.")
    return COUNTRIES[key]


def country_camera(name: str, sensor: str) -> Camera:
    """The camera of a country: the same for all with sensor "shared", its own with "per-country"."""
    if sensor not in ("shared", "per-country"):
        raise ConfigError(f"sensor is {sensor!r}; choose shared (one camera) or per-country (each its own)")
    return SHARED_CAMERA if sensor == "shared" else OWN_CAMERAS[name]
