"""What fills a block of a simulated city: one function a use, from houses with gardens to a sewage plant.

A filler takes a `Site`, the block's polygon in local metres, and adds features to it. Everything is placed along the
block's own axes, so rows of houses follow the street.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from shapely.geometry import Point, Polygon

from ucore import facilities
from ucore.countries import CountryStyle, Palette
from ucore.kinds import Feature
from ucore.site import Site, pick

# --- living -----------------------------------------------------------------------------------------------------


def _edge_rows(site: Site, ring: Any, depth: float, wide: tuple[float, float], kind: str, palette: Palette,
               roof: str, height: tuple[float, float]) -> None:  # fmt: skip
    """Buildings side by side along the edges of `ring`, `depth` metres deep."""
    corners = np.array(ring.exterior.coords)
    block_height = site.rng.uniform(*height)
    for start, end in pairwise(corners):
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
            u, v = site.rng.uniform(-0.2, 0.2, 2)
            spot = site.rect(u * site.length, v * site.depth, 14, 9)
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
            facilities.church(Site(ground, site.style, site.rng, site.features))


# --- land -------------------------------------------------------------------------------------------------------


def fields(site: Site) -> None:
    """Farmland in whole fields or strips."""
    site.fields()


def meadow(site: Site) -> None:
    """A meadow with a few trees."""
    site.add("meadow", site.ground)
    site.trees(6)


def forest(site: Site) -> None:
    """Forest to beyond the block's edge, sometimes with a clearing."""
    site.add("forest", site.ground.buffer(3))
    if site.rng.random() < 0.35:
        site.add("meadow", site.blob(0.2))


def scrub(site: Site) -> None:
    """Scrub with scattered trees."""
    site.add("scrub", site.ground)
    site.trees(site.ground.area / 500)


def beach(site: Site) -> None:
    """A beach, and water along one side."""
    site.add("beach", site.ground)
    water = site.rect(0, site.depth / 4, site.length + 12, site.depth * 0.62).intersection(site.ground.buffer(2))
    if water.geom_type == "Polygon":
        site.add("lake", water)


def _plain(kind: str) -> Callable[[Site], None]:
    def fill(site: Site) -> None:
        site.add(kind, site.ground)

    return fill


FILLERS: dict[str, Callable[[Site], None]] = {
    "perimeter": perimeter, "chamfered": chamfered, "slabs": slabs, "open": open_blocks, "houses": houses,
    "villas": villas, "cottages": cottages, "terraces": terraces, "village": village, "fields": fields,
    "meadow": meadow, "forest": forest, "scrub": scrub, "beach": beach, "orchard": _plain("orchard"),
    "olives": _plain("olive_grove"), "vineyard": _plain("vineyard"),
    **facilities.FILLERS,
}  # fmt: skip
# Metres (length, depth) that a use wants; blocks too small are joined with a neighbour.
WANTED: dict[str, tuple[float, float]] = {
    "stadium": (165, 125), "hospital": (110, 85), "harbour": (140, 90), "quarry": (150, 110), "school": (118, 76),
    "warehouses": (120, 70), "solar": (130, 80), "sports": (106, 60), "retail": (100, 80), "station": (140, 60),
}  # fmt: skip


def fill_block(use: str, ground: Any, style: CountryStyle, rng: np.random.Generator) -> list[Feature]:
    """Features of a block of the given use. Parts of a block cut by a river are filled one by one."""
    parts = [part for part in getattr(ground, "geoms", [ground]) if part.geom_type == "Polygon" and part.area > 120]
    features: list[Feature] = []
    for part in parts:
        FILLERS[use](Site(part, style, rng, features))
    return features
