"""What fills a block of a simulated city: one function a use, from houses with gardens to a sewage plant.

A filler takes a `Site`, the block's polygon in local metres, and adds features to it. Everything is placed along the
block's own axes, so rows of houses follow the street.
"""

import math
from collections.abc import Callable

import numpy as np
from shapely.geometry import LineString, Point, Polygon

from ucore.countries import CountryStyle, Palette
from ucore.kinds import Feature
from ucore.site import Site, pick

# --- living -----------------------------------------------------------------------------------------------------


def _edge_rows(site: Site, ring: Polygon, depth: float, wide: tuple[float, float], kind: str, palette: Palette,
               roof: str, height: tuple[float, float]) -> None:  # fmt: skip
    """Buildings side by side along the edges of `ring`, `depth` metres deep."""
    corners = np.array(ring.exterior.coords)
    block_height = site.rng.uniform(*height)
    for start, end in zip(corners[:-1], corners[1:], strict=True):
        length = float(np.hypot(*(end - start)))
        if length < wide[0]:
            continue
        direction = (end - start) / length
        inward = np.array([-direction[1], direction[0]]) * (1 if ring.exterior.is_ccw else -1)
        at = 0.0
        while at < length - 4:
            width = min(site.rng.uniform(*wide), length - at)
            a, b = start + at * direction, start + (at + width) * direction
            house = Polygon([a, b, b + inward * depth, a + inward * depth]).intersection(ring)
            if house.geom_type == "Polygon" and house.area > 40:
                site.add(kind, house, palette=palette, roof=roof, height=block_height * site.rng.uniform(0.9, 1.1))
            at += width


def perimeter(site: Site) -> None:
    """Houses wall to wall around a courtyard, as in central European cities."""
    site.add("residential", site.ground)
    ring = site.ground.simplify(2).buffer(-1.5, join_style="mitre")
    if ring.geom_type != "Polygon" or ring.is_empty:
        return
    _edge_rows(site, ring, 12.5, (16, 30), "apartments", site.style.house_roofs, "gable", (15, 20))
    yard = ring.buffer(-16)
    if yard.geom_type == "Polygon" and not yard.is_empty:
        for _ in range(site.rng.integers(0, 3)):
            spot = site.rect(*site.rng.uniform(-0.2, 0.2, 2) * (site.length, site.depth), 14, 9)
            site.add("building", spot, palette=site.style.flat_roofs, height=5, inside=0.99)
        site.trees(yard.area / 160, yard, apart=2)


def chamfered(site: Site) -> None:
    """The Spanish extension block: deep houses with flat roofs around a low courtyard, corners cut."""
    site.add("residential", site.ground)
    ring = site.ground.buffer(-0.5, join_style="mitre")
    if ring.geom_type != "Polygon" or ring.is_empty:
        return
    _edge_rows(site, ring, 19, (12, 26), "apartments", site.style.flat_roofs, "flat", (17, 24))
    yard = site.ground.buffer(-21)
    if yard.geom_type == "Polygon" and not yard.is_empty:
        if site.rng.random() < 0.6:
            site.add("building", yard.buffer(-3), palette=site.style.flat_roofs, height=4)
        else:
            site.trees(yard.area / 90, yard)


def slabs(site: Site) -> None:
    """Parallel apartment slabs on lawn, with a car park."""
    site.add("residential", site.ground)
    site.add("park", site.ground.buffer(-4))
    upright = site.rng.random() < 0.5
    reach, other = (site.length, site.depth) if upright else (site.depth, site.length)
    for at in np.arange(-reach / 2 + 16, reach / 2 - 10, site.rng.uniform(30, 40)):
        long = min(other - 24, site.rng.uniform(45, 75))
        spot = site.rect(at, 0, 12.5, long) if upright else site.rect(0, at, long, 12.5)
        site.add("apartments", spot, palette=site.style.flat_roofs, height=site.rng.uniform(12, 24), inside=0.97)
    if site.rng.random() < 0.6:
        site.add("parking", site.rect(site.length / 2 - 12, 0, 16, site.depth * 0.6), inside=0.9)
    site.trees(site.ground.area / 260, apart=3)


def open_blocks(site: Site) -> None:
    """Nordic estate: slabs and towers at free angles among trees."""
    site.add("residential", site.ground)
    for u in np.arange(-site.length / 2 + 24, site.length / 2 - 15, 42):
        for v in np.arange(-site.depth / 2 + 20, site.depth / 2 - 12, 38):
            if site.rng.random() < 0.2:
                continue
            size = (22, 20) if site.rng.random() < 0.3 else (site.rng.uniform(30, 44), 12)
            turn = float(site.rng.choice([0, 0.35, math.pi / 2]))
            spot = site.rect(u + site.rng.uniform(-4, 4), v, *size, turn=turn)
            site.add("apartments", spot, palette=site.style.flat_roofs, height=site.rng.uniform(10, 22), inside=0.98)
    if site.rng.random() < 0.5:
        site.add("parking", site.rect(0, site.depth / 2 - 12, site.length * 0.4, 17), inside=0.9)
    if site.rng.random() < 0.3:
        site.add("playground", site.rect(site.length / 3, -site.depth / 3, 15, 12), inside=0.95)
    site.trees(site.ground.area / 110, apart=3)


def houses(site: Site, lot: float = 23.0, size: tuple[float, float] = (10, 14), pools: float | None = None) -> None:
    """Detached houses in two rows, each with a garden."""
    site.add("residential", site.ground)
    pools = site.style.pools if pools is None else pools
    rows = [-site.depth / 2 + 13, site.depth / 2 - 13] if site.depth > 42 else [0.0]
    for v in rows:
        inner = -np.sign(v)
        for u in np.arange(-site.length / 2 + lot / 2, site.length / 2 - lot / 3, lot):
            if site.rng.random() < 0.06:
                continue
            shift, long, deep = site.rng.uniform(-2, 2), site.rng.uniform(*size), site.rng.uniform(8, 11)
            house = site.rect(u + shift, v, long, deep, site.rng.normal(0, 0.04))
            if not site.add("house", house, palette=site.style.house_roofs, roof=site.style.house_roof, inside=0.95):
                continue
            if site.rng.random() < 0.35:
                garage = site.rect(u + lot * 0.38, v + inner * 6, 4, 6)
                site.add("garage", garage, palette=site.style.flat_roofs, inside=0.95)
            if site.rng.random() < pools:
                site.add("swimming_pool", site.rect(u - 4, v + inner * 13, 9, 4.5), inside=0.98)
    site.trees(site.ground.area / 230, apart=4)


def villas(site: Site) -> None:
    """Large houses with pools."""
    houses(site, lot=34, size=(14, 19), pools=max(0.5, 1.5 * site.style.pools))


def cottages(site: Site) -> None:
    """A few cottages in the woods."""
    site.add("forest", site.ground)
    for _ in range(site.rng.integers(2, 6)):
        u, v = site.rng.uniform(-0.4, 0.4, 2) * (site.length, site.depth)
        if site.add("meadow", Point(site.at(u, v)).buffer(16, quad_segs=4), inside=0.97):
            house = site.rect(u, v, 11, 8, site.rng.uniform(0, 3))
            site.add("house", house, palette=site.style.house_roofs, roof="gable", inside=0.9)


def terraces(site: Site) -> None:
    """Rows of row houses with narrow gardens."""
    site.add("residential", site.ground)
    for v in np.arange(-site.depth / 2 + 12, site.depth / 2 - 9, 27):
        colour = pick(site.style.house_roofs, site.rng)
        for number, u in enumerate(np.arange(-site.length / 2 + 10, site.length / 2 - 8, 6.6)):
            if number % 8 == 7:
                continue
            house = site.rect(u, v, 6.5, 10)
            site.add("terrace", house, palette=((*colour, 1.0),), roof="gable", height=7.5, inside=0.97)
    site.trees(site.ground.area / 330, apart=3)


def village(site: Site) -> None:
    """Houses, sometimes around a church."""
    houses(site, lot=27)
    if site.rng.random() < 0.5:
        ground = site.ground.intersection(Point(site.centre).buffer(30))
        if ground.geom_type == "Polygon" and not ground.is_empty:
            church(Site(ground, site.style, site.rng, site.features))


# --- working ----------------------------------------------------------------------------------------------------


def offices(site: Site) -> None:
    site.add("square", site.ground)
    for u in np.arange(-site.length / 2 + 25, site.length / 2 - 15, 44):
        for v in (-site.depth / 4, site.depth / 4):
            size, high = site.rng.uniform(20, 32, 2), site.rng.uniform(25, 60)
            site.add("office", site.rect(u, v, *size), palette=site.style.flat_roofs, height=high, inside=0.98)
    site.trees(8, apart=4)


def retail(site: Site) -> None:
    site.add("commercial", site.ground)
    long, deep = min(site.length - 12, 95), min(site.depth * 0.42, 52)
    shop = site.rect(0, site.depth / 2 - deep / 2 - 5, long, deep)
    site.add("retail", shop, palette=site.style.flat_roofs, inside=0.95)
    site.add("parking", site.rect(0, -deep / 2, site.length * 0.88, site.depth - deep - 16), inside=0.85)


def warehouses(site: Site) -> None:
    site.add("industrial", site.ground)
    deep, rows = min(site.depth / 2 - 12, 44), [-site.depth / 4 - 1, site.depth / 4 + 1]
    if deep < 14:
        deep, rows = site.depth - 14, [0.0]
    for v in rows:
        at = -site.length / 2 + 6
        while at < site.length / 2 - 25:
            long = min(site.rng.uniform(38, 80), site.length / 2 - 6 - at)
            site.add("warehouse", site.rect(at + long / 2, v, long, deep), palette=site.style.flat_roofs, inside=0.95)
            at += long + site.rng.uniform(7, 16)


def tanks(site: Site) -> None:
    site.add("industrial", site.ground)
    radius, across = site.rng.uniform(8, 15), int(site.rng.integers(1, 4))
    reach = min(site.length, 130) / 2
    colour = pick((("white", (226, 226, 222), 3), ("grey", (160, 162, 164), 1)), site.rng)
    for u in np.arange(-reach + 20, reach - 14, 2.7 * radius):
        for v in (np.arange(across) - (across - 1) / 2) * 2.7 * radius:
            tank = Point(site.at(u, v)).buffer(radius * site.rng.uniform(0.85, 1.05), quad_segs=12)
            high = site.rng.uniform(9, 15)
            site.add("storage_tank", tank, palette=((*colour, 1.0),), height=high, inside=0.99)
    if site.rng.random() < 0.5:
        site.add("chimney", Point(site.at(site.length / 2 - 12, 0)).buffer(2.4), colour=(190, 180, 176), inside=0.9)


def solar(site: Site) -> None:
    site.add("meadow", site.ground)
    site.add("solar_plant", site.ground.buffer(-7), turn=-site.angle)


def greenhouses(site: Site) -> None:
    site.add("farmland", site.ground, colour=site.style.colours["soil"])
    for v in np.arange(-site.depth / 2 + 14, site.depth / 2 - 10, 24):
        for u in np.arange(-site.length / 2 + 32, site.length / 2 - 20, 62):
            site.add("greenhouse", site.rect(u, v, 56, 20), inside=0.98)


def sewage(site: Site) -> None:
    site.add("wastewater_plant", site.ground)
    for u in np.arange(-site.length / 2 + 24, site.length / 2 - 18, 42):
        for v in (-site.depth / 4, site.depth / 4):
            site.add("clarifier", Point(site.at(u, v)).buffer(14.5, quad_segs=12), inside=0.99)
    site.add("building", site.rect(0, 0, 24, 12), palette=site.style.flat_roofs, height=6, inside=0.99)


def quarry(site: Site) -> None:
    site.add("scrub", site.ground)
    site.add("quarry", site.blob(0.48))


def farm(site: Site) -> None:
    fields(site)
    site.add("farmyard", site.rect(0, 0, 70, 56), inside=0.9)
    for kind, u, v, long, deep in (("barn", -18, 12, 34, 16), ("barn", 14, -14, 42, 15), ("house", 20, 16, 16, 12)):
        site.add(kind, site.rect(u, v, long, deep), palette=site.style.house_roofs, roof="gable", inside=0.95)
    if site.rng.random() < 0.5:
        site.add("storage_tank", Point(site.at(-2, -4)).buffer(4), colour=(214, 214, 210), height=12, inside=0.99)
    site.trees(8, apart=2)


def turbines(site: Site) -> None:
    fields(site)
    for u in (-site.length / 4, site.length / 4):
        mast = Point(site.at(u, site.rng.uniform(-10, 10))).buffer(2)
        site.add("wind_turbine", mast, turn=site.rng.uniform(0, 2), inside=0.9)


# --- public -----------------------------------------------------------------------------------------------------


def school(site: Site) -> None:
    site.add("school_grounds", site.ground)
    wing = min(62.0, site.length * 0.5)
    main = site.rect(-site.length / 2 + wing / 2 + 8, site.depth / 2 - 15, wing, 15)
    side = site.rect(-site.length / 2 + 16, site.depth / 2 - 32, 15, 40)
    shape = main.union(side).intersection(site.ground.buffer(-3))
    if shape.geom_type == "Polygon":
        site.add("school", shape, palette=site.style.flat_roofs)
    if site.length > 115 and site.depth > 75:
        u, v = site.length / 2 - 52, -site.depth / 8
        site.add("running_track", site.oval(u, v, 84, 52), inside=0.97)
        site.add("pitch", site.rect(u, v, 50, 32), inside=0.97)
    else:
        site.add("basketball_court", site.rect(site.length / 5, -site.depth / 5, 28, 15), inside=0.97)
    site.trees(12, apart=5)


def church(site: Site) -> None:
    site.add("park" if site.rng.random() < 0.5 else "square", site.ground)
    nave, arms = site.rect(0, 0, 42, 14), site.rect(6, 0, 13, 32)
    roof = pick(site.style.house_roofs, site.rng)
    site.add("church", nave.union(arms), palette=((*roof, 1.0),), height=16, inside=0.97)
    site.add("church", site.rect(-22, 0, 9, 9), palette=((*roof, 1.0),), roof="hip", height=32, inside=0.9)
    site.trees(14, apart=6)


def hospital(site: Site) -> None:
    site.add("hospital", site.ground)
    shape = site.rect(-26, 0, 15, 72).union(site.rect(26, 0, 15, 72)).union(site.rect(0, 4, 56, 16))
    shape = shape.intersection(site.ground.buffer(-4))
    if shape.geom_type == "Polygon":
        site.add("hospital_building", shape, palette=(("white", (224, 222, 218), 1),))
    site.add("parking", site.rect(site.length / 2 - 18, 0, 26, site.depth * 0.7), inside=0.9)
    site.trees(10, apart=5)


def stadium(site: Site) -> None:
    site.add("commercial", site.ground)
    factor = max(0.4, min(1.0, (site.length - 6) / 152, (site.depth - 6) / 116))
    outer, inner = (site.oval(0, 0, long * factor, deep * factor) for long, deep in ((152, 116), (118, 82)))
    if not site.ground.buffer(6).contains(outer):
        return
    site.add("running_track", inner)
    site.add("pitch", site.rect(0, 0, 84 * factor, 52 * factor))
    site.add("stadium", outer.difference(inner), palette=(("grey", (178, 180, 184), 2), ("white", (226, 226, 226), 1)))


def sports(site: Site) -> None:
    site.add("park", site.ground)
    if site.length > 105 and site.rng.random() < 0.6:
        site.add("pitch", site.rect(-site.length / 2 + 56, 0, 96, min(60, site.depth - 12)), inside=0.95)
        courts = [(site.length / 2 - 22, v) for v in np.arange(-site.depth / 2 + 16, site.depth / 2 - 8, 22)]
        turn = 0.0
    else:
        along = np.arange(-site.length / 2 + 14, site.length / 2 - 10, 22)
        courts, turn = [(u, v) for u in along for v in (-site.depth / 5, site.depth / 5)], math.pi / 2
    colour = pick((("red", (172, 92, 66), 3), ("green", (70, 120, 84), 2), ("blue", (70, 104, 150), 1)), site.rng)
    for u, v in courts[: int(site.rng.integers(2, 9))]:
        site.add("tennis_court", site.rect(u, v, 30, 16, turn), palette=((*colour, 1.0),), inside=0.97)
    site.trees(14, apart=2)


def park(site: Site) -> None:
    site.add("park", site.ground)
    if site.rng.random() < 0.6:
        site.add("pond", site.blob(site.rng.uniform(0.16, 0.3)))
    ends = [site.at(-site.length / 2, 0), site.at(0, site.depth * 0.22), site.at(site.length / 2, 0)]
    path = LineString(ends).buffer(1.3).intersection(site.ground)
    for part in getattr(path, "geoms", [path]):
        site.add("footway", part)
    if site.rng.random() < 0.4:
        site.add("playground", site.rect(site.length / 4, -site.depth / 4, 18, 14), inside=0.95)
    site.trees(site.ground.area / 130, apart=1.5)


def square(site: Site) -> None:
    site.add("square", site.ground)
    site.add("pond", Point(site.centre).buffer(6), inside=0.9)
    for u in np.arange(-site.length / 2 + 8, site.length / 2 - 6, 11):
        for v in (-site.depth / 2 + 8, site.depth / 2 - 8):
            if site.rng.random() < 0.8:
                site.add("tree", Point(site.at(u, v)), radius=site.style.crown)


def cemetery(site: Site) -> None:
    site.add("cemetery", site.ground)
    site.add("building", site.rect(0, 0, 14, 9), palette=site.style.house_roofs, roof="gable", height=6, inside=0.9)
    site.trees(site.ground.area / 260, apart=3)


def allotments(site: Site) -> None:
    site.add("allotments", site.ground)
    site.trees(site.ground.area / 300)


def construction(site: Site) -> None:
    site.add("construction", site.ground)
    site.add("building", site.rect(0, 0, 38, 24), colour=(186, 182, 176), height=8, inside=0.9)
    for u, v in ((-site.length / 5, site.depth / 5), (site.length / 4, -site.depth / 5)):
        if site.rng.random() < 0.8:
            site.add("crane", Point(site.at(u, v)).buffer(1.5), turn=site.rng.uniform(0, 3), inside=0.9)


def parking(site: Site) -> None:
    site.add("commercial", site.ground)
    site.add("parking", site.ground.buffer(-4))
    site.trees(6)


def station(site: Site) -> None:
    site.add("industrial", site.ground)
    for v in np.arange(-site.depth / 2 + 14, site.depth / 6, 10):
        site.add("railway", site.rect(0, v, site.length, 6.5), inside=0.6)
    hall = site.rect(0, site.depth / 2 - 18, min(92, site.length * 0.7), 22)
    site.add("train_station", hall, palette=site.style.flat_roofs, roof="gable", inside=0.9)


def harbour(site: Site) -> None:
    site.add("harbour", site.ground)
    site.add("basin", site.ground.buffer(-9))
    for u in np.arange(-site.length / 2 + 26, site.length / 2 - 16, 30):
        if not site.add("pier", site.rect(u, 0, 2.6, site.depth - 40), inside=0.97):
            continue
        for v in np.arange(-site.depth / 2 + 24, site.depth / 2 - 24, 6.4):
            for side in (-7, 7):
                if site.rng.random() < 0.8:
                    site.add("boat", site.rect(u + side, v, site.rng.uniform(8, 11), 3.2), inside=0.99)


# --- land -------------------------------------------------------------------------------------------------------


def fields(site: Site) -> None:
    """Farmland: whole fields, or strips side by side, as the country has them."""
    strip = site.style.field_strip
    if strip >= site.depth:
        site.add("farmland", site.ground, colour=_crop(site))
        return
    for v in np.arange(-site.depth / 2, site.depth / 2, strip):
        part = site.rect(0, v + strip / 2, site.length + 2, strip).intersection(site.ground)
        if part.geom_type == "Polygon" and not part.is_empty:
            site.add("farmland", part, colour=_crop(site))


def meadow(site: Site) -> None:
    site.add("meadow", site.ground)
    site.trees(6)


def forest(site: Site) -> None:
    site.add("forest", site.ground.buffer(3))
    if site.rng.random() < 0.35:
        site.add("meadow", site.blob(0.2))


def scrub(site: Site) -> None:
    site.add("scrub", site.ground)
    site.trees(site.ground.area / 500)


def beach(site: Site) -> None:
    site.add("beach", site.ground)
    water = site.rect(0, site.depth / 4, site.length + 12, site.depth * 0.62).intersection(site.ground.buffer(2))
    if water.geom_type == "Polygon":
        site.add("lake", water)


def _plain(kind: str) -> Callable[[Site], None]:
    def fill(site: Site) -> None:
        site.add(kind, site.ground)

    return fill


def _crop(site: Site) -> tuple[int, int, int]:
    return pick(tuple(("", colour, 1.0) for colour in site.style.crops), site.rng)[1]


FILLERS: dict[str, Callable[[Site], None]] = {
    "perimeter": perimeter, "chamfered": chamfered, "slabs": slabs, "open": open_blocks, "houses": houses,
    "villas": villas, "cottages": cottages, "terraces": terraces, "village": village, "offices": offices,
    "retail": retail, "warehouses": warehouses, "tanks": tanks, "solar": solar, "greenhouses": greenhouses,
    "sewage": sewage, "quarry": quarry, "farm": farm, "turbines": turbines, "school": school, "church": church,
    "hospital": hospital, "stadium": stadium, "sports": sports, "park": park, "square": square, "cemetery": cemetery,
    "allotments": allotments, "construction": construction, "parking": parking, "station": station,
    "harbour": harbour, "fields": fields, "meadow": meadow, "forest": forest, "scrub": scrub, "beach": beach,
    "orchard": _plain("orchard"), "olives": _plain("olive_grove"), "vineyard": _plain("vineyard"),
}  # fmt: skip
# Metres (length, depth) that a use wants; blocks too small are joined with a neighbour.
WANTED: dict[str, tuple[float, float]] = {
    "stadium": (165, 125), "hospital": (110, 85), "harbour": (140, 90), "quarry": (150, 110), "school": (118, 76),
    "warehouses": (120, 70), "solar": (130, 80), "sports": (106, 60), "retail": (100, 80), "station": (140, 60),
}  # fmt: skip


def fill_block(use: str, ground: Polygon, style: CountryStyle, rng: np.random.Generator) -> list[Feature]:
    """Features of a block of the given use. Parts of a block cut by a river are filled one by one."""
    parts = [part for part in getattr(ground, "geoms", [ground]) if part.geom_type == "Polygon" and part.area > 120]
    features: list[Feature] = []
    for part in parts:
        FILLERS[use](Site(part, style, rng, features))
    return features
