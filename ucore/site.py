"""A block of ground to build on: its own axes, and the one way features are added to it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from shapely import affinity, box
from shapely.geometry import LineString, Point, Polygon

from ucore.countries import RGB, CountryStyle, Palette
from ucore.kinds import KINDS, Feature


@dataclass
class Site:
    """A block's polygon in local metres, the style, a generator, and the features so far."""

    ground: Any
    style: CountryStyle
    rng: np.random.Generator
    features: list[Feature] = field(default_factory=list)

    def __post_init__(self) -> None:
        corners = shapely.get_coordinates(self.ground.minimum_rotated_rectangle)[:3]
        sides = np.diff(corners, axis=0)
        lengths = np.hypot(sides[:, 0], sides[:, 1])
        along = int(lengths.argmax())
        self.length, self.depth = float(lengths[along]), float(lengths[1 - along])
        self.angle = math.atan2(sides[along][1], sides[along][0])
        self.centre = corners[[0, 2]].mean(axis=0)
        self.u = np.array([math.cos(self.angle), math.sin(self.angle)])
        self.v = np.array([-self.u[1], self.u[0]])

    def at(self, u: float, v: float) -> np.ndarray:
        """The point `u` metres along and `v` across from the middle."""
        return self.centre + u * self.u + v * self.v

    def rect(self, u: float, v: float, length: float, depth: float, turn: float = 0.0) -> Any:
        """A rectangle around the point (u, v), `length` along the block and `depth` across, turned by `turn`."""
        x, y = self.at(u, v)
        shape = box(x - length / 2, y - depth / 2, x + length / 2, y + depth / 2)
        return affinity.rotate(shape, math.degrees(self.angle + turn), origin=(x, y))

    def oval(self, u: float, v: float, length: float, depth: float) -> Any:
        """A rectangle with half circles at its ends, as running tracks have."""
        half = (length - depth) / 2
        return LineString([self.at(u - half, v), self.at(u + half, v)]).buffer(depth / 2, quad_segs=10)

    def blob(self, share: float) -> Any:
        """A rounded shape in the middle, `share` of the block's sizes in radius."""
        turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        wave = 1 + sum(self.rng.uniform(0, 0.16) * np.sin(k * turns + self.rng.uniform(0, 6)) for k in (2, 3, 5))
        along, across = share * self.length * wave * np.cos(turns), share * self.depth * wave * np.sin(turns)
        points = self.centre + along[:, None] * self.u + across[:, None] * self.v
        shape = Polygon(points).buffer(0).intersection(self.ground)
        return shape if shape.geom_type == "Polygon" else self.ground.buffer(-5)

    def add(self, kind: str, geometry: Any, *, palette: Palette | None = None, roof: str = "flat",
            colour: RGB | None = None, height: float | None = None, turn: float = 0.0, radius: float = 0.0,
            inside: float = 0.0) -> bool:  # fmt: skip
        """Add a feature where at least the share `inside` of it lies in the block; says whether it was added."""
        if geometry.is_empty or (inside and geometry.intersection(self.ground).area < inside * geometry.area):
            return False
        parts = [part for part in getattr(geometry, "geoms", [geometry]) if part.geom_type in ("Polygon", "Point")]
        name = ""
        if palette is not None:
            name, colour = pick(palette, self.rng)
        high = KINDS[kind].height * self.rng.uniform(0.8, 1.25) if height is None else height
        for part in parts:
            tags = dict(KINDS[kind].tags)
            self.features.append(Feature(kind, part, tags, colour, name, roof, high, self.angle + turn, radius))
        return True

    def fields(self) -> None:
        """Farmland: whole fields, or strips side by side, as the country has them."""
        strip = self.style.field_strip
        if strip >= self.depth:
            self.add("farmland", self.ground, colour=self._crop())
            return
        for v in np.arange(-self.depth / 2, self.depth / 2, strip):
            part = self.rect(0, v + strip / 2, self.length + 2, strip).intersection(self.ground)
            if part.geom_type == "Polygon" and not part.is_empty:
                self.add("farmland", part, colour=self._crop())

    def _crop(self) -> RGB:
        return pick(tuple(("", colour, 1.0) for colour in self.style.crops), self.rng)[1]

    def trees(self, count: float, area: Any = None, apart: float = 0.0) -> None:
        """About `count` trees (times the country's density) at random in `area`, `apart` metres from other things."""
        area = self.ground if area is None else area
        number = self.rng.poisson(max(0.0, count * self.style.tree_density))
        spots = self.rng.uniform(area.bounds[:2], area.bounds[2:], (number, 2))
        radii = self.style.crown * self.rng.uniform(0.7, 1.3, number)
        keep = shapely.contains_xy(area, spots[:, 0], spots[:, 1])
        taken = (
            [f.geometry for f in self.features if KINDS[f.kind].height > 2 or KINDS[f.kind].layer == 2] if apart else []
        )
        if taken and number:
            points = shapely.points(spots)
            close, _ = shapely.STRtree(taken).query(points, predicate="dwithin", distance=apart)
            keep[np.unique(close)] = False
        for spot, radius in zip(spots[keep], radii[keep], strict=True):
            self.add("tree", Point(spot), radius=float(radius))


def pick(palette: Palette, rng: np.random.Generator) -> tuple[str, RGB]:
    """A word and a colour of `palette` by frequency, the colour varied a little."""
    share = np.array([weight for _, _, weight in palette])
    name, colour, _ = palette[rng.choice(len(palette), p=share / share.sum())]
    shade = rng.normal(0, 8)  # of all channels together: roofs fade and weather more than they change their hue
    red, green, blue = (int(np.clip(level + shade + rng.normal(0, 2.5), 0, 255)) for level in colour)
    return name, (red, green, blue)
