"""Simulated satellite tiles of three countries: pictures, object masks, OpenStreetMap-style tags and captions.

    simulate_dataset("runs/simulated", countries=("finland", "germany", "spain"), tiles=300, sensor="shared", seed=0)

A controlled stand-in for data that cannot be had: what is country and what is camera are two separate dials. Every
sample's source begins with "simulated", so that no number measured on it is ever mistaken for a real one.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.countries import COUNTRIES, Camera, country_camera, country_style
from ucore.errors import ConfigError, DataError
from ucore.files import atomic_path, content_hash, only_writer, require_writable, write_json
from ucore.manifest import SIMULATED, Manifest

if TYPE_CHECKING:
    import geopandas

    from ucore.city import City

DATASET_FILE, MANIFEST_FILE, PARTS, FEATURES = "dataset.json", "manifest.parquet", "parts", "features"
PART = 50  # tiles made and recorded together: what a stopped run loses at most, per process
TILES_A_CITY = 2000  # a country with more tiles has several cities
PITCH = 1.45  # tiles' distance in tile sides: their diagonals fit between, so no split needs a buffer
TILE_M = 180.0  # side of a tile on the ground; the same for every camera
LICENCES = {"procedural": "CC0-1.0", "osm": "ODbL-1.0 (derived from OpenStreetMap)"}


@dataclass(frozen=True)
class SimulationConfig:
    """What is simulated. tiles: of each country. sensor: "shared" or "per-country" (see `countries.Camera`)."""

    countries: tuple[str, ...] = tuple(COUNTRIES)
    tiles: int = 300
    sensor: str = "shared"
    seed: int = 0
    captions: int = 5
    osm: str = ""  # an OpenStreetMap extract to draw instead of procedural cities; one country then gives the style
    masks: bool = True

    def check(self) -> None:
        """Raise ConfigError for a value out of its range, naming the setting."""
        if not self.countries or len(set(self.countries)) < len(self.countries):
            raise ConfigError("countries must name at least one country, each once, for example finland,germany,spain")
        for name in self.countries:
            country_camera(country_style(name).name, self.sensor)
        for name, low, high in (("tiles", 1, 200_000), ("captions", 1, 20), ("seed", 0, 2**31 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low:,} to {high:,}")
        if self.osm and len(self.countries) != 1:
            raise ConfigError("An OpenStreetMap extract is one place: name one country whose style it is drawn in")


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
    if _is_complete(out, config):
        return Manifest.load(out / MANIFEST_FILE)
    cities = {name: _cities(name, config) for name in config.countries}
    if config.osm:  # read before anything is written: an unusable extract leaves no folder to be removed
        cities = {name: iter(list(found)) for name, found in cities.items()}
    if not (out / DATASET_FILE).is_file():
        write_json(out / DATASET_FILE, {"settings": _key(config), "complete": False})
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        rows = [row for name in cities for row in _country_rows(out, name, cities[name], config, workers, progress)]
        manifest = Manifest.from_rows([{k: v for k, v in row.items() if k != "instances"} for row in rows], out)
        if len(manifest) >= 10 * len(config.countries):
            manifest = spatial_split(manifest, seed=config.seed)
            save_split(manifest, out / "split.json")
        _save(out, manifest, rows, config)
    return manifest


def _country_rows(
    out: Path, name: str, cities: "Iterator[tuple[City, list[Spot]]]", config: SimulationConfig, workers: int | None,
    progress: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    camera = country_camera(name, config.sensor)
    for number, (city, spots) in enumerate(cities):
        _save_features(out / FEATURES / f"{name}-{number:03d}.geojson", city)
        made = _make_tiles(out, f"{name}-{number:03d}", city, spots, camera, config, workers, progress)
        yield from _complete_rows(made, city, camera, name, config)


def built_in_dataset(scale: str = "tiny", seed: int = 0, out: str | Path = "runs") -> Path:
    """The folder of the built-in simulated set, made on first use: 3 x 300 tiles at tiny, 1,500 small, 5,000 full."""
    tiles = {"tiny": 300, "small": 1500, "full": 5000}
    if scale not in tiles:
        raise ConfigError(f"Unknown scale {scale!r}: choose tiny, small or full")
    folder = Path(out) / f"simulated-{scale}-{seed}"
    simulate_dataset(folder, SimulationConfig(tiles=tiles[scale], seed=seed))
    return folder


# --- where tiles lie --------------------------------------------------------------------------------------------


def _cities(name: str, config: SimulationConfig) -> "Iterator[tuple[City, list[Spot]]]":
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
    pitch = TILE_M * PITCH
    across, down = (max(0, int((reach - TILE_M) // pitch) + 1) for reach in (city.width, city.height))
    grid = [(i, j) for j in range(down) for i in range(across)]
    centres = {(i, j): ((i - (across - 1) / 2) * pitch, ((down - 1) / 2 - j) * pitch) for i, j in grid}
    half = TILE_M / 2
    grid = [at for at in grid if len(city.within(*_box(*centres[at], half))) >= 3]
    place = Path(config.osm).name if config.osm else "The simulated city"
    if not grid:
        raise DataError(f"{place} has no room for a tile of {TILE_M:.0f} m that shows something. Use a larger extract.")
    if len(grid) < count:
        raise DataError(
            f"{place} has room for {len(grid):,} tiles of {TILE_M:.0f} m that show something, not {count:,}. "
            f"Ask for --tiles {len(grid)} or use a larger extract."
        )
    rng = np.random.default_rng([config.seed, number, *name.encode()])
    chosen = sorted(grid[int(k)] for k in rng.permutation(len(grid))[:count])
    chosen.sort(key=lambda at: (at[1], at[0]))
    seeds = rng.integers(0, 2**31, len(chosen))
    return [Spot(f"{name}_{number}_{j:03d}_{i:03d}", *centres[i, j], int(seed))
            for (i, j), seed in zip(chosen, seeds, strict=True)]  # fmt: skip


def _box(east: float, north: float, half: float) -> tuple[float, float, float, float]:
    return east - half, north - half, east + half, north + half


# --- making -----------------------------------------------------------------------------------------------------


def _make_tiles(out: Path, name: str, city: "City", spots: list[Spot], camera: Camera, config: SimulationConfig,
                workers: int | None, progress: bool) -> list[dict[str, Any]]:  # fmt: skip
    """Every tile of a city, in processes; parts that an earlier call finished are read instead."""
    import multiprocessing

    from tqdm.auto import tqdm

    workers = max(1, workers if workers is not None else os.cpu_count() or 1)
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
            with pool:
                for done in pool.map(_make_part, missing):
                    bar.update(done)
    return [row for path, _ in parts for row in json.loads(path.read_text("utf-8"))]


_worker: tuple[Any, ...] = ()


def _start_worker(city: "City", camera: Camera, config: SimulationConfig, out: Path) -> None:
    global _worker
    import signal
    import threading

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then lets its workers finish
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # one process a core already
    _worker = (city, camera, config, out)


def _end_with_parent() -> None:
    """A killed parent's workers would wait for work for ever, and keep its lock on the folder."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


# --- the dataset ------------------------------------------------------------------------------------------------


def _complete_rows(rows: list[dict[str, Any]], city: "City", camera: Camera, name: str,
                   config: SimulationConfig) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the manifest: place, footprint and tags added to what the tiles' makers recorded."""
    import shapely

    from ucore.geo import tag_footprints

    places = np.array([row.pop("place") for row in rows])
    half = TILE_M / 2
    corners = [shapely.box(*_box(east, north, half)) for east, north in places]
    footprints = city.frame.to_degrees(np.array(corners, dtype=object))
    centres = shapely.get_coordinates(city.frame.to_degrees(shapely.points(places)))
    tags = tag_footprints(city.to_frame(), list(footprints))
    fixed = {"domain": name, "split": "train", "gsd_m": camera.gsd_m, "source": f"{SIMULATED}: {city.source}",
             "licence": LICENCES["osm" if config.osm else "procedural"]}  # fmt: skip
    return [
        {
            **row,
            **fixed,
            "footprint": shape,
            "lon": float(lon),
            "lat": float(lat),
            "tags": shown,
            "surrounding_tags": near,
        }
        for row, shape, (lon, lat), (shown, near) in zip(rows, footprints, centres, tags, strict=True)
    ]


def _save_features(path: Path, city: "City") -> None:
    """The city's land, water and ways as GeoJSON, which `read_osm` reads: the ground of a map of the samples."""
    import shapely

    from ucore.kinds import KINDS, RAISED

    shown = [feature for feature in city.features if KINDS[feature.kind].layer < RAISED and KINDS[feature.kind].weight]
    shapes = city.frame.to_degrees(np.array([feature.geometry for feature in shown], dtype=object))
    shapes = shapely.to_geojson(shapely.simplify(shapes, 1e-5))
    entries = [
        f'{{"type": "Feature", "properties": {{"tags": {json.dumps(json.dumps(feature.tags))}}}, "geometry": {shape}}}'
        for feature, shape in zip(shown, shapes, strict=True)
    ]
    with atomic_path(path) as temporary:
        temporary.write_text('{"type": "FeatureCollection", "features": [\n' + ",\n".join(entries) + "\n]}\n", "utf-8")


def dataset_features(folder: str | Path) -> "geopandas.GeoDataFrame | None":
    """What `read_osm` would give of the ground that a dataset folder keeps in features/; None where it keeps none."""
    import pandas as pd

    from ucore.osm import read_osm

    tables = [read_osm(path) for path in sorted((Path(folder) / FEATURES).glob("*.geojson"))]
    combined: Any = pd.concat(tables, ignore_index=True) if tables else None
    return combined


def _key(config: SimulationConfig) -> dict[str, Any]:
    """What decides the files, as JSON holds it; an extract by its name and content."""
    from ucore.files import file_hash

    settings = json.loads(json.dumps(asdict(config)))
    if config.osm:
        if not Path(config.osm).is_file():
            raise DataError(f"There is no OpenStreetMap extract {config.osm}. Correct --osm.")
        settings["osm"] = f"{Path(config.osm).name} {file_hash(config.osm)[:16]}"
    return settings


def _is_complete(out: Path, config: SimulationConfig) -> bool:
    """Whether `out` holds this very dataset. Raises ConfigError when it holds another one."""
    wanted, card = _key(config), out / DATASET_FILE
    if card.is_file():
        try:
            found = json.loads(card.read_text("utf-8"))
            settings, complete = found["settings"], found["complete"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{card} is damaged. Remove the folder {out}, or choose another --out.") from error
        for name in wanted:
            if settings.get(name) != wanted[name]:
                raise ConfigError(
                    f"{out} holds a simulated set with {name} {settings.get(name)!r}, not {wanted[name]!r}. "
                    "Choose another --out, or remove that folder."
                )
        return bool(complete) and (out / MANIFEST_FILE).is_file()
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} holds other files. Choose another --out, or empty that folder.")
    return False


def _save(out: Path, manifest: Manifest, rows: Sequence[dict[str, Any]], config: SimulationConfig) -> None:
    import pandas as pd

    records = [
        {"sample_id": row["sample_id"], "instance": number, **item}
        for row in rows
        for number, item in enumerate(row["instances"], start=1)
    ]
    with atomic_path(out / "instances.parquet") as temporary:
        pd.DataFrame(records).to_parquet(temporary, index=False)
    manifest.save(out / MANIFEST_FILE)
    settings = _key(config)
    card = {
        "name": f"simulated {'+'.join(config.countries)}",
        "simulated": True,
        "settings": settings,
        "key": content_hash(settings),
        "licence": LICENCES["osm" if config.osm else "procedural"],
        "counts": {name: int(count) for name, count in manifest.frame["domain"].value_counts().sort_index().items()},
        "complete": True,
    }
    write_json(out / DATASET_FILE, card)
