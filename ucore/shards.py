"""Sets in shards: WebDataset tar files and Parquet files, read where they are. `sharding` writes such tar files.

    00017.jpg 00017.json 00017.txt 00018.jpg ...     members of train-0000.tar; equal names up to the first dot belong
                                                     together, txt is one caption
    image, captions, lat, lon, ...                   columns of train-0000.parquet; image as bytes, or as Hugging Face's
                                                     datasets write it, {bytes, path}

JSON and columns may hold captions (or caption, text, sentences), description, tags, surrounding_tags, domain (or
country), split, lon, lat, footprint (WKT), gsd_m, source and licence.
"""

import glob
import json
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ucore.archives import JUNK
from ucore.errors import DataError, UserError
from ucore.files import atomic_path, content_hash, parse_json
from ucore.images import find_bad_images, someone_looks
from ucore.manifest import COLUMNS, Manifest, Names, few
from ucore.readers import LONGEST_NAME, Entry, check_captions, number, of_split, read_text, say
from ucore.spans import image_column, part_name
from ucore.splits import spatial_split

LIST = "shards.txt"  # one shard a line, where they are not all in the folder: paths from there, or from the root, *
INDEX = Path("runs/shards")  # what was found in a shard, so that it is looked through once
VERSION = 1
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".jp2"}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "finetune": "finetune"}  # fmt: skip
TEXTS = ("captions", "sentences", "caption", "text", "txt", "title")
SAME = {"domain": ("country",), "lon": ("lng", "longitude"), "lat": ("latitude",), "gsd_m": ("gsd",),
        "licence": ("license",), "sample_id": ("__key__", "key", "id", "filename")}  # fmt: skip
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # where neither splits nor places are known
OTHERS = ("manifest.parquet", "metadata.parquet")  # tables of other layouts
SMALL = 2**24  # bytes of a text beside a picture


def is_shards(folder: Path) -> bool:
    """Whether `folder` has shards.txt, or tar files or Parquet files with pictures, also in train/, val/, data/..."""
    first = next(iter(sorted(_inside(folder))), None)
    return (folder / LIST).is_file() or (first is not None and (first.suffix == ".tar" or _has_pictures(first)))


def read_shards(
    folder: str | Path, split: Names | None = None, skip_bad: bool = False, *, seed: int = 0, index: Path = INDEX
) -> Manifest:
    """Read shards: nothing is unpacked, a row's image is a place in its shard (`spans`).

    Every shard is looked through once, its pictures decoded for a check; what was found is kept under `index` until
    the file changes. The split is the sample's own, else that in the name of the shard or its folder; where there is
    none, splits are drawn by blocks of ground (`spatial_split` with `seed`), or by the sample's name where places are
    unknown. The domain is the country in lower case, else the folder's name.

    skip_bad: leave out samples with unusable picture or captions, with a warning. Raises DataError for anything else.
    """
    folder = Path(folder).resolve()
    files = shard_files(folder)
    parents = {file.parent for file in files}
    root = folder if all(parent.is_relative_to(folder) for parent in parents) else Path(os.path.commonpath(parents))
    entries: list[Entry] = []
    for file in tqdm(files, desc="Reading shards", unit="shard", disable=len(files) < 20 or not someone_looks()):
        name, given = file.relative_to(root).as_posix(), _split_of(file, folder)
        for found in _indexed(file, index):
            entry = {**found, "image": f"{name}/{found['image']}", "split": found["split"] or given}
            entries.append({**entry, "domain": found["domain"].lower() or folder.name.lower()})
    _name(entries, root)
    blank = [entry["sample_id"] for entry in entries if not entry["split"]]
    if 0 < len(blank) < len(entries):
        raise DataError(f"{len(blank):,} samples of {folder} have no split: {few(blank)}. Say it of all, or of none.")
    if not blank:
        entries = of_split(entries, split, folder)
    entries = check_captions(_readable(entries, folder, skip_bad), folder, skip_bad)
    manifest = Manifest.from_rows([_row(entry) for entry in entries], root)
    if not blank:
        return manifest
    manifest = _drawn(manifest, seed)
    return manifest if split is None else manifest.split(split)


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, sorted. Raises DataError where there is none, or shards.txt names an absent one."""
    if not (folder / LIST).is_file():
        files = sorted(_inside(folder))
    else:
        files = []
        for at, line in enumerate(map(str.strip, read_text(folder / LIST).splitlines()), start=1):
            if not line or line.startswith("#"):
                continue
            if len(line) > LONGEST_NAME or not line.isprintable():  # to look for thousands of "[" takes minutes
                raise DataError(f"{folder / LIST}, line {at:,}, is no path: {line[:20]!r}. Correct that line.")
            found = sorted(
                glob.glob(line if Path(line).is_absolute() else os.path.join(glob.escape(str(folder)), line))
            )
            if not found:
                raise DataError(f"{folder / LIST} names {line}, which does not exist. Correct that line.")
            files += map(Path, found)
    if not files:
        raise DataError(f"There is no .tar or .parquet file in {folder}. Put the shards there, or list them in {LIST}.")
    for file in files:
        if file.is_symlink():  # its pictures' paths would lead through it, out of the folder
            raise DataError(f"{file} is a symbolic link. Copy the file itself (cp -L), or list its place in {LIST}.")
    return list(dict.fromkeys(file.parent.resolve() / file.name for file in files))


def _inside(folder: Path) -> Iterator[Path]:
    places = [folder, *(place for place in folder.iterdir() if place.name.lower() in SPLITS or place.name == "data")]
    for place in places:
        for pattern in ("*.tar", "*.parquet"):
            yield from (path for path in place.glob(pattern) if path.name[0] != "." and path.name not in OTHERS)


def _has_pictures(path: Path) -> bool:
    import pyarrow.parquet

    try:
        return image_column(pyarrow.parquet.read_schema(path)) is not None
    except (ValueError, OSError):
        return False


def _split_of(file: Path, folder: Path) -> str:
    above = file.parent.name if file.parent != folder else ""
    words = re.findall("[a-z]+", f"{file.stem} {above}".lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _indexed(file: Path, index: Path) -> list[Entry]:
    """The samples of a shard; images as names inside it, with what is wrong with them as `problem`."""
    info = file.stat()
    kept = index / f"{content_hash(VERSION, str(file), info.st_size, info.st_mtime_ns)}.json"
    with suppress(OSError, ValueError):
        return parse_json(kept.read_text("utf-8"))
    entries = list(_parquet(file) if file.suffix == ".parquet" else _tar(file))
    if not entries:
        raise DataError(f"{file} holds no picture ({', '.join(sorted(PICTURES))}). Is it a shard?")
    problems = find_bad_images([file / entry["image"] for entry in entries])
    entries = [{**entry, "problem": problems.get(position, "")} for position, entry in enumerate(entries)]
    with suppress(UserError), atomic_path(kept) as temporary:  # a place that cannot be written costs time alone
        temporary.write_text(json.dumps(entries), "utf-8")
    return entries


def _tar(path: Path) -> Iterator[Entry]:
    whole = path.stat().st_size
    group: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse() or JUNK.search(member.name):
                    continue
                if member.offset_data + member.size > whole:
                    raise tarfile.ReadError("it ends within a file")
                place = PurePosixPath(member.name)
                stem, _, kind = place.name.partition(".")
                key = str(place.with_name(stem)) if stem else ""
                if key != group.get("key"):
                    yield from _complete(group, path)
                    group = {"key": key, "facts": {}}
                if f".{kind.lower()}" in PICTURES:  # not mask.png beside jpg
                    group["image"] = part_name("", place.name, member.offset_data, "+", member.size)[1:]
                elif kind.lower() in ("json", "txt", "caption"):
                    stream = tar.extractfile(member) if member.size <= SMALL else None
                    facts = _facts(stream.read() if stream else b"", kind.lower(), f"{member.name} in {path}")
                    group["facts"] = {**facts, **group["facts"]} if kind != "json" else {**group["facts"], **facts}
            _require_end(path, tar.offset)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole, uncompressed tar file ({error}). Fetch it again.") from error
    yield from _complete(group, path)


def _require_end(path: Path, offset: int) -> None:
    """Raise tarfile's error where something follows what it took for the end: damage, or a second archive."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        while block := stream.read(2**20):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"something follows its end at byte {offset:,}")


def _facts(data: bytes, kind: str, where: str) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig")
        facts = parse_json(text) if kind == "json" else {"txt": text}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no {kind} in UTF-8 of at most {SMALL:,} bytes. Correct it.") from error
    if not isinstance(facts, dict):
        raise DataError(f"{where} is no JSON object. Correct it.")
    return facts


def _complete(group: dict[str, Any], path: Path) -> Iterator[Entry]:
    if group.get("image"):
        yield _entry(group["image"], group["key"], group["facts"], f"{group['key']} in {path}")


def _parquet(path: Path) -> Iterator[Entry]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            image = image_column(file.schema_arrow)
            if image is None:
                raise DataError(f"{path} has no column image that holds the pictures' bytes. Is it a shard?")
            known = {*COLUMNS, *TEXTS, *(other for others in SAME.values() for other in others)}
            columns = [name for name in file.schema_arrow.names if name in known and name != image.split(".")[0]]
            named = image.endswith(".bytes") and "path" in [field.name for field in _fields(file, image)]
            columns += [image.replace(".bytes", ".path")] if named else []
            for group in range(file.num_row_groups):
                for row, facts in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                    inside = facts.pop(image.split(".")[0], None) or {}
                    key = PurePosixPath(str(inside.get("path") or f"{path.stem}-{group}-{row}"))
                    where = f"row {row:,} of row group {group:,} of {path}"
                    yield _entry(part_name("", key.name, group, ":", row)[1:], key.stem, facts, where)
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these kinds
        raise DataError(f"{path} is not a whole Parquet file. Fetch it again.") from error


def _fields(file: Any, image: str) -> list[Any]:
    return list(file.schema_arrow.field(image.split(".")[0]).type)


def _entry(image: str, key: str, facts: dict[str, Any], where: str) -> Entry:
    """A row on its way, JSON-able. Raises DataError for a value of the wrong kind."""
    facts = {name: _decoded(value) for name, value in facts.items()}
    facts = {name: next((facts[other] for other in (name, *SAME.get(name, ())) if _known(facts.get(other))), None)
             for name in (*COLUMNS, *TEXTS)}  # fmt: skip
    texts = next((facts[name] for name in TEXTS if _known(facts[name])), [])
    texts = texts if isinstance(texts, list) else [texts]
    numbers = {
        name: number("" if facts[name] is None else str(facts[name]), name, where) for name in ("lon", "lat", "gsd_m")
    }
    if (
        abs(numbers["lat"]) > 90
        or abs(numbers["lon"]) > 180
        or math.isnan(numbers["lat"]) != math.isnan(numbers["lon"])
    ):
        raise DataError(f"lat {numbers['lat']:g}, lon {numbers['lon']:g} in {where} is no place on Earth. Correct it.")
    words = ("description", "domain", "split", "footprint", "source", "licence")
    split = str(facts["split"] or "")
    return {
        "image": image,
        "sample_id": str(key if facts["sample_id"] is None else facts["sample_id"]),
        "captions": [text.get("raw") if isinstance(text, dict) else text for text in texts],
        **{name: str(facts[name] or "") for name in words},
        "split": SPLITS.get(split.lower(), split),
        **{name: _tags(facts[name], where) for name in ("tags", "surrounding_tags")},
        **{name: value for name, value in numbers.items() if not math.isnan(value)},
    }


def _decoded(value: Any) -> Any:
    """Parquet's bytes as text, as some writers leave it."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _known(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def _tags(value: Any, where: str) -> list[str]:
    if isinstance(value, dict):
        value = [f"{key}={inside}" for key, inside in value.items() if inside is not None]
    if not isinstance(value or [], list) or not all(isinstance(tag, str) for tag in value or []):
        raise DataError(f"The tags in {where} are no list of texts. Correct them.")
    return value or []


def _name(entries: list[Entry], root: Path) -> None:
    """Names that occur in several shards, as counted ones do, become distinct by the shard's. DataError for others."""
    names = [entry["sample_id"] for entry in entries]
    if len(set(names)) < len(names):
        for entry in entries:
            shard = entry["image"].partition(".tar/")[0].partition(".parquet/")[0]
            entry["sample_id"] = f"{shard}/{entry['sample_id']}"
        again = [name for name, count in Counter(entry["sample_id"] for entry in entries).items() if count > 1]
        if again:
            raise DataError(f"Shards in {root} hold samples of one name: {few(again)}. Give each its own.")


def _readable(entries: list[Entry], folder: Path, skip_bad: bool) -> list[Entry]:
    bad = [f"{entry['image']} ({entry['problem']})" for entry in entries if entry["problem"]]
    if bad:
        message = f"{len(bad):,} of {len(entries):,} images in {folder} cannot be used: {few(bad)}."
        if not skip_bad or len(bad) == len(entries):
            raise DataError(f"{message} Fetch the shards again, or leave these out with --skip-bad.")
        say(f"Skipped images: {message}")
    return [entry for entry in entries if not entry["problem"]]


def _row(entry: Entry) -> Entry:
    import shapely

    row = {name: value for name, value in entry.items() if name != "problem"}
    try:
        row["footprint"] = shapely.from_wkt(entry["footprint"]) if entry["footprint"] else None
    except shapely.errors.ShapelyError as error:
        raise DataError(f"The footprint of {entry['image']} is no geometry in WKT. Correct it.") from error
    return row


def _drawn(manifest: Manifest, seed: int) -> Manifest:
    if bool(manifest.frame["lon"].notna().to_numpy().all()):
        return spatial_split(manifest, seed=seed)
    say(f"The shards in {manifest.root} name no split: one was drawn by the samples' names. Neighbours may be parted.")
    frame = manifest.frame.copy()
    places = np.array([int(content_hash(seed, name), 16) / 2**64 for name in frame["sample_id"]])
    names = np.array(list(SHARES))
    frame["split"] = names[np.searchsorted(np.cumsum(list(SHARES.values()))[:-1], places, side="right")]
    return Manifest(frame, manifest.root)
