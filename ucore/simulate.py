"""Simulated satellite tiles of three countries: pictures, object masks, OpenStreetMap-style tags and captions.

    simulate_dataset("runs/simulated", countries=("finland", "germany", "spain"), tiles=300, sensor="shared", seed=0)

A controlled stand-in for data that cannot be had: what is country and what is camera are two separate dials. Every
sample's source begins with "simulated", so that no number measured on it is ever mistaken for a real one.
"""

import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.countries import Camera, country_camera, country_style
from ucore.errors import ConfigError, DataError
from ucore.files import atomic_path, only_writer, read_json, require_writable, write_json
from ucore.manifest import Manifest
from ucore.processes import cores, death_told, end_with_parent
from ucore.simulated_set import (
    DATASET_FILE,
    FEATURES,
    MANIFEST_FILE,
    PARTS,
    TILE_M,
    SimulationConfig,
    complete_rows,
    is_complete,
    save_features,
    save_set,
    settings_of,
    tile_box,
)  # fmt: skip

if TYPE_CHECKING:
    from ucore.city import City

PART = 50  # tiles made and recorded together: what a stopped run loses at most, per process
TILES_A_CITY = 2000  # a country with more tiles has several cities
PITCH = 1.45  # tiles' distance in tile sides: their diagonals fit between, so no split needs a buffer
CLOSER = (1.2, 1.0, 0.85, 0.7, 0.6)  # in an extract too small for that; below 1 tiles overlap, and the buffer grows


@dataclass(frozen=True)
class Spot:
    """One tile to make: its id, its middle in local metres, and its seed."""

    sample_id: str
    east: float
    north: float
    seed: int


def simulate_dataset(
    out: str | Path, config: SimulationConfig | None = None, workers: int | None = None, progress: bool = True
) -> Manifest:
    """Write a dataset folder and return its manifest.

    It holds manifest.parquet, dataset.json, split.json, instances.parquet, images/, masks/ (16-bit PNG: the number of
    an instance) and features/ (GeoJSON of the ground).

    workers: processes; None: one a core. A repeated call goes on where an earlier one stopped and gives the same
    files. Raises ConfigError when `out` holds a dataset of other settings, DataError for an unusable extract.
    """
    from ucore.splits import save_split, spatial_split

    config, out = config or SimulationConfig(), Path(out)
    config.check()
    require_writable(out)
    if is_complete(out, config):
        return Manifest.load(out / MANIFEST_FILE)
    cities = {name: cities_of(name, config) for name in config.countries}
    if config.osm:  # read before anything is written: an unusable extract leaves no folder to be removed
        cities = {name: iter(list(found)) for name, found in cities.items()}
    if not (out / DATASET_FILE).is_file():
        write_json(out / DATASET_FILE, {"settings": settings_of(config), "complete": False})
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        rows = [row for name in cities for row in _country_rows(out, name, cities[name], config, workers, progress)]
        manifest = Manifest.from_rows([{k: v for k, v in row.items() if k != "instances"} for row in rows], out)
        if len(manifest) >= 10 * len(config.countries):
            manifest = spatial_split(manifest, seed=config.seed)
            save_split(manifest, out / "split.json")
        save_set(out, manifest, rows, config)
    return manifest


def _country_rows(
    out: Path, name: str, cities: "Iterator[tuple[City, list[Spot]]]", config: SimulationConfig, workers: int | None,
    progress: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    camera = country_camera(name, config.sensor)
    for number, (city, spots) in enumerate(cities):
        save_features(out / FEATURES / f"{name}-{number:03d}.geojson", city)
        made = make_tiles(out, f"{name}-{number:03d}", city, spots, camera, config, workers, progress)
        yield from complete_rows(made, city, camera, name, config)


def built_in_dataset(scale: str = "tiny", seed: int = 0, out: str | Path = "runs") -> Path:
    """The folder of the built-in simulated set, made on first use: 3 x 300 tiles at tiny, 1,500 small, 5,000 full."""
    tiles = {"tiny": 300, "small": 1500, "full": 5000}
    if scale not in tiles:
        raise ConfigError(f"Unknown scale {scale!r}: choose tiny, small or full")
    folder = Path(out) / f"simulated-{scale}-{seed}"
    simulate_dataset(folder, SimulationConfig(tiles=tiles[scale], seed=seed))
    return folder


# --- where tiles lie --------------------------------------------------------------------------------------------


def cities_of(name: str, config: SimulationConfig) -> "Iterator[tuple[City, list[Spot]]]":
    """The cities of a country, one after another, each with the tiles to take from it."""
    from ucore.city import make_city
    from ucore.osm import read_osm
    from ucore.osm_city import city_from_osm

    style = country_style(name)
    if config.osm:
        city = city_from_osm(read_osm(config.osm), style, f"drawn from {Path(config.osm).name}")
        yield city, _spots(city, config.tiles, name, 0, config)
        return
    left, number = config.tiles, 0
    while left > 0:
        count = min(left, TILES_A_CITY)
        side = TILE_M * PITCH * (math.ceil(math.sqrt(count * 1.12)) + 0.5)
        lon, lat = style.place
        place = replace(style, place=(lon + 0.8 * number, lat))
        city = make_city(place, side, config.seed * 1000 + number)
        yield city, _spots(city, count, name, number, config)
        left, number = left - count, number + 1


def _spots(city: "City", count: int, name: str, number: int, config: SimulationConfig) -> list[Spot]:
    """`count` places of a grid over the city, those where something is; drawn by the seed, in reading order."""
    centres: dict[tuple[int, int], tuple[float, float]] = {}
    for pitch in (PITCH, *CLOSER):
        centres = _grid(city, TILE_M * pitch)
        if len(centres) >= count:
            break
    place = Path(config.osm).name if config.osm else "The simulated city"
    if not centres:
        raise DataError(f"{place} has no room for a tile of {TILE_M:.0f} m that shows something. Use a larger extract.")
    if len(centres) < count:
        raise DataError(
            f"{place} has room for {len(centres):,} tiles of {TILE_M:.0f} m that show something, not {count:,}. "
            f"Ask for --tiles {len(centres)} or use a larger extract."
        )
    grid = sorted(centres, key=lambda at: (at[1], at[0]))
    rng = np.random.default_rng([config.seed, number, *name.encode()])
    chosen = [grid[k] for k in np.sort(rng.permutation(len(grid))[:count])]
    seeds = rng.integers(0, 2**31, len(chosen))
    return [Spot(f"{name}_{number}_{j:03d}_{i:03d}", *centres[i, j], int(seed))
            for (i, j), seed in zip(chosen, seeds, strict=True)]  # fmt: skip


def _grid(city: "City", pitch: float) -> dict[tuple[int, int], tuple[float, float]]:
    """Places `pitch` metres apart that show something: (column, row from the north) -> metres east and north."""
    across, down = (max(0, int((reach - TILE_M) // pitch) + 1) for reach in (city.width, city.height))
    grid = [(i, j) for j in range(down) for i in range(across)]
    centres = {(i, j): ((i - (across - 1) / 2) * pitch, ((down - 1) / 2 - j) * pitch) for i, j in grid}
    return {at: place for at, place in centres.items() if len(city.within(*tile_box(*place, TILE_M / 2))) >= 3}


# --- making -----------------------------------------------------------------------------------------------------


def make_tiles(out: Path, name: str, city: "City", spots: list[Spot], camera: Camera, config: SimulationConfig,
                workers: int | None, progress: bool) -> list[dict[str, Any]]:  # fmt: skip
    """Every tile of a city, in processes; parts that an earlier call finished are read instead."""
    import multiprocessing

    from tqdm.auto import tqdm

    workers = max(1, workers if workers is not None else cores())
    parts = [
        (out / PARTS / f"{name}-{start:05d}.json", spots[start : start + PART]) for start in range(0, len(spots), PART)
    ]
    missing = [part for part in parts if not part[0].is_file()]
    someone_looks = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    bar = tqdm(total=len(spots), initial=sum(len(p[1]) for p in parts) - sum(len(p[1]) for p in missing),
               desc=f"Simulating {name[:-4]}", unit="tile", disable=not someone_looks)  # fmt: skip
    with bar:
        if missing:
            # Forked where that exists: a worker then has the city without building or unpickling it.
            kind = "fork" if sys.platform == "linux" else "spawn"
            pool = ProcessPoolExecutor(min(workers, len(missing)), multiprocessing.get_context(kind), _start_worker,
                                       (city, camera, config, out))  # fmt: skip
            with death_told(), _without_opencv_threads(), pool:
                for done in pool.map(_make_part, missing):
                    bar.update(done)
    return [row for path, spots in parts for row in _read_part(path, len(spots))]


def _read_part(path: Path, count: int) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is damaged. Delete that file and repeat the command: its tiles are made again.")
    return rows


@contextmanager
def _without_opencv_threads() -> Iterator[None]:
    """Within, OpenCV has one thread, in forked workers too: one process a core is enough.

    Set before the fork: a worker would wait for ever for the threads that its parent's OpenCV had started.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


_worker: tuple[Any, ...] = ()


def _start_worker(city: "City", camera: Camera, config: SimulationConfig, out: Path) -> None:
    global _worker
    import gc
    import signal
    import threading

    gc.freeze()  # the city's objects are never freed here: no collection should walk, and so copy, their pages

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then lets its workers finish
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forked, they have the parent's answer to it
    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker = (city, camera, config, out)


def _make_part(part: tuple[Path, list[Spot]]) -> int:
    """Render and describe some tiles; their record is written last, so a part is whole or made again."""
    path, spots = part
    city, camera, config, out = _worker
    rows = [_make_tile(city, spot, camera, config, out) for spot in spots]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(rows), "utf-8")
    return len(spots)


def _make_tile(city: "City", spot: Spot, camera: Camera, config: SimulationConfig, out: Path) -> dict[str, Any]:
    from PIL import Image

    from ucore.describe import captions
    from ucore.render import render_tile

    pixels = round(TILE_M / camera.gsd_m)
    tile = render_tile(city, spot.east, spot.north, camera, pixels, spot.seed)
    country = spot.sample_id.split("_")[0]
    image = f"images/{country}/{spot.sample_id}.jpg"
    with atomic_path(out / image) as temporary:
        Image.fromarray(tile.image).save(temporary, "JPEG", quality=95, subsampling=0)
    if config.masks:
        with atomic_path(out / f"masks/{country}/{spot.sample_id}.png") as temporary:
            Image.fromarray(tile.instances.astype(np.uint16)).save(temporary, "PNG", compress_level=3)
    return {
        "sample_id": spot.sample_id,
        "image": image,
        "captions": captions(tile, spot.seed, config.captions),
        "place": [spot.east, spot.north],
        "instances": [
            {"kind": f.kind, "tags": [f"{k}={v}" for k, v in f.tags.items()], "pixels": int(count)}
            for f, count in zip(tile.features, tile.pixels, strict=True)
        ],
    }
