"""A dataset from imagery and OpenStreetMap: tiles of one ground resolution, their tags, captions and splits.

config = BuildConfig("city.tif", "city.osm.pbf", (24.93, 60.16, 24.96, 60.18), country="finland", zoom=18)
build_dataset(config, "data/helsinki")

Tiles are JPEGs of quality 95 without chroma subsampling: their loss is below the noise of the sources, which mostly
are JPEGs themselves, at a fraction of PNG's size.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ucore.compose import TagComposer
from ucore.errors import ConfigError, DataError
from ucore.files import atomic_path, file_hash, only_writer, parse_json, require_writable, write_json
from ucore.geo import (
    Bounds,
    check_bounds,
    ground_resolution,
    local_frame,
    read_osm,
    require_overlap,
    show,
    tag_footprints,
)
from ucore.imagery import open_imagery
from ucore.images import someone_looks
from ucore.manifest import Manifest
from ucore.splits import save_split, spatial_split
from ucore.tiles import Imagery

MOST_WINDOWS = 500_000  # of one build; more is a mistyped bound or zoom
MOST_BLANK = 0.1  # share of a tile's pixels without data above which it is left out
ENLARGED = 1.5  # how much finer than the imagery a build may be before it says so
OSM_LICENCE = "OpenStreetMap contributors, ODbL 1.0"
BLOCKS = "blocks"  # the value of `split` that draws train, val and test by blocks of ground
SETTINGS_FILE, DATASET_FILE = "build.json", "dataset.json"


@dataclass(frozen=True)
class BuildConfig:
    """Settings of `build_dataset`; with the sources, they determine every byte of the result.

    imagery, osm: see `imagery.open_imagery` and `osm.read_osm`. bounds: west, south, east, north in degrees.
    """

    imagery: str
    osm: str
    bounds: Bounds
    country: str  # the samples' domain
    zoom: int | None = None  # of the tiles to read; sets the ground resolution to a web map's at the centre's latitude
    gsd: float | None = None  # metres a pixel, instead of the zoom's
    tile_size: int = 224  # pixels
    attribution: str = ""  # whom the imagery's terms want named
    licence: str = ""  # of the imagery
    source: str = ""  # the imagery's name in the manifest; by default its file or address
    seed: int = 0  # of the splits
    split: str = BLOCKS  # any other name is the split of all samples
    limit: int | None = None  # at most so many tiles, evenly spread over the area
    keep_untagged: bool = False  # keep tiles where the extract has nothing
    tms: bool = False  # rows of tiles count from the south

    def check(self) -> None:
        """Raise ConfigError for a value out of its range, naming the option."""
        check_bounds(self.bounds)
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", self.country):
            raise ConfigError(f"--country is {self.country!r}; write it in lower case letters, for example finland.")
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", self.split):
            raise ConfigError(f"--split is {self.split!r}; choose {BLOCKS}, train, val or test.")
        if self.zoom is None and self.gsd is None:
            raise ConfigError(
                "The ground resolution is open: add --zoom (18 is 0.6 m a pixel at the equator) or --gsd METRES."
            )
        limits = {"zoom": (10, 23), "gsd": (0.02, 100), "tile_size": (32, 2048), "limit": (1, math.inf)}
        for name, (low, high) in {**limits, "seed": (0, 2**31 - 1)}.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                wanted = f"from {low} to {high}" if high < math.inf else f"at least {low}"
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be {wanted}.")

    @property
    def gsd_m(self) -> float:
        """Metres a pixel of the tiles, in x and y alike."""
        if self.gsd is not None:
            return self.gsd
        return ground_resolution((self.bounds[1] + self.bounds[3]) / 2, self.zoom or 0)


def build_dataset(config: BuildConfig, out: str | Path, **server: Any) -> dict[str, Any]:
    """Cut, tag, caption and split the tiles of an area into the folder `out`, which `read_dataset` reads.

    server: how a tile server is asked (`servers.TileServer`: cache, rate, most_tiles, backoff_s).
    Writes images/<country>/<id>.jpg, manifest.parquet, split.json, build.json (the settings) and, last, dataset.json,
    whose content is returned. Repeated after a kill it goes on: whole tiles are kept, and the result is the same as
    without the kill. Raises UserError for settings, sources or a folder that do not fit.
    """
    config.check()
    out = Path(out)
    require_writable(out)
    windows = grid(config.bounds, config.tile_size * config.gsd_m)
    features = read_osm(config.osm)
    require_overlap(config.bounds, features.total_bounds, config.osm)
    attribution = {"attribution": config.attribution} if "://" in config.imagery else {}
    imagery = open_imagery(config.imagery, config.zoom, config.tms, **attribution, **(server if attribution else {}))
    require_overlap(config.bounds, imagery.bounds, f"the imagery {imagery.name}")
    _refuse_strangers(out)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        _claim(out, _settings(config, imagery))
        return _built(windows, features, imagery, config, out)


def _built(windows: dict[str, Bounds], features: Any, imagery: Imagery, config: BuildConfig, out: Path) -> Any:
    """Cut and tag what is missing, and write the dataset's files; the content of dataset.json."""
    samples, skipped = _tagged(windows, features, config)
    skipped |= _cut(samples, imagery, config, out)
    samples = [sample for sample in samples if (out / sample["image"]).exists()]
    if not samples:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items() if count)
        raise DataError(
            f"No tile of {len(windows):,} is left: {reasons}. Choose other --bounds or imagery"
            f"{', or add --keep-untagged' if skipped['without tags'] else ''}."
        )
    manifest = _split(Manifest.from_rows(samples, out), config)
    manifest.save(out / "manifest.parquet")
    save_split(manifest, out / "split.json")
    facts = _facts(config, imagery, manifest, len(windows), skipped)
    write_json(out / DATASET_FILE, facts)
    return facts


def grid(bounds: Bounds, side_m: float) -> dict[str, Bounds]:
    """Windows of `side_m` x `side_m` metres on the ground that fill `bounds` from the south-west, by "r0000-c0000".

    Each row has its own width in degrees, so that tiles are as wide as high at every latitude. Raises ConfigError for
    bounds smaller than one tile, or with more than `MOST_WINDOWS`.
    """
    west, south, east, north = check_bounds(bounds)
    across, along = local_frame((west + east) / 2, (south + north) / 2).scale
    width, height = (east - west) * across, (north - south) * along
    if width < side_m or height < side_m:
        raise ConfigError(
            f"The bounds {show(bounds)} are {width:.0f} x {height:.0f} m, smaller than one tile of {side_m:.0f} m. "
            "Choose larger bounds, a higher --zoom or a smaller --tile-size."
        )
    if width * height / side_m**2 > MOST_WINDOWS:
        raise ConfigError(
            f"The bounds {show(bounds)} hold {width * height / side_m**2:,.0f} tiles of {side_m:.0f} m, more than "
            f"{MOST_WINDOWS:,}. Choose smaller bounds or a lower --zoom, and build several datasets."
        )
    windows: dict[str, Bounds] = {}
    bottom, row = south, 0
    while True:
        across, along = local_frame(west, bottom + side_m / along / 2).scale
        top, step = bottom + side_m / along, side_m / across
        if top > north:
            return windows
        for column in range(int((east - west) / step)):
            windows[f"r{row:04d}-c{column:04d}"] = (west + column * step, bottom, west + (column + 1) * step, top)
        bottom, row = top, row + 1


def caption(tags: Sequence[str], surrounding_tags: Sequence[str], sample_id: str = "") -> str:
    """The sentence a built sample starts with, composed of its tags only: nobody and no model looked at the image."""
    return TagComposer().compose(tags, surrounding_tags, sample_id) or "A satellite image."


def _tagged(
    windows: dict[str, Bounds], features: Any, config: BuildConfig
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows of the manifest for the windows that are wanted, before their images exist, and how many lack tags."""
    import shapely

    boxes = shapely.box(*np.array(list(windows.values())).T)
    tags = tag_footprints(features, boxes)
    named = [place for place, of_tile in enumerate(tags) if config.keep_untagged or any(of_tile)]
    skipped = Counter({"without tags": len(windows) - len(named)})
    if config.limit is not None and len(named) > config.limit:
        chosen = np.linspace(0, len(named) - 1, config.limit).round().astype(int)
        skipped["beyond the limit"] = len(named) - config.limit
        named = [named[place] for place in chosen]
    names = list(windows)
    rows = []
    for place in named:
        sample_id = f"{config.country}-{names[place]}"
        row = dict(sample_id=sample_id, image=f"images/{config.country}/{sample_id}.jpg", domain=config.country)
        centre = shapely.centroid(boxes[place])
        row |= dict(tags=tags[place][0], surrounding_tags=tags[place][1], captions=[caption(*tags[place], sample_id)])
        row |= dict(lon=centre.x, lat=centre.y, footprint=boxes[place], gsd_m=config.gsd_m)
        rows.append(row)
    return rows, skipped


def _cut(samples: list[dict[str, Any]], imagery: Imagery, config: BuildConfig, out: Path) -> Counter[str]:
    """Write the images that are not there yet, and name source and licence; counts what has no picture to show."""
    skipped: Counter[str] = Counter()
    pending = [sample for sample in samples if not (out / sample["image"]).exists()]
    imagery.requests([sample["footprint"].bounds for sample in pending])
    for sample in tqdm(pending, desc="Cutting tiles", unit="tile", disable=not someone_looks()):
        west, south, east, north = sample["footprint"].bounds
        pixels = imagery.read(west, south, east, north, config.tile_size)
        reason = "without imagery" if pixels is None else "mostly blank" if is_blank(pixels) else ""
        if pixels is None or reason:
            skipped[reason] += 1
            continue
        pixels[pixels[..., 3] == 0] = 255
        with atomic_path(out / sample["image"]) as temporary:
            Image.fromarray(pixels[..., :3]).save(temporary, format="JPEG", quality=95, subsampling=0)
    source = "; ".join(part for part in (config.source or imagery.name, config.attribution) if part)
    for sample in samples:
        sample["source"] = source
        sample["licence"] = f"imagery: {config.licence or 'not stated'}; tags: {OSM_LICENCE}"
    return skipped


def is_blank(pixels: np.ndarray) -> bool:
    """Whether uint8 RGBA (H, W, 4) shows nothing: too many pixels empty, pure black or pure white, or all alike."""
    red, green, blue, alpha = np.moveaxis(pixels, -1, 0)
    empty = (alpha == 0) | (red | green | blue == 0) | (red & green & blue == 255)
    return bool(empty.mean() > MOST_BLANK or (pixels[..., :3] == pixels[0, 0, :3]).all())


def _split(manifest: Manifest, config: BuildConfig) -> Manifest:
    if config.split != BLOCKS:
        manifest.frame["split"] = config.split
        return manifest
    try:
        return spatial_split(manifest, seed=config.seed)
    except DataError as error:
        raise DataError(f"{error} Or put all samples into one split, for example with --split test.") from error


def _settings(config: BuildConfig, imagery: Imagery) -> dict[str, Any]:
    """What makes the build what it is, without places of this machine and without keys of a server."""
    names = ("country", "zoom", "tile_size", "attribution", "licence", "source", "seed", "split", "limit")
    return {
        **{name: getattr(config, name) for name in (*names, "keep_untagged", "tms")},
        "gsd_m": config.gsd_m,
        "bounds": list(config.bounds),
        "imagery": imagery.name,
        "imagery_key": imagery.fingerprint(),
        "osm": Path(config.osm).name,
        "osm_key": file_hash(config.osm)[:16],
    }


def _refuse_strangers(out: Path) -> None:
    """Raise ConfigError for a folder that holds something, and no build: before anything in it is touched."""
    started = (out / SETTINGS_FILE).exists()
    if not started and out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no earlier build. Choose another --out.")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into a folder. Raises ConfigError for one that holds a build with others."""
    path = out / SETTINGS_FILE
    if not path.exists() or not (out / "images").exists():  # nothing was cut yet
        write_json(path, settings)
        return
    try:
        earlier = parse_json(path.read_text("utf-8"))
        # Before the end, splits bind nothing: they are drawn last, and may turn out to be impossible.
        free = () if (out / DATASET_FILE).exists() else ("seed", "split")
        changed = [name for name in settings if earlier[name] != settings[name] and name not in free]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not the settings of a build. Choose another --out.") from error
    if changed:
        said = "; ".join(f"{name} was {earlier[name]!r} and is now {settings[name]!r}" for name in changed)
        raise ConfigError(
            f"{out} holds a build with other settings: {said}. Choose another --out, or use the old ones."
        )
    write_json(path, settings)


def _facts(config: BuildConfig, imagery: Imagery, manifest: Manifest, windows: int, skipped: Counter[str]) -> Any:
    """The content of dataset.json."""
    fine, lat = config.gsd_m, (config.bounds[1] + config.bounds[3]) / 2
    notes = ["Captions are composed of OpenStreetMap tags; nobody looked at the images."]
    if fine * ENLARGED < imagery.gsd_at(lat):
        notes.append(
            f"The imagery has {imagery.gsd_at(lat):.2g} m a pixel; tiles of {fine:.2g} m are enlarged from it."
        )
    return {
        "name": config.country,
        "command": "ucore data build",
        "seed": config.seed,
        "simulated": manifest.simulated,
        "source": manifest.frame["source"].iloc[0],
        "licence": manifest.frame["licence"].iloc[0],
        "attribution": config.attribution,
        "bounds": list(config.bounds),
        "gsd_m": fine,
        "tile_size": config.tile_size,
        "counts": {
            "windows": windows,
            "images": len(manifest),
            "skipped": dict(sorted(skipped.items())),
            "splits": dict(sorted(Counter(manifest.frame["split"]).items())),
        },
        "notes": notes,
    }
