"""Splits without leaks: whole blocks of ground go to one split, with a buffer between splits.

    manifest = spatial_split(manifest, seed=0)                  # train, val, test, and "buffer"
    target = adaptation_split(manifest, seed=0)                 # finetune, val, test

Neighbouring tiles show the same street, so a split by image tests what was trained on. Here every domain is cut
into square blocks, blocks are given to splits, and samples too close to a later-named split are set aside.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ucore.duplicates import identical_groups
from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
BUFFER = "buffer"  # the split of samples that nobody uses
EARTH_M = 6_371_008.8  # mean radius
UNKNOWN_TILE_M = 256.0  # side assumed of a tile without footprint: 256 pixels of a metre
BLOCKS = 24  # a domain is cut into about as many blocks, unless they get too small for the buffer
BUFFERS_A_BLOCK = 3.0  # a block's side is at least as many buffers
DRAWN_SAMPLES, DRAWS = 400_000, (4, 64)  # draws of a domain: as many as make so many samples, within these bounds
Array = np.ndarray


def spatial_split(
    manifest: Manifest,
    fractions: Mapping[str, float] = FRACTIONS,
    block_m: float | None = None,
    buffer_m: float | None = None,
    seed: int = 0,
) -> Manifest:
    """A copy of `manifest` whose column split is drawn anew, domain by domain, and which has a column block (str).

    fractions: share of each split; they sum to 1. The order matters: of two samples too close together, the one
        whose split is named first gives way, so the last split (test) keeps all its samples.
    block_m: side of the square blocks, metres on the ground. None: such that the ground that a domain's tiles
        cover makes about 24 blocks, but at least three buffers; halved, twice at most, while that is too large to
        fill every split.
    buffer_m: samples of different splits have centres at least so far apart. None: 1.01 times the diagonal of
        the domain's largest tile, so that tiles of different splits neither overlap nor touch. Between domains
        the larger value holds. Samples that gave way have the split "buffer".

    Samples without lon and lat are grouped when images or all captions are identical, and groups are shuffled.
    Each domain takes the best of several seeded draws of the grid's origin and the blocks' order: the shares
    after the buffer that come closest to `fractions`. The result depends on the samples and the arguments, not on
    the order of the rows. Raises ConfigError for arguments out of range, and DataError naming a domain that has
    too few blocks to fill every split.
    """
    _check(manifest, fractions, block_m, buffer_m, seed)
    order = np.argsort(manifest.frame["sample_id"].to_numpy(dtype=str), kind="stable")
    frame: Any = manifest.frame.iloc[order].reset_index(drop=True)
    (points, sizes), domains = _places(frame), frame["domain"].to_numpy(dtype=str)
    splits, blocks = np.empty(len(frame), int), np.empty(len(frame), object)
    settings: dict[str, Any] = {}
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        located = ~np.isnan(points[rows, 0])
        buffer = 1.01 * float(sizes[rows][located].max(initial=0)) if buffer_m is None else float(buffer_m)
        sides = _block_sides(sizes[rows][located], buffer) if block_m is None else [float(block_m)]
        part = _Domain(Manifest(frame.iloc[rows], manifest.root), points[rows], tuple(fractions.values()), buffer)
        splits[rows], blocks[rows], side = part.best(sides, np.random.default_rng([seed, *str(domain).encode()]))
        settings[str(domain)] = {"block_m": round(side, 3), "buffer_m": round(buffer, 3)}
    buffers = np.array([settings[domain]["buffer_m"] for domain in domains])
    splits = _give_way_between(points, splits, domains, buffers, len(fractions))
    _require_all(splits, domains, list(fractions), buffers)
    names = np.array([*fractions, BUFFER], object)  # -1 is the last
    back = np.argsort(order)
    result: Any = manifest.frame.copy()
    result["split"], result["block"] = names[splits][back], blocks[back]
    result.attrs = {"split": {"fractions": dict(fractions), "seed": seed, "domains": settings}}
    return Manifest(result, manifest.root)


def adaptation_split(
    manifest: Manifest, finetune: float = 0.2, val: float = 0.1, test: float = 0.7, **settings: Any
) -> Manifest:
    """`spatial_split` of a target domain into finetune, val and test, the protocol of UrbanCross (stage 3)."""
    return spatial_split(manifest, {"finetune": finetune, "val": val, "test": test}, **settings)


class _Domain:
    """The samples of one domain, sorted by id, and what a draw needs of them."""

    def __init__(self, part: Manifest, points: Array, fractions: tuple[float, ...], buffer: float):
        self.name, self.points = part.frame["domain"].iloc[0], points
        self.buffer, self.fractions = buffer, np.array(fractions)
        self.located = ~np.isnan(points[:, 0])
        unlocated: Any = part.frame.loc[~self.located]
        self.groups = identical_groups(Manifest(unlocated, part.root))

    def best(self, sides: list[float], rng: np.random.Generator) -> tuple[Array, Array, float]:
        """Of the first of `sides` (metres) that can fill every split, the draw closest to the fractions.

        Returns splits int (n,), -1 for the buffer, blocks str (n,) and the side.
        """
        n, most = len(self.points), 0
        for side in sides:
            best: tuple[float, Array, Array] | None = None
            for _ in range(int(np.clip(DRAWN_SAMPLES // n, *DRAWS))):
                blocks = self._blocks(side, rng.random(2))
                names, unit = np.unique(blocks, return_inverse=True)
                most = max(most, len(names))
                if len(names) < len(self.fractions):
                    continue
                splits = self._assign(unit, rng.permutation(len(names)))
                splits = _give_way(self.points, splits, self.buffer, len(self.fractions))
                shares = np.bincount(splits[splits >= 0], minlength=len(self.fractions)) / n
                distance = float(np.abs(shares - self.fractions).sum())
                if shares.all() and (best is None or distance < best[0]):
                    best = distance, splits, blocks
            if best is not None:
                return best[1], best[2], side
        raise DataError(
            f"The domain {self.name!r} ({n:,} images, {most:,} blocks of {sides[-1]:,.0f} m at most, buffer "
            f"{self.buffer:,.0f} m) cannot fill {len(self.fractions)} splits. Choose a smaller block_m or buffer_m, "
            "fewer splits, or leave this domain out."
        )

    def _blocks(self, side: float, origin: Array) -> Array:
        """The block of each sample: rows of equal latitude, cut at steps of equal length on the ground."""
        x, y, z = self.points[self.located].T / EARTH_M
        lon, lat = np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1))
        row = np.floor(lat * EARTH_M / side + origin[0])
        middle = np.clip((row + 0.5 - origin[0]) * side / EARTH_M, -np.pi / 2, np.pi / 2)
        column = np.floor(lon * EARTH_M * np.cos(middle) / side + origin[1])
        blocks = np.empty(len(self.points), object)
        blocks[self.located] = [f"{y:.0f}_{x:.0f}" for y, x in zip(row, column, strict=True)]
        blocks[~self.located] = self.groups
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


def _give_way(points: Array, splits: Array, buffer: float, n_splits: int) -> Array:
    """`splits` with -1 where a sample lies closer than `buffer` metres to one of a split named later."""
    splits = splits.copy()
    for split in range(n_splits - 2, -1, -1):
        mine = np.flatnonzero(splits == split)
        splits[mine[_near(points[mine], points[splits > split], buffer)]] = -1
    return splits


def _give_way_between(points: Array, splits: Array, domains: Array, buffers: Array, n_splits: int) -> Array:
    """`_give_way` across domains, at the larger of both buffers."""
    splits, names = splits.copy(), np.unique(domains)
    for split in range(n_splits - 2, -1, -1):
        later = splits > split
        for name in names:
            mine = np.flatnonzero((splits == split) & (domains == name))
            for buffer in np.unique(buffers):
                theirs = later & (domains != name) & (buffers == buffer)
                close = _near(points[mine], points[theirs], max(buffer, buffers[domains == name][0]))
                splits[mine[close]] = -1
    return splits


def _near(points: Array, others: Array, distance: float) -> Array:
    """bool (n,): which `points` (n, 3) lie closer than `distance` metres to one of `others`; NaN is nowhere."""
    from scipy.spatial import KDTree

    near = np.zeros(len(points), bool)
    known, others = ~np.isnan(points[:, 0]), others[~np.isnan(others[:, 0])]
    if distance > 0 and len(others) and known.any():
        near[known] = np.isfinite(KDTree(others).query(points[known], distance_upper_bound=distance)[0])
    return near


def _places(frame: Any) -> tuple[Array, Array]:
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


def _block_sides(diagonals: Array, buffer: float) -> list[float]:
    """Sides to try, in metres, of the blocks of a domain with tiles of these diagonals."""
    covered = float((diagonals**2 / 2).sum())
    side = max(1.0, math.sqrt(covered / BLOCKS), BUFFERS_A_BLOCK * buffer)
    return [side, side / 2, side / 4]


def _check(manifest: Manifest, fractions: Mapping[str, float], block_m: Any, buffer_m: Any, seed: int) -> None:
    shares = list(fractions.values())
    if len(shares) < 2 or min(shares) <= 0 or not abs(sum(shares) - 1) < 1e-6 or BUFFER in fractions:
        raise ConfigError(
            f"The fractions {dict(fractions)} do not describe splits; name two or more (but none {BUFFER!r}) with "
            "shares above 0 that sum to 1"
        )
    if block_m is not None and not 0 < block_m < np.inf:
        raise ConfigError(f"block_m is {block_m!r}; it must be a number of metres above 0")
    if buffer_m is not None and not 0 <= buffer_m < np.inf:
        raise ConfigError(f"buffer_m is {buffer_m!r}; it must be a number of metres from 0")
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0")
    if not len(manifest):
        raise DataError(f"The manifest of {manifest.root} lists no images, so there is nothing to split.")


def _require_all(splits: Array, domains: Array, names: list[str], buffers: Array) -> None:
    """Every domain has every split still, after domains gave way to each other."""
    for domain, (number, name) in itertools.product(np.unique(domains), enumerate(names)):
        if not (splits[domains == domain] == number).any():
            raise DataError(
                f"All {name!r} images of the domain {domain!r} lie closer than {buffers.max():,.0f} m to later splits "
                "of another domain. Choose a smaller buffer_m, or make one domain of the two."
            )
