"""A simulated dataset on disk: its settings, its rows, the ground around its tiles, and the files that hold them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.countries import COUNTRIES, Camera, country_camera, country_style
from ucore.errors import ConfigError, DataError
from ucore.files import atomic_path, parse_json, read_json, write_json
from ucore.manifest import SIMULATED, Manifest

if TYPE_CHECKING:
    import geopandas

    from ucore.city import City

VERSION = 1  # of what is drawn and said: raised with every change of it, so that old and new tiles are never mixed
DATASET_FILE, MANIFEST_FILE, PARTS, FEATURES = "dataset.json", "manifest.parquet", "parts", "features"
TILE_M = 180.0  # side of a tile on the ground; the same for every camera
OSM_CREDIT = "© OpenStreetMap contributors, ODbL"
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


def tile_box(east: float, north: float, half: float) -> tuple[float, float, float, float]:
    """West, south, east and north of a square, in local metres."""
    return east - half, north - half, east + half, north + half


def complete_rows(rows: list[dict[str, Any]], city: "City", camera: Camera, name: str,
                   config: SimulationConfig) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the manifest: place, footprint and tags added to what the tiles' makers recorded."""
    import shapely

    from ucore.geo import tag_footprints

    places = np.array([row.pop("place") for row in rows])
    half = TILE_M / 2
    corners = [shapely.box(*tile_box(east, north, half)) for east, north in places]
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


def save_features(path: Path, city: "City") -> None:
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


def dataset_credit(folder: str | Path) -> str:
    """Whom a map of `dataset_features` must name: OpenStreetMap's contributors where the ground is of an extract."""
    card = read_json(Path(folder) / DATASET_FILE)
    licence = card.get("licence") if isinstance(card, dict) else None
    return OSM_CREDIT if str(licence).startswith("ODbL") else ""


def settings_of(config: SimulationConfig) -> dict[str, Any]:
    """What decides the files, as JSON holds it; an extract by its name and content."""
    from ucore.files import file_hash

    settings = {**json.loads(json.dumps(asdict(config))), "version": VERSION}
    if config.osm:
        if not Path(config.osm).is_file():
            raise DataError(f"There is no OpenStreetMap extract {config.osm}. Correct --osm.")
        settings["osm"] = f"{Path(config.osm).name} {file_hash(config.osm)[:16]}"
    return settings


def is_complete(out: Path, config: SimulationConfig) -> bool:
    """Whether `out` holds this very dataset. Raises ConfigError when it holds another one."""
    wanted, card = settings_of(config), out / DATASET_FILE
    if card.is_file():
        try:
            found = parse_json(card.read_text("utf-8"))
            settings, complete = dict(found["settings"]), found["complete"]
        except (OSError, ValueError, KeyError, TypeError) as error:
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


def _command(config: SimulationConfig) -> str:
    extract = f"--osm {Path(config.osm).name} " if config.osm else ""
    more = "" if config.masks else " --no-masks"
    return (
        f"ucore simulate {extract}--countries {','.join(config.countries)} --tiles {config.tiles} "
        f"--sensor {config.sensor} --seed {config.seed} --captions {config.captions}{more}"
    )


def save_set(out: Path, manifest: Manifest, rows: Sequence[dict[str, Any]], config: SimulationConfig) -> None:
    """Write everything but the pictures; dataset.json, which says that all is there, last."""
    import pandas as pd

    records = [
        {"sample_id": row["sample_id"], "instance": number, **item}
        for row in rows
        for number, item in enumerate(row["instances"], start=1)
    ]
    with atomic_path(out / "instances.parquet") as temporary:
        pd.DataFrame(records).to_parquet(temporary, index=False)
    manifest.save(out / MANIFEST_FILE)
    settings = settings_of(config)
    card = {
        "name": f"simulated {'+'.join(config.countries)}",
        "simulated": True,
        "command": _command(config),
        "seed": config.seed,
        "settings": settings,
        "licence": LICENCES["osm" if config.osm else "procedural"],
        "counts": {name: int(count) for name, count in manifest.frame["domain"].value_counts().sort_index().items()},
        "complete": True,
    }
    write_json(out / DATASET_FILE, card)
