"""A city to photograph, made up in a country's style; `osm_city` makes one of an OpenStreetMap extract.

Both give a `City`: features in local metres, found by place, and exported as OpenStreetMap-like features in degrees,
so that nothing after them can tell them apart.
"""

import math
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon
from shapely.ops import unary_union

from ucore.countries import CountryStyle
from ucore.errors import DataError
from ucore.fillers import FILLERS, WANTED, fill_block
from ucore.geo import LocalFrame, local_frame
from ucore.kinds import KINDS, WAY, Feature

if TYPE_CHECKING:
    import geopandas

PAINT_ORDER = {"river": 0, "railway": 1, "bridge": 2, "footway": 3, "track": 4, "street": 5, "road": 6, "motorway": 7}


@dataclass
class City:
    """Features around a place, in the order of painting. width, height: metres of the area tiles are taken from."""

    style: CountryStyle
    frame: LocalFrame
    width: float
    height: float
    features: list[Feature] = field(default_factory=list)
    source: str = ""
    built_up: bool = False  # whether unmapped ground is more likely between houses than in the open

    def __post_init__(self) -> None:
        def order(feature: Feature) -> tuple[int, int, float]:
            layer = KINDS[feature.kind].layer
            rank = PAINT_ORDER.get(feature.kind, 9) if layer == WAY else 0
            return layer, rank, feature.height if layer > WAY else 0.0

        self.features.sort(key=order)

    @cached_property
    def tree(self) -> shapely.STRtree:
        """Finds features by place: numbers into `features`, boxes in local metres."""
        return shapely.STRtree([feature.geometry for feature in self.features])

    def within(self, west: float, south: float, east: float, north: float) -> list[Feature]:
        """Features that touch a window (local metres), in the order of painting."""
        found = self.tree.query(shapely.box(west, south, east, north), predicate="intersects")
        return [self.features[number] for number in np.sort(found)]

    def to_frame(self) -> "geopandas.GeoDataFrame":
        """All features as `read_osm` gives them: osm_id, tags and geometry in degrees."""
        import geopandas

        geometry = self.frame.to_degrees(np.array([feature.geometry for feature in self.features]))
        table = {
            "osm_id": [f"s{number}" for number in range(len(self.features))],
            "tags": [dict(feature.tags) for feature in self.features],
        }
        return geopandas.GeoDataFrame(table, geometry=geometry, crs="EPSG:4326")


# --- procedural -------------------------------------------------------------------------------------------------


def make_city(style: CountryStyle, side: float, seed: int = 0) -> City:
    """A procedural city of `side` x `side` metres in the style of a country; the same for the same arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(style.name.encode())])
    grid = _Grid(style, side, rng)
    uses = grid.choose_uses(rng)
    waters, rails, motorways = _crossings(grid, rng)
    features = [*waters, *rails, *motorways]
    barrier = unary_union([feature.geometry for feature in features])
    ways = grid.ways(barrier, unary_union([f.geometry for f in waters]) if waters else Polygon(), rng)
    features += ways
    pavement = {"footway": 0.5, "track": 0.0, "street": 2.5, "road": 3.0, "motorway": 4.0, "railway": 3.0}
    taken = [f.geometry.buffer(pavement.get(f.kind, 1.0), quad_segs=2) for f in features if f.kind != "bridge"]
    tree = shapely.STRtree(taken)
    taken_array = np.array(taken, dtype=object)
    for cells, use in uses:
        ground = grid.ground(cells)
        near = tree.query(ground, predicate="intersects")
        if len(near):  # clipped first: uniting long roads whole would take most of the time
            pieces = shapely.clip_by_rect(taken_array[near], *ground.bounds)
            ground = ground.difference(shapely.union_all(pieces))
        if use == style.centre and style.chamfer and ground.geom_type == "Polygon":
            ground = _chamfer(ground, style.chamfer)
        features += fill_block(use, ground, style, rng)
    return City(style, local_frame(*style.place), side, side, features, f"simulated procedural city, seed {seed}")


def _chamfer(ground: Any, cut: float) -> Any:
    corners = np.array(ground.simplify(3).exterior.coords)[:-1]
    if len(corners) != 4:
        return ground
    before, after = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
    shorter = min(float(np.hypot(*edge)) for edge in after)
    reach = min(cut, shorter / 3)
    steps = [v / np.hypot(v[:, 0], v[:, 1])[:, None] * reach for v in (before, after)]
    return Polygon(np.stack([corners + steps[0], corners + steps[1]], axis=1).reshape(-1, 2))


class _Grid:
    """A street grid, turned and bent, with what lies between its lines."""

    def __init__(self, style: CountryStyle, side: float, rng: np.random.Generator) -> None:
        self.style, self.side = style, side
        reach = side * 0.78  # covers the square at any turn
        self.turn = float(rng.uniform(-0.45, 0.45))
        self.lines = [self._spacing(reach, rng) for _ in range(2)]
        self.waves = rng.uniform((0.002, 0.002, 0), (0.011, 0.011, 2 * math.pi), (6, 3))
        centres = rng.uniform(-0.32, 0.32, (2, 2)) * side
        self.centres = np.vstack([centres, centres.mean(axis=0)])
        self.shape = (len(self.lines[0]) - 1, len(self.lines[1]) - 1)
        cells = [(i, j) for i in range(self.shape[0]) for j in range(self.shape[1])]
        middle = {cell: self.at(np.array([self._mid(cell)]))[0] for cell in cells}
        self.cells = [cell for cell in cells if np.abs(middle[cell]).max() < side / 2 + 150]
        score = np.array([self.urbanity(middle[cell]) for cell in self.cells])
        limits = np.quantile(score, (0.34, 0.62, 0.86))
        names = ("fringe", "suburb", "urban", "centre")
        self.zone = {cell: names[int((value >= limits).sum())] for cell, value in zip(self.cells, score, strict=True)}
        self.removed: set[tuple[str, int, int]] = set()  # streets between joined cells

    def _spacing(self, reach: float, rng: np.random.Generator) -> np.ndarray:
        mean, spread = self.style.block
        steps = np.clip(rng.normal(mean, spread, int(2.4 * reach / mean) + 2), 0.55 * mean, 1.6 * mean)
        return np.cumsum(steps) - steps.sum() / 2

    def _mid(self, cell: tuple[int, int]) -> tuple[float, float]:
        i, j = cell
        return (self.lines[0][i] + self.lines[0][i + 1]) / 2, (self.lines[1][j] + self.lines[1][j + 1]) / 2

    def at(self, points: np.ndarray) -> np.ndarray:
        """Bent and turned positions of grid points, float (n, 2) metres."""
        bend = np.zeros_like(points)
        for number, (fx, fy, phase) in enumerate(self.waves):
            bend[:, number % 2] += np.sin(points[:, 0] * fx + points[:, 1] * fy + phase)
        moved = points + self.style.warp * bend / 2
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return moved @ np.array([[cos, sin], [-sin, cos]])

    def urbanity(self, place: np.ndarray) -> float:
        near = np.exp(-(np.hypot(*(self.centres - place).T) ** 2) / (0.28 * self.side) ** 2).max()
        waves = np.sin(place[0] * self.waves[:, 0] + place[1] * self.waves[:, 1] + self.waves[:, 2]).mean()
        return float(near + 0.35 * waves)

    def choose_uses(self, rng: np.random.Generator) -> list[tuple[list[tuple[int, int]], str]]:
        """Cells, joined where a use needs room, and the use of each."""
        free, chosen = set(self.cells), []
        for number in rng.permutation(len(self.cells)):
            cell = self.cells[number]
            if cell not in free:
                continue
            weights = self.style.uses[self.zone[cell]]
            share = np.array(list(weights.values()))
            use = list(weights)[rng.choice(len(share), p=share / share.sum())]
            group = self._join(cell, free, WANTED.get(use, (0, 0)), self.zone[cell] == "fringe", rng)
            free -= set(group)
            chosen.append((group, use))
        missing = sorted({use for _, use in chosen} - FILLERS.keys())
        if missing:
            raise DataError(f"No filler draws the block use {missing[0]!r}; choose from {', '.join(FILLERS)}.")
        return chosen

    def _join(self, cell: tuple[int, int], free: set, wanted: tuple[float, float], rural: bool,
              rng: np.random.Generator) -> list[tuple[int, int]]:  # fmt: skip
        i, j = cell
        group = [cell]
        wide = self.lines[0][i + 1] - self.lines[0][i]
        deep = self.lines[1][j + 1] - self.lines[1][j]
        if max(wanted) > max(wide, deep) - 14 or (rural and rng.random() < 0.55):
            if (i + 1, j) in free:
                group.append((i + 1, j))
                self.removed.add(("v", i + 1, j))
            elif (i, j + 1) in free:
                group.append((i, j + 1))
                self.removed.add(("h", i, j + 1))
        if len(group) == 2 and min(wanted) > min(wide, deep) - 14 and group[1] == (i + 1, j):
            more = [(i, j + 1), (i + 1, j + 1)]
            if all(one in free for one in more):
                group += more
                self.removed |= {("h", i, j + 1), ("h", i + 1, j + 1), ("v", i + 1, j + 1)}
        return group

    def ground(self, cells: list[tuple[int, int]]) -> Any:
        parts = []
        for i, j in cells:
            corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
            edges = [self.edge(a, b)[:-1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
            parts.append(Polygon(np.concatenate(edges)).buffer(0.3 if len(cells) > 1 else 0))
        return unary_union(parts) if len(parts) > 1 else parts[0]

    def edge(self, a: tuple[int, int], b: tuple[int, int]) -> np.ndarray:
        """The bent street between two nodes, float (5, 2)."""
        start, end = (np.array([self.lines[0][i], self.lines[1][j]]) for i, j in (a, b))
        return self.at(start + np.linspace(0, 1, 5)[:, None] * (end - start))

    def ways(self, barrier: Any, water: Any, rng: np.random.Generator) -> list[Feature]:
        """Streets along the grid: main roads cross water and rails on bridges, streets end there."""
        features: list[Feature] = []
        main = [set(range(int(rng.integers(2, 4)), len(line), 4)) for line in self.lines]
        for axis in (0, 1):
            for line in range(len(self.lines[axis])):
                for kind, points in self._runs(axis, line, line in main[axis], rng):
                    features += _way(kind, LineString(points), self.style, barrier, water)
        for i in main[0]:
            for j in main[1]:
                zones = [self.zone.get(cell) for cell in ((i, j), (i - 1, j), (i, j - 1), (i - 1, j - 1))]
                node = Point(self.at(np.array([[self.lines[0][i], self.lines[1][j]]]))[0])
                if None in zones or "centre" in zones or barrier.distance(node) < 30 or rng.random() < 0.35:
                    continue
                circle = node.buffer(19 * self.style.street_scale, quad_segs=10)
                features.append(Feature("roundabout", circle, dict(KINDS["roundabout"].tags)))
        return features

    def _runs(self, axis: int, line: int, main: bool, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
        """Stretches of one grid line and the kind of way on each."""
        runs: list[tuple[str, list[np.ndarray]]] = []
        previous = ""
        for step in range(self.shape[1 - axis]):
            i, j = (line, step) if axis == 0 else (step, line)
            beside = [(i, j), (i - 1, j)] if axis == 0 else [(i, j), (i, j - 1)]
            zones = {self.zone.get(cell) for cell in beside}
            kind = "road" if main else "street"
            if zones == {None} or ("v" if axis == 0 else "h", i, j) in self.removed:
                kind = ""
            elif zones <= {"fringe", None} and not main:
                kind = "track" if rng.random() < 0.6 else ""
            elif "fringe" in zones and not main:
                kind = "street" if rng.random() < 0.5 else "track"
            edge = self.edge((i, j), (i, j + 1) if axis == 0 else (i + 1, j))
            if kind and kind == previous:
                runs[-1][1].append(edge[1:])
            elif kind:
                runs.append((kind, [edge]))
            previous = kind
        return [(kind, np.concatenate(parts)) for kind, parts in runs]


def _way(kind: str, line: LineString, style: CountryStyle, barrier: Any, water: Any) -> list[Feature]:
    width = KINDS[kind].width * style.street_scale
    shape = line.buffer(width / 2, cap_style="flat" if kind == "track" else "square", quad_segs=3)
    features: list[Feature] = []
    if kind == "road":
        crossing = line.buffer(width / 2 + 1.5).intersection(water.buffer(7)) if not water.is_empty else water
        for part in getattr(crossing, "geoms", [crossing]):
            if part.geom_type == "Polygon" and part.area > 60:
                features.append(Feature("bridge", part, dict(KINDS["bridge"].tags), height=KINDS["bridge"].height))
    elif shape.intersects(barrier):
        shape = shape.difference(barrier.buffer(5))
    for part in getattr(shape, "geoms", [shape]):
        if part.geom_type == "Polygon" and part.area > 30:
            features.append(Feature(kind, part, dict(KINDS[kind].tags)))
    return features


def _crossings(grid: _Grid, rng: np.random.Generator) -> tuple[list[Feature], list[Feature], list[Feature]]:
    """What ignores the grid: a river and lakes, a railway, a motorway."""
    style, side = grid.style, grid.side

    def path(bend: float) -> LineString:
        turn, offset = rng.uniform(0, math.pi), rng.uniform(-0.22, 0.22) * side
        t = np.linspace(-0.85, 0.85, 60) * side
        waves = sum(
            rng.uniform(0.4, 1) * np.sin(t * 2 * math.pi / (side * k) + rng.uniform(0, 6)) for k in (0.35, 0.7, 1.3)
        )
        across = offset + bend * waves
        cos, sin = math.cos(turn), math.sin(turn)
        return LineString(np.stack([t * cos - across * sin, t * sin + across * cos], axis=1))

    def make(kind: str, shape: Any) -> Feature:
        return Feature(kind, shape, dict(KINDS[kind].tags))

    waters = [make("river", path(0.05 * side).buffer(style.river_width / 2, quad_segs=4))]
    lakes = []
    for _ in range(rng.poisson(style.lakes * side**2 / 1e6)):
        centre, radius = rng.uniform(-0.55, 0.55, 2) * side, rng.uniform(45, 190)
        turns = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        wave = 1 + np.sum([rng.uniform(0, 0.22) * np.sin(k * turns + rng.uniform(0, 6)) for k in (2, 3, 5)], axis=0)
        shore = centre + radius * wave[:, None] * np.stack([np.cos(turns), 0.75 * np.sin(turns)], axis=1)
        lakes.append(Polygon(shore).buffer(0))
    together = unary_union(lakes)  # lakes that overlap are one
    waters += [make("lake", lake) for lake in getattr(together, "geoms", [together]) if not lake.is_empty]
    rails = [make("railway", path(0.02 * side).buffer(KINDS["railway"].width / 2, quad_segs=4))]
    motorways = [make("motorway", path(0.03 * side).buffer(KINDS["motorway"].width / 2, quad_segs=4))]
    return waters, rails, motorways
