"""Reads SkyScript: CSV files of captions, folders of images, and metadata about place and tags.

    SkyScript_train_....csv, SkyScript_val_....csv, SkyScript_test_....csv      filepath, title, title_multi_objects
    images2/ or images2.zip, ... images7/                                       as `filepath` has it
    metadata.csv, .json, .jsonl or .parquet     filepath, box, center_tags, surrounding_tags; optional

The CSV files may lie in dataframe/. SkyScript's own metadata are pickles, which can run code: they are never read.
"""

import ast
import math
from pathlib import Path, PurePosixPath
from typing import Any

from ucore.archives import open_folder
from ucore.errors import DataError
from ucore.files import parse_json
from ucore.manifest import Manifest, Names, few
from ucore.readers import (
    Entry,
    check_captions,
    clean_name,
    common_root,
    header_of,
    load_json,
    load_json_lines,
    load_table,
    name_samples,
    of_split,
    say,
    usable,
)
from ucore.splits import spatial_split

SPLITS = ("train", "val", "test")
NEEDED = {"filepath", "title"}  # columns
METADATA = ("metadata.csv", "metadata.json", "metadata.jsonl", "metadata.parquet")
# The second part of a file name, a198234555_CH_19.jpg, names the imagery: its country and metres a pixel, where it
# has one. The others (SkySat, Sentinel-2, Landsat) cover the world.
IMAGERY = {
    "US": ("usa", math.nan),  # NAIP: 0.6 or 1 m
    "DE": ("germany", 0.2),
    "FI": ("finland", 0.5),
    "CH": ("switzerland", 0.1),
    "ES": ("spain", 0.1),
    "P3": ("world", 0.8),
    "P5": ("world", 2.0),
    "S2": ("world", 10.0),
    "L8": ("world", 30.0),
    "L9": ("world", 30.0),
}


def is_skyscript(folder: Path) -> bool:
    """Whether `folder`, or dataframe/ in it, holds a CSV file with SkyScript's columns."""
    return bool(_tables(folder))


def read_skyscript(
    folder: str | Path, split: Names | None = None, skip_bad: bool = False, *, seed: int = 0
) -> Manifest:
    """Read every CSV file of captions in `folder`; the domain is the country of the imagery, else "world".

    The caption is `title_multi_objects`, or `title` where that is empty: one caption an image, as in SkyScript's own
    retrieval test. The split is the one in the CSV's name; files without one are split by blocks of ground
    (`spatial_split` with `seed`), which needs all images. Footprints and centres come from `box` (west, south, east,
    north), tags from `center_tags` and `surrounding_tags`. The size of a pixel is that of the imagery.

    skip_bad: leave out images that are absent or unreadable, with a warning. Raises DataError for anything else.
    """
    folder = Path(folder)
    tables = _tables(folder)
    if not tables:
        raise DataError(f"There is no CSV file with filepath and title in {folder}. Put SkyScript's captions there.")
    metadata = _metadata(folder)
    entries = [entry for name, path in tables.items() for entry in _entries(path, name, metadata)]
    _find_folders(entries, folder)
    root = common_root(entries)
    name_samples(entries, folder)
    if "" in tables:
        entries = usable(check_captions(entries, folder, skip_bad), root, skip_bad)
        manifest = spatial_split(Manifest.from_rows(entries, root), seed=seed)
        return manifest if split is None else manifest.split(split)
    entries = check_captions(of_split(entries, split, folder), folder, skip_bad)
    return Manifest.from_rows(usable(entries, root, skip_bad), root)


def _tables(folder: Path) -> dict[str, Path]:
    """Split -> CSV file; the split is "" where the name has none, and then it is the only one."""
    files = [path for place in (folder, folder / "dataframe") for path in sorted(place.glob("*.csv"))]
    # A file of SkyScript's name is one even with a wrong heading, which its reader then names.
    files = [path for path in files if path.name.lower().startswith("skyscript") or header_of(path) >= NEEDED]
    tables: dict[str, Path] = {}
    for path in files:
        if path.name.lower() == "metadata.csv" or path.name[0] == ".":
            continue
        words = path.stem.lower().replace("-", "_").split("_")
        split = next((name for name in SPLITS if name in words), "")
        if split in tables or (tables and "" in (split, *tables)):
            names = few([path.name for path in files], 6)
            raise DataError(f"{path.parent} holds several caption files for one split: {names}. Keep one a split.")
        tables[split] = path
    return {name: tables[name] for name in (*SPLITS, "") if name in tables}


def _entries(path: Path, split: str, metadata: dict[str, dict[str, Any]]) -> list[Entry]:
    entries = []
    for line, row in enumerate(load_table(path, ("filepath", "title")), start=2):
        name = clean_name(row["filepath"], str(path))
        where = f"row {line:,} of {path}"
        facts = {**row, **metadata.get(name, {})}
        words = PurePosixPath(name).stem.split("_")
        country, gsd = IMAGERY.get(words[1] if len(words) > 1 else "", ("world", math.nan))
        entry = {
            "image": name,
            "captions": [row.get("title_multi_objects") or row["title"]],
            "split": split,
            "domain": country,
            "gsd_m": gsd,
            "tags": [tag for of in _value(facts.get("center_tags"), where, True) for tag in _pairs(of, where)],
            "surrounding_tags": _distinct(
                tag for of in _value(facts.get("surrounding_tags"), where, True) for tag in _pairs(of, where)
            ),
            "source": "skyscript",
        }
        entries.append({**entry, **_place(facts.get("box"), where)})
    return entries


def _distinct(tags: Any) -> list[str]:
    return list(dict.fromkeys(tags))


def _value(cell: Any, where: str, as_list: bool = False) -> Any:
    """A cell as Python values: JSON, or the way Python prints tuples and dicts. Nothing is executed."""
    value = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise DataError(
                    f"{value[:60]!r} in {where} is neither JSON nor a tuple or dict. Correct it."
                ) from error
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return []
    value = [value] if as_list and isinstance(value, dict | str) else value
    if not isinstance(value, list | tuple):
        raise DataError(f"{str(value)[:60]!r} in {where} is not a list. Correct it.")
    return value


def _pairs(tags: Any, where: str) -> list[str]:
    if isinstance(tags, str) and "=" in tags:
        return [tags]
    if not isinstance(tags, dict):
        raise DataError(f"{str(tags)[:60]!r} in {where} is not a dict of tags. Correct it.")
    return [f"{key}={value}" for key, value in tags.items() if value is not None]


def _place(cell: Any, where: str) -> dict[str, Any]:
    """lon, lat and footprint of a box; nothing where there is none."""
    from shapely.geometry import box

    values = _value(cell, where)
    if not values:
        return {}
    try:
        west, south, east, north = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"The box {values!r} in {where} is not four numbers. Correct it.") from error
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        swapped = -180 <= south < north <= 180 and -90 <= west < east <= 90
        hint = "latitudes and longitudes look swapped" if swapped else "write west, south, east, north in degrees"
        raise DataError(f"The box {values!r} in {where} is no place on Earth: {hint}. Correct it.")
    return {"lon": (west + east) / 2, "lat": (south + north) / 2, "footprint": box(west, south, east, north)}


def _metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Image name -> box and tags, from the one metadata file. Pickles are named, and not opened."""
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} holds several files of metadata: {few([path.name for path in files])}. Keep one.")
    if not files:
        pickled = sorted(path.name for path in folder.glob("meta*") if path.is_dir() or path.suffix == ".zip")
        if pickled:
            say(
                f"{few(pickled)} in {folder} are pickles, which can run code, and were not read: places and tags are "
                "unknown. `ucore data help skyscript` tells how to convert them."
            )
        return {}
    path = files[0]
    if path.suffix == ".csv":
        rows: Any = load_table(path, ("filepath",))
    elif path.suffix == ".jsonl":
        rows = [item for _, item in load_json_lines(path)]
    elif path.suffix == ".json":
        content = load_json(path)
        rows = content
        if isinstance(content, dict):
            rows = [{"filepath": name, **facts} for name, facts in content.items() if isinstance(facts, dict)]
            rows = rows if len(rows) == len(content) else None
    else:
        rows = _parquet(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("filepath") for row in rows):
        raise DataError(f"{path} needs 'filepath' in every record. Correct it.")
    return {clean_name(str(row["filepath"]), str(path)): row for row in rows}


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these kinds
        raise DataError(f"{path} is not a whole Parquet file. Make it again.") from error


def _find_folders(entries: list[Entry], folder: Path) -> None:
    """Give every entry the folder that its image lies in, unpacking archives, and its name in there."""
    known: dict[str, Path] = {}
    for entry in entries:
        first, _, rest = entry["image"].partition("/")
        if rest and first not in (".", ".."):
            if first not in known:
                known[first] = open_folder(folder, first) or open_folder(folder / "images", first) or folder / first
            if known[first].is_dir():
                entry["folder"], entry["image"] = known[first], rest
                continue
        inside = folder / "images"
        entry["folder"] = inside if (inside / entry["image"]).is_file() else folder
