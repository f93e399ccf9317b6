"""Tiles on the ground: where they lie, the blocks they fall into, and the draw that gives blocks to splits."""

import math
from typing import Any

import numpy as np

from ucore.duplicates import identical_groups
from ucore.errors import DataError
from ucore.manifest import Manifest

EARTH_M = 6_371_008.8  # mean radius
UNKNOWN_TILE_M = 256.0  # side assumed of a tile without footprint: 256 pixels of a metre
BLOCKS = 24  # a domain is cut into about as many blocks, unless they get too small for the buffer
BUFFERS_A_BLOCK = 3.0  # a block's side is at least as many buffers
DRAWN_SAMPLES, DRAWS = 400_000, (4, 256)  # draws of a domain: as many as make so many samples, within these bounds
Array = np.ndarray


def places(frame: Any) -> tuple[Array, Array]:
    """Centres on the globe, float64 (n, 3) in metres, and diagonals (n,) in metres, of tiles.

    Both come from the bounds of the footprint where there is one. Otherwise the centre is lon and lat (NaN where
    they are unknown) and the tile a square of UNKNOWN_TILE_M. Straight distances between centres are ground
    distances as long as they are short: over 10 km they differ by a millimetre.
    """
    west, south, east, north = frame.geometry.bounds.to_numpy(float).T
    degrees = np.stack([(west + east) / 2, (south + north) / 2], axis=1)
    degrees = np.where(np.isnan(degrees), frame[["lon", "lat"]].to_numpy(float), degrees)
    degrees[np.isnan(degrees).any(axis=1)] = np.nan
    bad = (np.abs(degrees) > [180, 90]).any(axis=1)
    if bad.any():
        name, (x, y) = frame["sample_id"].iloc[bad.argmax()], degrees[bad.argmax()]
        raise DataError(f"The sample {name} lies at lon {x:g}, lat {y:g}: not degrees on Earth. Correct its place.")
    lon, lat = np.radians(degrees).T
    points = EARTH_M * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    sizes = EARTH_M * np.hypot(np.radians(east - west) * np.cos(lat), np.radians(north - south))
    return points, np.where(np.isnan(sizes), np.sqrt(2) * UNKNOWN_TILE_M, sizes)


def block_sides(diagonals: Array, buffer: float) -> list[float]:
    """Sides to try, in metres, of the blocks of a domain with tiles of these diagonals."""
    covered = float((diagonals**2 / 2).sum())
    side = max(1.0, math.sqrt(covered / BLOCKS), BUFFERS_A_BLOCK * buffer)
    return [side, side / 2, side / 4]


def near(points: Array, others: Array, distance: float) -> Array:
    """bool (n,): which `points` (n, 3) lie closer than `distance` metres to one of `others`; NaN is nowhere."""
    from scipy.spatial import KDTree

    result = np.zeros(len(points), bool)
    known, others = ~np.isnan(points[:, 0]), others[~np.isnan(others[:, 0])]
    if distance > 0 and len(others) and known.any():
        result[known] = np.isfinite(KDTree(others).query(points[known], distance_upper_bound=distance)[0])
    return result


def nearest(points: Array, others: Array) -> float | None:
    """Smallest distance in metres between two of `points` (n, 3) and `others`; None when one has no place."""
    from scipy.spatial import KDTree

    points, others = points[~np.isnan(points[:, 0])], others[~np.isnan(others[:, 0])]
    return float(KDTree(others).query(points)[0].min()) if len(points) and len(others) else None


def give_way(points: Array, splits: Array, buffer: float, n_splits: int) -> Array:
    """`splits` with -1 where a sample lies closer than `buffer` metres to one of a split named later."""
    splits = splits.copy()
    for split in range(n_splits - 2, -1, -1):
        mine = np.flatnonzero(splits == split)
        splits[mine[near(points[mine], points[splits > split], buffer)]] = -1
    return splits


class DomainDraw:
    """The samples of one domain, sorted by id, and what a draw needs of them."""

    def __init__(self, part: Manifest, points: Array, fractions: tuple[float, ...], buffer: float):
        self.name, self.points, self.root = part.frame["domain"].iloc[0], points, part.root
        self.buffer, self.fractions = buffer, np.array(fractions)
        self.located = ~np.isnan(points[:, 0])
        unlocated: Any = part.frame.loc[~self.located]
        self.groups = identical_groups(Manifest(unlocated, part.root))

    def best(self, sides: list[float], rng: np.random.Generator, regions: bool = False) -> tuple[Array, Array, float]:
        """Of the first of `sides` (metres) that can fill every split, the draw closest to the fractions.

        regions: try splits that lie side by side, too. Returns splits int (n,), -1 for the buffer, blocks str (n,) and
        the side.
        """
        n, most = len(self.points), 0
        for side in sides:
            best: tuple[float, Array, Array] | None = None
            draws = int(np.clip(DRAWN_SAMPLES // n, *DRAWS))
            for swept in [False] * draws + [True] * draws * regions:
                blocks = self._blocks(side, rng.random(2))
                names, unit = np.unique(blocks, return_inverse=True)
                most = max(most, len(names))
                if len(names) < len(self.fractions):
                    continue
                splits = self._sweep(unit, rng) if swept else self._assign(unit, rng.permutation(len(names)))
                splits = give_way(self.points, splits, self.buffer, len(self.fractions))
                shares = np.bincount(splits[splits >= 0], minlength=len(self.fractions)) / n
                # By the root, so that a small split counts for more than its size, but less than the large one's loss.
                distance = float((np.abs(shares - self.fractions) / np.sqrt(self.fractions)).sum())
                if shares.all() and (best is None or distance < best[0]):
                    best = distance, splits, blocks
            if best is not None:
                return best[1], best[2], side
        where = f"{most:,} groups without lon and lat"
        if self.located.any():
            where = f"{most:,} blocks of {sides[-1]:,.0f} m at most, buffer {self.buffer:,.0f} m"
        raise DataError(
            f"The domain {self.name!r} of {self.root} ({n:,} images, {where}) cannot fill {len(self.fractions)} "
            "splits. Choose a smaller block_m or buffer_m, fewer splits, or leave this domain out."
        )

    def _blocks(self, side: float, origin: Array) -> Array:
        """The block of each sample: rows of equal latitude, cut at steps of equal length on the ground."""
        x, y, z = self.points[self.located].T / EARTH_M
        lon, lat = np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1))
        row = np.floor(lat * EARTH_M / side + origin[0])
        middle = np.clip((row + 0.5 - origin[0]) * side / EARTH_M, -np.pi / 2, np.pi / 2)
        column = np.floor(lon * EARTH_M * np.cos(middle) / side + origin[1])
        blocks = np.empty(len(self.points), object)
        blocks[self.located] = [f"ground {y:.0f} {x:.0f}" for y, x in zip(row, column, strict=True)]
        blocks[~self.located] = [f"group {name}" for name in self.groups]
        return blocks.astype(str)

    def _assign(self, unit: Array, order: Array) -> Array:
        """Splits (n,): one block for every split, then each block where most is missing."""
        counts = np.bincount(unit)
        missing = self.fractions * len(unit)
        split_of = np.empty(len(counts), int)
        for position, block in enumerate(order):
            split = position if position < len(missing) else int(missing.argmax())
            split_of[block] = split
            missing[split] -= counts[block]
        return split_of[unit]

    def _sweep(self, unit: Array, rng: np.random.Generator) -> Array:
        """Splits (n,) that lie side by side along some direction: few borders, so that buffers take little."""
        counts = np.bincount(unit)
        along = np.where(self.located, np.nan_to_num(self.points) @ rng.normal(size=3), 0.0)
        spread = np.bincount(unit, weights=along) / counts + np.ptp(along) * rng.random(len(counts)) * (
            np.bincount(unit, weights=self.located) == 0
        )
        blocks = np.argsort(spread, kind="stable")
        order = rng.permutation(len(self.fractions))
        middles = np.cumsum(counts[blocks]) - counts[blocks] / 2
        split_of = np.empty(len(counts), int)
        split_of[blocks] = order[np.searchsorted(np.cumsum(self.fractions[order])[:-1] * len(unit), middles)]
        return split_of[unit]
