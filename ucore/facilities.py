"""Blocks where people work, shop, learn, pray and play: the facilities of a simulated city.

Each function fills one `Site`; see `fillers` for the others and for the table of all.
"""

import math

import numpy as np
from shapely.geometry import LineString, Point

from ucore.site import Site, pick

SMALLEST_PUBLIC = 250.0  # square metres of a school or hospital; a piece of a block without room for it is a park

# --- working ----------------------------------------------------------------------------------------------------


def offices(site: Site) -> None:
    """Office towers in two rows on a paved square, a few trees between."""
    site.add("square", site.ground)
    for u in np.arange(-site.length / 2 + 25, site.length / 2 - 15, 44):
        for v in (-site.depth / 4, site.depth / 4):
            size, high = site.rng.uniform(20, 32, 2), site.rng.uniform(25, 60)
            site.add("office", site.rect(u, v, *size), palette=site.style.flat_roofs, height=high, inside=0.98)
    site.trees(8, apart=4)


def retail(site: Site) -> None:
    """A large store along one side, its car park before it."""
    site.add("commercial", site.ground)
    long, deep = min(site.length - 12, 95), min(site.depth * 0.42, 52)
    shop = site.rect(0, site.depth / 2 - deep / 2 - 5, long, deep)
    site.add("retail", shop, palette=site.style.flat_roofs, inside=0.95)
    site.add("parking", site.rect(0, -deep / 2, site.length * 0.88, site.depth - deep - 16), inside=0.85)


def warehouses(site: Site) -> None:
    """Halls of various lengths in one or two rows."""
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
    """Storage tanks in one to three rows, all of one colour, sometimes with a chimney."""
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
    """Solar panels on a meadow."""
    site.add("meadow", site.ground)
    site.add("solar_plant", site.ground.buffer(-7), turn=-site.angle)  # rows from west to east: panels face south


def greenhouses(site: Site) -> None:
    """Greenhouses side by side on bare soil."""
    site.add("farmland", site.ground, colour=site.style.colours["soil"])
    for v in np.arange(-site.depth / 2 + 14, site.depth / 2 - 10, 24):
        for u in np.arange(-site.length / 2 + 32, site.length / 2 - 20, 62):
            site.add("greenhouse", site.rect(u, v, 56, 20), inside=0.98)


def sewage(site: Site) -> None:
    """A sewage plant: round basins in two rows, a building in the middle."""
    site.add("wastewater_plant", site.ground)
    for u in np.arange(-site.length / 2 + 24, site.length / 2 - 18, 42):
        for v in (-site.depth / 4, site.depth / 4):
            site.add("clarifier", Point(site.at(u, v)).buffer(14.5, quad_segs=12), inside=0.99)
    site.add("building", site.rect(0, 0, 24, 12), palette=site.style.flat_roofs, height=6, inside=0.99)


def quarry(site: Site) -> None:
    """A quarry within scrub."""
    site.add("scrub", site.ground)
    site.add("quarry", site.blob(0.48))


def farm(site: Site) -> None:
    """Fields around a farmyard with barns, a house and sometimes a silo."""
    site.fields()
    site.add("farmyard", site.rect(0, 0, 70, 56), inside=0.9)
    for kind, u, v, long, deep in (("barn", -18, 12, 34, 16), ("barn", 14, -14, 42, 15), ("house", 20, 16, 16, 12)):
        site.add(kind, site.rect(u, v, long, deep), palette=site.style.house_roofs, roof="gable", inside=0.95)
    if site.rng.random() < 0.5:
        site.add("storage_tank", Point(site.at(-2, -4)).buffer(4), colour=(214, 214, 210), height=12, inside=0.99)
    site.trees(8, apart=2)


def turbines(site: Site) -> None:
    """Two wind turbines in fields."""
    site.fields()
    for u in (-site.length / 4, site.length / 4):
        mast = Point(site.at(u, site.rng.uniform(-10, 10))).buffer(2)
        site.add("wind_turbine", mast, turn=site.rng.uniform(0, 2), inside=0.9)


# --- public -----------------------------------------------------------------------------------------------------


def school(site: Site) -> None:
    """A school with two wings and its sports ground; a park where the building does not fit."""
    wing = min(62.0, site.length * 0.5)
    main = site.rect(-site.length / 2 + wing / 2 + 8, site.depth / 2 - 15, wing, 15)
    side = site.rect(-site.length / 2 + 16, site.depth / 2 - 32, 15, 40)
    shape = main.union(side).intersection(site.ground.buffer(-3))
    if shape.geom_type != "Polygon" or shape.area < SMALLEST_PUBLIC:
        return park(site)
    site.add("school_grounds", site.ground)
    site.add("school", shape, palette=site.style.flat_roofs)
    if site.length > 115 and site.depth > 75:
        u, v = site.length / 2 - 52, -site.depth / 8
        site.add("running_track", site.oval(u, v, 84, 52), inside=0.97)
        site.add("pitch", site.rect(u, v, 50, 32), inside=0.97)
    else:
        site.add("basketball_court", site.rect(site.length / 5, -site.depth / 5, 28, 15), inside=0.97)
    site.trees(12, apart=5)


def church(site: Site) -> None:
    """A church, cross-shaped, and its tower among trees."""
    site.add("park" if site.rng.random() < 0.5 else "square", site.ground)
    nave, arms = site.rect(0, 0, 42, 14), site.rect(6, 0, 13, 32)
    roof = pick(site.style.house_roofs, site.rng)
    site.add("church", nave.union(arms), palette=((*roof, 1.0),), height=16, inside=0.97)
    site.add("tower", site.rect(-22, 0, 9, 9), palette=((*roof, 1.0),), roof="hip", height=32, inside=0.9)
    site.trees(14, apart=6)


def hospital(site: Site) -> None:
    """A hospital of two long wings and a link, with parking; a park where the building does not fit."""
    shape = site.rect(-26, 0, 15, 72).union(site.rect(26, 0, 15, 72)).union(site.rect(0, 4, 56, 16))
    shape = shape.intersection(site.ground.buffer(-4))
    if shape.geom_type != "Polygon" or shape.area < SMALLEST_PUBLIC:
        return park(site)
    site.add("hospital", site.ground)
    site.add("hospital_building", shape, palette=(("white", (224, 222, 218), 1),))
    site.add("parking", site.rect(site.length / 2 - 18, 0, 26, site.depth * 0.7), inside=0.9)
    site.trees(10, apart=5)


def stadium(site: Site) -> None:
    """A stadium around its pitch; paved ground alone where the block is too small for one."""
    site.add("commercial", site.ground)
    factor = max(0.4, min(1.0, (site.length - 6) / 152, (site.depth - 6) / 116))
    outer, inner = (site.oval(0, 0, long * factor, deep * factor) for long, deep in ((152, 116), (118, 82)))
    if not site.ground.buffer(6).contains(outer):
        return
    site.add("running_track", inner)
    site.add("pitch", site.rect(0, 0, 84 * factor, 52 * factor))
    site.add("stadium", outer.difference(inner), palette=(("grey", (178, 180, 184), 2), ("white", (226, 226, 226), 1)))


def sports(site: Site) -> None:
    """Tennis courts in a park, in long blocks sometimes beside a football field."""
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
    """A park: a path from end to end, trees, and sometimes a pond or a playground."""
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
    """A square with a round pond and two rows of trees."""
    site.add("square", site.ground)
    site.add("pond", Point(site.centre).buffer(6), inside=0.9)
    for u in np.arange(-site.length / 2 + 8, site.length / 2 - 6, 11):
        for v in (-site.depth / 2 + 8, site.depth / 2 - 8):
            if site.rng.random() < 0.8:
                site.add("tree", Point(site.at(u, v)), radius=site.style.crown)


def cemetery(site: Site) -> None:
    """A cemetery with a chapel and trees."""
    site.add("cemetery", site.ground)
    site.add("building", site.rect(0, 0, 14, 9), palette=site.style.house_roofs, roof="gable", height=6, inside=0.9)
    site.trees(site.ground.area / 260, apart=3)


def allotments(site: Site) -> None:
    """Allotment gardens with trees."""
    site.add("allotments", site.ground)
    site.trees(site.ground.area / 300)


def construction(site: Site) -> None:
    """A construction site: a shell of a building, and mostly cranes."""
    site.add("construction", site.ground)
    site.add("building", site.rect(0, 0, 38, 24), colour=(186, 182, 176), height=8, inside=0.9)
    for u, v in ((-site.length / 5, site.depth / 5), (site.length / 4, -site.depth / 5)):
        if site.rng.random() < 0.8:
            site.add("crane", Point(site.at(u, v)).buffer(1.5), turn=site.rng.uniform(0, 3), inside=0.9)


def parking(site: Site) -> None:
    """A car park over the whole block."""
    site.add("commercial", site.ground)
    site.add("parking", site.ground.buffer(-4))
    site.trees(6)


def station(site: Site) -> None:
    """A train station: parallel tracks, the hall beside them."""
    site.add("industrial", site.ground)
    for v in np.arange(-site.depth / 2 + 14, site.depth / 6, 10):
        site.add("railway", site.rect(0, v, site.length, 6.5).intersection(site.ground))
    hall = site.rect(0, site.depth / 2 - 18, min(92, site.length * 0.7), 22)
    site.add("train_station", hall, palette=site.style.flat_roofs, roof="gable", inside=0.9)


def harbour(site: Site) -> None:
    """A marina: a basin with piers, and boats on both sides of each."""
    site.add("harbour", site.ground)
    site.add("basin", site.ground.buffer(-9))
    for u in np.arange(-site.length / 2 + 26, site.length / 2 - 16, 30):
        if not site.add("pier", site.rect(u, 0, 2.6, site.depth - 40), inside=0.97):
            continue
        for v in np.arange(-site.depth / 2 + 24, site.depth / 2 - 24, 6.4):
            for side in (-7, 7):
                if site.rng.random() < 0.8:
                    site.add("boat", site.rect(u + side, v, site.rng.uniform(8, 11), 3.2), inside=0.99)


FILLERS = {
    "offices": offices, "retail": retail, "warehouses": warehouses, "tanks": tanks, "solar": solar,
    "greenhouses": greenhouses, "sewage": sewage, "quarry": quarry, "farm": farm, "turbines": turbines,
    "school": school, "church": church, "hospital": hospital, "stadium": stadium, "sports": sports, "park": park,
    "square": square, "cemetery": cemetery, "allotments": allotments, "construction": construction,
    "parking": parking, "station": station, "harbour": harbour,
}  # fmt: skip
