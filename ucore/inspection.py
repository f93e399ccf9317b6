"""Says what a folder or file is, what is wrong with it, and which command comes next.

    print(inspect_path("data").text())

It reports what it finds and never raises for it, and it writes nothing: no archive is unpacked here.
"""

import dataclasses
import math
import shlex
import warnings
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ucore.archives import check_members, open_zip, read_stamp
from ucore.config import did_you_mean
from ucore.countries import COUNTRIES
from ucore.data import LAYOUTS, MANIFEST_FILE, SUBFOLDERS, Layout, find_layout
from ucore.errors import UserError
from ucore.manifest import Manifest, few, statistics
from ucore.osm import KEYS, OSM_SUFFIXES, read_osm
from ucore.splits import BUFFER, leaks
from ucore.urbancross import SUFFIXES, countries, read_urbancross, segment_files

OSM = (*OSM_SUFFIXES, ".geojson")
MOST_FILES = 100_000  # looked at in a folder that nobody knows
MOST_COMPARED = 2_000  # images with each other, a few seconds
BIG_OSM = 2 * 10**8  # bytes; a larger extract is not read whole just to count


@dataclass
class Inspection:
    """What `inspect_path` found. layout: a name of `data.LAYOUTS`, or zip, osm, imagery, pictures, unknown, missing.

    usable: whether the next step will work as it is. counts: figures by name, JSON-able. problems: what is wrong.
    notes: what is worth knowing. next_steps: commands.
    """

    path: str
    layout: str
    usable: bool = True
    counts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, JSON-able."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """For a terminal; whatever could move its cursor is left out."""
        lines = [f"{self.path}: {DESCRIPTIONS.get(self.layout, self.layout)}"]
        lines += [f"  {name.replace('_', ' ')}: {_shown(value)}" for name, value in self.counts.items() if value != {}]
        lines += [f"Wrong: {problem}" for problem in self.problems]
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Next: {step}" for step in self.next_steps]
        return "\n".join("".join(sign for sign in line if sign.isprintable()) for line in lines)


OWNERS = {"urbancross": "UrbanCross", "skyscript": "SkyScript", "rsicd": "RSICD"}
DESCRIPTIONS = {
    **{layout: f"a dataset in {owner}'s layout" for layout, owner in OWNERS.items()},
    "ucore": "a dataset that ucore wrote",
    "geotiles": "a dataset of geo-tagged tiles",
    "shards": "a dataset in shards",
    "zip": "a zip archive",
    "osm": "an OpenStreetMap extract",
    "imagery": "imagery to cut tiles from",
    "pictures": "pictures without captions",
    "unknown": "nothing that ucore knows",
    "missing": "does not exist",
}


def inspect_path(path: str | Path) -> Inspection:
    """Look at a dataset folder of any layout, a zip archive, an OSM extract, imagery, or anything else."""
    path = Path(path).expanduser()
    if not path.exists():
        near = did_you_mean(path.name, [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else [])
        steps = ["ucore data help", "ucore simulate --countries finland,germany,spain --out data/simulated"]
        return Inspection(str(path), "missing", False, problems=[f"There is no {path}{near or '.'}"], next_steps=steps)
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except PermissionError as error:
        problem = f"{error.filename} is not readable with your permissions."
        return Inspection(str(path), "unknown", False, problems=[problem], next_steps=[f"ls -l {_quoted(path)}"])
    except UserError as error:
        again = [f"ucore data inspect {_quoted(path)}"]
        return Inspection(str(path), _kind(path), False, problems=[str(error)], next_steps=again)


def _kind(path: Path) -> str:
    """The layout of something that could not be read, from its name alone."""
    name = path.name.lower()
    kinds = {"zip": (".zip",), "osm": OSM, "imagery": (".tif", ".tiff"), "ucore": (".parquet",)}
    return next((kind for kind, endings in kinds.items() if name.endswith(endings)), "unknown")


def _file(path: Path) -> Inspection:
    kind = _kind(path)
    if kind == "zip":
        return _zip(path)
    if kind == "osm":
        return _osm(path)
    if kind == "imagery":
        return _imagery(path)
    if kind == "ucore":
        if path.name == MANIFEST_FILE:
            return _folder(path.parent)
        return _describe(Inspection(str(path), "ucore"), Manifest.load(path), path.parent)
    found = Inspection(str(path), "unknown", False, problems=[f"{path.name} is not a dataset by itself."])
    found.next_steps = [f"ucore data inspect {_quoted(path.parent)}"]
    return found


def _folder(path: Path) -> Inspection:
    found = find_layout(path)
    if found is not None:
        return _dataset(path, *found)
    names = sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
    extracts = [name for name in names if name.lower().endswith(OSM)]
    if extracts:
        result = Inspection(str(path), "osm", counts={"extracts": extracts})
        result.next_steps = [f"ucore data inspect {_quoted(path / name)}" for name in extracts]
        return result
    if any(item.name.lower().endswith((".tif", ".tiff")) for item in path.iterdir()) or _zooms(path):
        return _imagery(path)
    pictures = sum(item.name.lower().endswith(SUFFIXES) for item in islice(path.rglob("*"), MOST_FILES))
    if pictures:
        problem = f"{path} holds {pictures:,} pictures and no captions in a form that ucore knows."
        result = Inspection(str(path), "pictures", False, {"pictures": pictures}, [problem])
    else:
        problem = f"{path} holds {few(names) or 'nothing'}."
        result = Inspection(str(path), "unknown", False, problems=[problem])
    known = "; ".join(f"{layout.name}: {layout.files}" for layout in LAYOUTS)
    result.problems.append(f"A dataset has one of these layouts: {known}.")
    result.next_steps = ["ucore data help"]
    return result


def _dataset(path: Path, layout: Layout, place: Path) -> Inspection:
    result = Inspection(str(place), layout.name)
    others = [name for name in SUBFOLDERS[1:] if (path / name) != place and (path / name).is_dir()]
    if others and place.parent == path:
        result.notes.append(
            f"{path} also holds {few(others)}; name a folder itself to use another set than {place.name}."
        )
    waiting = _waiting_archives(place)
    if waiting:
        return _packed(result, waiting, place)
    settings: dict[str, Any] = {"keep": False} if layout.read is read_urbancross else {}
    manifest, notes, problem = _try(layout, place, settings)
    if manifest is None and problem:
        result.usable = False
        result.problems.append(problem)
        manifest, notes, still = _try(layout, place, {**settings, "skip_bad": True})
        if manifest is None:
            result.problems += [still] if still != problem else []
            result.next_steps = [f"ucore data inspect {_quoted(place)}", f"ucore data help {layout.name}"]
            return result
    result.notes += notes
    if manifest is None:
        return result
    if layout.read is read_urbancross:
        result.counts["segments"] = {
            country: sum(len(of) for of in segment_files(index.parent).values())
            for country, index in countries(place).items()
            if _is_unpacked(index.parent / "image_segments")
        }
    return _describe(result, manifest, place)


def _try(layout: Layout, place: Path, settings: dict[str, Any]) -> tuple[Manifest | None, list[str], str]:
    """(manifest or None, warnings, the sentence that refused it)."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            manifest, problem = layout.read(place, **settings), ""
        except UserError as error:
            manifest, problem = None, str(error)
    return manifest, [str(item.message) for item in heard if item.category is UserWarning], problem


def _waiting_archives(place: Path) -> list[Path]:
    """Archives of images, here and in the folders of countries, whose folder is not there yet."""
    archives = sorted(path for pattern in ("images*.zip", "*/images*.zip") for path in place.glob(pattern))
    return [path for path in archives if not _is_unpacked(path.with_suffix(""))]


def _is_unpacked(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and read_stamp(folder).get("complete", True)


def _packed(result: Inspection, archives: list[Path], place: Path) -> Inspection:
    for archive in archives:
        try:
            part = _zip(archive)
        except UserError as error:
            part = Inspection(str(archive), "zip", False, problems=[str(error)])
        result.counts[str(archive.relative_to(place))] = part.counts
        result.problems += part.problems
        result.usable = result.usable and part.usable
    result.notes.append(
        "The archives are unpacked, once, when the dataset is first read; only then is every image seen."
    )
    result.next_steps = _training(place, "") if result.usable else [f"ucore data inspect {_quoted(place)}"]
    return result


def _zip(path: Path) -> Inspection:
    with open_zip(path) as content:
        members = check_members(content, path)
    pictures = [name for _, name in members if name.lower().endswith(SUFFIXES)]
    counts = {
        "files": len(members),
        "pictures": len(pictures),
        "unpacked_gb": round(sum(item.file_size for item, _ in members) / 1e9, 3),
        "first": [name for _, name in members[:3]],
    }
    result = Inspection(str(path), "zip", counts=counts)
    if countries(path.parent):
        result.notes.append("It belongs to the dataset around it, and is unpacked when that is read.")
        result.next_steps = [f"ucore data inspect {_quoted(path.parent)}"]
    else:
        target = path.with_suffix("")
        unpack = f"python -m zipfile -e {_quoted(path)} {_quoted(target)}"
        result.next_steps = [f"{unpack} && ucore data inspect {_quoted(target)}"]
    return result


def _osm(path: Path) -> Inspection:
    result = Inspection(str(path), "osm", counts={"bytes": path.stat().st_size})
    if path.stat().st_size > BIG_OSM:
        result.notes.append("It is too large to be counted in a moment; cut out the part you need with --bounds.")
    else:
        features = read_osm(path)
        keys = Counter(next((key for key in KEYS if key in tags), "other") for tags in features["tags"])
        extent = [round(float(value), 5) for value in features.total_bounds]
        result.counts.update(objects=len(features), kinds=dict(keys.most_common(8)), extent=extent)
    style = next((name for name in COUNTRIES if name in path.name.lower()), "")
    if not style:
        result.notes.append(f"Choose the style to draw it in with --country: {', '.join(COUNTRIES)}.")
    style, out = style or next(iter(COUNTRIES)), _quoted(f"data/{path.name.partition('.')[0]}")
    result.next_steps = [f"ucore simulate --osm {_quoted(path)} --country {style} --tiles 200 --out {out}"]
    return result


def _imagery(path: Path) -> Inspection:
    from ucore.imagery import open_imagery

    zooms = _zooms(path) if path.is_dir() else []
    imagery = open_imagery(path, zoom=zooms[-1] if zooms else None)
    west, south, east, north = bounds = [round(float(value), 5) for value in imagery.bounds]
    gsd = imagery.native_gsd_m
    result = Inspection(str(path), "imagery", counts={"bounds": bounds, "gsd_m": round(gsd, 4)})
    if zooms:
        result.counts["zooms"] = zooms
    at_equator = 156_543.034 * math.cos(math.radians((south + north) / 2))
    zoom = zooms[-1] if zooms else min(max(round(math.log2(at_equator / gsd)), 0), 22)
    result.next_steps = [
        f"ucore data build --imagery {_quoted(path)} --osm FILE.osm.pbf --bounds {west},{south},{east},{north} "
        f"--zoom {zoom} --country NAME --out data/NAME"
    ]
    return result


def _zooms(path: Path) -> list[int]:
    """Zoom levels of a folder of z/x/y tiles."""
    levels = [item for item in path.iterdir() if item.is_dir() and item.name.isdecimal()]
    return sorted(int(item.name) for item in levels if any(x.name.isdecimal() and x.is_dir() for x in item.iterdir()))


def _describe(result: Inspection, manifest: Manifest, place: Path) -> Inspection:
    """The statistics of a manifest, and what they say."""
    summary = manifest.summary()
    result.counts |= {**statistics(manifest), "caption_words": summary["caption_words"]}
    if summary["note"]:
        result.notes.append(summary["note"])
    middles = [of[1] for of in result.counts["gsd_m"].values()]
    if len(middles) > 1 and max(middles) > 1.2 * min(middles):
        result.notes.append(
            "The size of a pixel differs between countries: what looks like a gap between countries is also one "
            "between cameras."
        )
    if manifest.simulated:
        result.notes.append("The samples are simulated: call every number measured on them simulated.")
    names = set(summary["splits"])
    missing = [name for name in ("train", "val", "test") if name not in names]
    if missing:
        result.notes.append(f"There is no split {' or '.join(missing)}; there: {few(sorted(names))}.")
    if BUFFER in names:
        result.notes.append(f"Samples in the split {BUFFER} lie too close to those of another split; nobody uses them.")
    result.notes += leaks(manifest, images=len(manifest) <= MOST_COMPARED)
    if len(manifest) > MOST_COMPARED:
        result.notes.append("Images that look alike were not searched for: there are many (ucore.splits.split_report).")
    if not result.problems:
        steps = [f"ucore run 01 -p dataset={_quoted(place)}"] if result.counts["with_place"] else []
        result.next_steps = [*(_training(place, "") if {"train", "val"} <= names else []), *steps]
    elif {"train", "val"} <= names:
        result.next_steps = _training(place, " --skip-bad")
    return result


def _training(place: Path, more: str) -> list[str]:
    name = place.resolve().name
    return [f"ucore train --data {_quoted(place)} --scale tiny --out {_quoted(f'runs/{name}')}{more}"]


def _quoted(path: str | Path) -> str:
    return shlex.quote(str(path))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        parts = [
            f"{key} ({_shown(of)})" if isinstance(of, dict) else f"{key} {_shown(of)}" for key, of in value.items()
        ]
        return ", ".join(parts) or "none"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(of) for of in value) + "]"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
