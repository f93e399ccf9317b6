"""Reads geo-tagged tiles: a table of files and places, and captions in JSON Lines.

metadata.csv        file and any of: country, lat, lon, z, x, y, west, south, east, north, width, height, gsd_m,
                    split, source, licence
captions.jsonl      {"file": ..., "captions": [...], "description": ..., "tags": ["key=value", ...]} a line
"""

import math
from pathlib import Path
from typing import Any

from ucore.errors import DataError
from ucore.geo import tile_bounds
from ucore.manifest import Manifest, Names, few
from ucore.readers import (
    Entry,
    check_captions,
    clean_name,
    header_of,
    load_json_lines,
    load_table,
    name_samples,
    number,
    of_split,
    say,
    usable,
)
from ucore.splits import spatial_split

TABLE, CAPTIONS = "metadata.csv", "captions.jsonl"
METRES_A_DEGREE = 111_195.0  # of latitude, on the mean sphere
BOUNDS = ("west", "south", "east", "north")
# Rough extents (west, south, east, north) of countries that tiles often come from: a place far outside, which would
# be inside with lat and lon exchanged, is a mistake that ranges alone cannot show.
EXTENTS = {
    "finland": (19, 59, 32, 71), "germany": (5, 47, 16, 56), "spain": (-19, 27, 5, 44), "nepal": (80, 26, 89, 31),
    "tanzania": (29, -12, 41, 0), "switzerland": (5, 45, 11, 48), "portugal": (-32, 30, -6, 43),
    "france": (-6, 41, 10, 52), "italy": (6, 35, 19, 48), "austria": (9, 46, 18, 50), "poland": (14, 49, 25, 55),
    "sweden": (10, 55, 25, 70), "norway": (4, 57, 32, 72), "kenya": (33, -5, 42, 6), "india": (68, 6, 98, 36),
}  # fmt: skip


def is_geotiles(folder: Path) -> bool:
    """Whether `folder` holds metadata.csv with a column file, or any metadata.csv beside captions.jsonl."""
    table = folder / TABLE
    return table.is_file() and ("file" in header_of(table) or (folder / CAPTIONS).is_file())


def read_geotiles(folder: str | Path, split: Names | None = None, skip_bad: bool = False, *, seed: int = 0) -> Manifest:
    """Read geo-tagged tiles; the domain is the country in lower case, else the folder's name.

    The footprint comes from the bounds, else from z/x/y (slippy map tiles), else from lat, lon and the size in
    pixels; lon and lat are then its centre unless they are given. gsd_m is the given one, else the footprint's width
    over the picture's. Only the short captions are captions (queries); the description has its own column. Without a
    column split, tiles are split by blocks of ground (`spatial_split` with `seed`), which needs all images.

    skip_bad: leave out tiles whose image or captions are unusable, with a warning. Raises DataError for anything
    else: places out of range, exchanged lat and lon, bounds that do not fit the place, repeated files.
    """
    folder = Path(folder)
    index = folder / TABLE
    texts = _texts(folder / CAPTIONS)
    entries = [_entry(row, texts, index, line) for line, row in enumerate(load_table(index, ("file",)), start=2)]
    _check_countries(entries, index)
    name_samples(entries, index)
    strangers = sorted(texts.keys() - {entry["image"] for entry in entries})
    if strangers:
        say(f"{len(strangers):,} file(s) of {folder / CAPTIONS} are not in {TABLE}: {few(strangers)}.")
    for entry in entries:
        entry["domain"] = entry["domain"] or folder.resolve().name.lower()
    given = _has_splits(entries, index)
    entries = check_captions(of_split(entries, split if given else None, index), index, skip_bad)
    entries = [{**entry, **_ground(entry, folder)} for entry in usable(entries, folder, skip_bad)]
    manifest = Manifest.from_rows(entries, folder)
    if given:
        return manifest
    manifest = spatial_split(manifest, seed=seed)
    return manifest if split is None else manifest.split(split)


def _has_splits(entries: list[Entry], index: Path) -> bool:
    blank = [entry["image"] for entry in entries if not entry["split"]]
    if 0 < len(blank) < len(entries):
        raise DataError(f"{len(blank):,} rows of {index} have no split: {few(blank)}. Fill the column, or remove it.")
    return not blank


def _texts(path: Path) -> dict[str, dict[str, Any]]:
    """File -> its line of the captions file, with lists where lists are wanted."""
    if not path.is_file():
        raise DataError(f"There is no {path}. Write one JSON object a line: file, captions, description, tags.")
    texts: dict[str, dict[str, Any]] = {}
    for line, item in load_json_lines(path):
        where = f"line {line} of {path}"
        if not isinstance(item.get("file"), str):
            raise DataError(f"There is no text 'file' in {where}. Correct that line.")
        name = clean_name(item["file"], where)
        tags, captions = item.get("tags") or [], item.get("captions") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise DataError(f"'tags' is not a list of texts in {where}. Correct that line.")
        if name in texts:
            raise DataError(f"{name} stands a second time in {where}. Keep one line a file.")
        texts[name] = {
            "captions": captions if isinstance(captions, list) else [captions],
            "description": str(item.get("description") or ""),
            "tags": tags,
        }
    return texts


def _entry(row: dict[str, str], texts: dict[str, dict[str, Any]], index: Path, line: int) -> Entry:
    name = clean_name(row["file"], f"row {line:,} of {index}")
    where = f"row {line:,} ({name}) of {index}"
    columns = ("lat", "lon", *BOUNDS, "x", "y", "z", "width", "height", "gsd_m")
    values = {column: number(row.get(column, ""), column, where) for column in columns}
    return {
        "image": name,
        "captions": [],
        "domain": row.get("country", "").lower(),
        "split": row.get("split", ""),
        "source": row.get("source", ""),
        "licence": row.get("licence", "") or row.get("license", ""),
        "width": values["width"],
        **texts.get(name, {}),
        **_place(values, where),
    }


def _place(values: dict[str, float], where: str) -> dict[str, Any]:
    """lon, lat, gsd_m and the bounds (None unknown) of a row. Raises DataError for what is no place on Earth."""
    lon, lat, gsd = values["lon"], values["lat"], values["gsd_m"]
    if math.isnan(lon) != math.isnan(lat):
        raise DataError(f"One of lat and lon is missing in {where}. Fill both, or neither.")
    if abs(lat) > 90 or abs(lon) > 180:
        hint = "lat and lon look exchanged: rename the columns" if abs(lon) <= 90 >= abs(lat) - 90 else "use degrees"
        raise DataError(f"lat {lat:g}, lon {lon:g} in {where} is no place on Earth ({hint}).")
    if gsd <= 0:
        raise DataError(f"gsd_m is {gsd:g} in {where}; it must be metres a pixel, above 0. Correct that cell.")
    bounds = _bounds(values, where)
    if bounds and not math.isnan(lon):
        west, south, east, north = bounds
        middle = ((west + east) / 2, (south + north) / 2)
        far = 2 * max(east - west, north - south)
        if max(abs(lon - middle[0]), abs(lat - middle[1])) > far:
            exchanged = max(abs(lat - middle[0]), abs(lon - middle[1])) <= far
            hint = "lat and lon look exchanged: rename the columns" if exchanged else "correct one of them"
            raise DataError(f"lat {lat:g}, lon {lon:g} lies outside the tile's bounds in {where} ({hint}).")
    elif bounds:
        lon, lat = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    return {"lon": lon, "lat": lat, "gsd_m": gsd, "bounds": bounds}


def _bounds(values: dict[str, float], where: str) -> tuple[float, float, float, float] | None:
    west, south, east, north = (values[name] for name in BOUNDS)
    if not any(math.isnan(values[name]) for name in BOUNDS):
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise DataError(
                f"The bounds west {west:g}, south {south:g}, east {east:g}, north {north:g} in {where} hold nothing. "
                "Write west < east within 180 and south < north within 90 degrees; cut tiles at the antimeridian."
            )
        return west, south, east, north
    x, y, z = values["x"], values["y"], values["z"]
    if any(math.isnan(value) for value in (x, y, z)):
        return None
    whole = all(value == int(value) for value in (x, y, z))
    if not whole or not 0 <= z <= 30 or not (0 <= x < 2**z and 0 <= y < 2**z):
        raise DataError(f"z {z:g}, x {x:g}, y {y:g} in {where} is no tile of the web map. Correct that row.")
    return tile_bounds(int(x), int(y), int(z))


def _check_countries(entries: list[Entry], index: Path) -> None:
    """Refuse lat and lon that were exchanged but stay in range, as in Finland and Germany."""
    exchanged = []
    for entry in entries:
        extent, lon, lat = EXTENTS.get(entry["domain"]), entry["lon"], entry["lat"]
        if extent and not math.isnan(lon) and not _inside(lon, lat, extent) and _inside(lat, lon, extent):
            exchanged.append(f"{entry['image']} (lat {lat:g}, lon {lon:g}, {entry['domain']})")
    if exchanged:
        raise DataError(
            f"lat and lon look exchanged in {len(exchanged):,} row(s) of {index}: {few(exchanged)}. Exchange the two "
            "headings."
        )


def _inside(lon: float, lat: float, extent: tuple[float, float, float, float]) -> bool:
    west, south, east, north = extent
    return west <= lon <= east and south <= lat <= north


def _ground(entry: Entry, folder: Path) -> dict[str, Any]:
    """footprint and gsd_m, as far as place, bounds and size tell."""
    from PIL import Image
    from shapely.geometry import box

    bounds, lat, gsd = entry["bounds"], entry["lat"], entry["gsd_m"]
    if bounds is None and (math.isnan(lat) or math.isnan(gsd)):
        return {}
    with Image.open(folder / entry["image"]) as image:  # reads the header only
        width, height = image.size
    if not math.isnan(entry["width"]) and entry["width"] != width and not math.isnan(gsd):
        gsd = gsd * entry["width"] / width  # the picture was made smaller after the table was written
    a_degree = METRES_A_DEGREE * math.cos(math.radians(lat))
    if bounds is None:
        half_lon, half_lat = gsd * width / a_degree / 2, gsd * height / METRES_A_DEGREE / 2
        bounds = entry["lon"] - half_lon, lat - half_lat, entry["lon"] + half_lon, lat + half_lat
    if math.isnan(gsd):
        gsd = (bounds[2] - bounds[0]) * a_degree / width
    return {"footprint": box(*bounds), "gsd_m": round(gsd, 4)}
