"""Reads UrbanCross's official layout: one folder a country, pictures and their generated descriptions.

    Finland/images.zip                                      or images/
    Finland/image_segments.zip                              or image_segments/<image>/..., optional
    Finland/instructblip_generation_finland_refine.csv      image_name, description
    Finland/train_list.txt, val_list.txt, test_list.txt     one image name a line, optional
    Finland/finetune_list.txt, finetune_val_list.txt, zeroshot_list.txt

The published set has no lists. They are then made once, without leaks, and kept in ucore_splits/.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ucore.archives import open_folder
from ucore.errors import DataError
from ucore.files import atomic_path, content_hash, file_hash, write_json
from ucore.manifest import Manifest, Names, few
from ucore.readers import (
    Entry,
    check_captions,
    clean_name,
    common_root,
    load_table,
    name_samples,
    of_split,
    read_text,
    say,
    usable,
)
from ucore.splits import FRACTIONS, spatial_split

CAPTIONS = re.compile(r"instructblip_generation_(.+?)(_refine)?\.csv", re.IGNORECASE)
# The split that the images of a list belong to. The first three are the paper's protocol for a target country.
LISTS = {
    "finetune_list.txt": "finetune",
    "finetune_val_list.txt": "val",
    "zeroshot_list.txt": "test",
    "train_list.txt": "train",
    "val_list.txt": "val",
    "test_list.txt": "test",
}
MADE = "ucore_splits"  # folder of lists made here
SPARE = Path("runs/splits")  # where they go when the dataset cannot be written
FORMULA = "=+-@\t\r"  # what a spreadsheet would run begins with one of these
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2")


def is_urbancross(folder: Path) -> bool:
    """Whether `folder` is a country of this layout, or holds some."""
    return bool(countries(folder))


def countries(folder: Path) -> dict[str, Path]:
    """Country in lower case -> its caption file, in `folder` itself or else in its subfolders."""
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        # The refined file comes after the plain one, and wins.
        files = [path for place in places for path in sorted(place.glob("*.csv"), key=lambda path: len(path.name))]
        found = {match[1].lower(): path for path in files if (match := CAPTIONS.fullmatch(path.name))}
        if found:
            return found
    return {}


def read_urbancross(
    folder: str | Path,
    split: Names | None = None,
    skip_bad: bool = False,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    keep: bool = True,
) -> Manifest:
    """Read all countries in `folder`, or the one that `folder` is; the domain is the country in lower case.

    Archives are unpacked once, beside themselves or under runs/unpacked. Splits come from the lists where there are
    any; images on none of them get the split "unlisted", those on train_list and finetune_list stay "train".
    Without lists, images are split 70/10/20 by `seed` so that neither identical pictures nor identical descriptions
    stand on two sides. The lists are kept in `out`/<country>, in the country's folder, or under runs/splits, and
    found there the next time; not so with `keep=False`.

    skip_bad: leave out images that are absent, unreadable or not described, with a warning. Pictures that the
    caption file does not name are no pairs; a warning counts them. Raises DataError for anything else unusable, and
    for lists that put one image on two sides.
    """
    folder = Path(folder)
    found = countries(folder)
    if not found:
        raise DataError(f"No instructblip_generation_COUNTRY_refine.csv in {folder}. Put the countries' folders there.")
    entries: list[Entry] = []
    made = []
    for country, index in found.items():
        rows = _pairs(country, index)
        bases = [*([Path(out) / country] if out else []), index.parent, SPARE / _key(index) / country]
        splits = _read_lists(bases, rows, index)
        if splits is None:
            place = next(base for base in bases if _writable(base)) / MADE
            rows = usable(check_captions(rows, index, skip_bad), rows[0]["folder"], skip_bad)
            splits = _drawn(rows, seed)
            if keep:
                _keep_lists(splits, place, seed)
            made.append(str(place))
        entries += [{**row, "split": splits[row["image"]]} for row in rows]
    if made:
        say(
            f"There were no split lists: images were split 70/10/20 (seed {seed}), identical pictures or descriptions "
            f"on one side; the lists {'are' if keep else 'will be'} kept in {few(made)}."
        )
    root = common_root(entries)
    name_samples(entries, folder)
    entries = check_captions(of_split(entries, split, folder), folder, skip_bad)
    return Manifest.from_rows(usable(entries, root, skip_bad), root)


def segment_files(country: str | Path) -> dict[str, list[Path]]:
    """Image name without suffix -> its segments' pictures in order; empty where the folder has no image_segments."""
    folder = open_folder(country, "image_segments")
    segments: dict[str, list[Path]] = {}
    for name in _pictures(folder) if folder else ():
        # The published folders are named after the images; a flat one numbers the names: image_3.jpg.
        stem = PurePosixPath(name).parent.name or PurePosixPath(name).stem.rpartition("_")[0]
        segments.setdefault(stem, []).append(Path(folder or "", name))
    return segments


def write_urbancross(manifest: Manifest, folder: str | Path) -> list[Path]:
    """Descriptions as UrbanCross's own code reads them; `folder` is replaced. Returns the files.

    FOLDER/<Country>/instructblip_generation_<country>_refine.csv, with the columns image_name and description, of every
    domain with descriptions; put the country's images beside it. Cells that a spreadsheet would run as a formula are
    defused: a name gets "./" before it, which paths allow, a text loses the sign.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    columns = (manifest.frame[name] for name in ("domain", "image", "description"))
    for domain, image, text in zip(*columns, strict=True):
        text = " ".join(text.split()).lstrip(FORMULA + " ")
        if text:
            groups.setdefault(re.sub(r"[^\w-]+", "-", domain).strip("-").lower() or "unknown", []).append((image, text))
    folder = Path(folder)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        for country, rows in sorted(groups.items()):
            short = Counter(PurePosixPath(image).name for image, _ in rows)
            path = temporary / _csv_of(country)
            path.parent.mkdir()
            with open(path, "w", encoding="utf-8", newline="") as stream:
                table = csv.writer(stream)
                table.writerow(("image_name", "description"))
                for image, text in rows:
                    name = PurePosixPath(image).name
                    name = name if short[name] == 1 else image
                    table.writerow((f"./{name}" if name.startswith(tuple(FORMULA)) else name, text))
    return [folder / _csv_of(country) for country in sorted(groups)]


def _csv_of(country: str) -> Path:
    return Path(country.title()) / f"instructblip_generation_{country}_refine.csv"


def _pairs(country: str, index: Path) -> list[Entry]:
    """One entry a described image, its name as it lies in the image folder. Warns of what does not match."""
    folder = open_folder(index.parent, "images")
    if folder is None:
        raise DataError(f"There is neither images/ nor images.zip in {index.parent}. Put the country's images there.")
    there = _pictures(folder)
    known = {key: name for of in (_stem, _name, str) for name in there if (key := of(name))}
    entries: dict[str, Entry] = {}
    repeated = []
    for row in load_table(index, ("image_name", "description")):
        name = clean_name(row["image_name"], str(index))
        name = next((known[key] for key in (name, _name(name), _stem(name)) if key in known), name)
        entry = entries.setdefault(
            name, {"image": name, "captions": [], "domain": country, "source": index.name, "folder": folder}
        )
        if entry["captions"]:
            repeated.append(name)
        if row["description"] not in entry["captions"]:
            entry["captions"].append(row["description"])
    if repeated:
        say(f"{index} describes {len(repeated):,} image(s) more than once: {few(repeated)}; all texts were kept.")
    lonely = [name for name in there if name not in entries]
    if lonely:
        say(f"{len(lonely):,} of {len(there):,} pictures in {folder} are not in {index.name}: {few(lonely)}.")
    return list(entries.values())


def _pictures(folder: Path) -> list[str]:
    """Names, from `folder`, of all pictures in it and below, sorted."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        inside = Path(place).relative_to(folder)
        names += [(inside / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(names)


def _name(name: str) -> str:
    return PurePosixPath(name).name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _read_lists(bases: list[Path], rows: list[Entry], index: Path) -> dict[str, str] | None:
    """Image -> split from the first place that has lists; None: nowhere. Raises DataError for lists that leak."""
    places = [place for base in bases for place in (base, base / MADE)]
    place = next((place for place in places if any((place / name).is_file() for name in LISTS)), None)
    if place is None:
        return None
    images = {key: row["image"] for of in (_stem, _name) for row in rows for key in [of(row["image"])]}
    on: dict[str, dict[str, str]] = {}  # image -> split -> list
    strangers = []
    for name, split in LISTS.items():
        for line in _lines(place / name):
            image = images.get(_name(line)) or images.get(_stem(line))
            if image is None:
                strangers.append(f"{line} ({name})")
            else:
                on.setdefault(image, {})[split] = name
    leaks = [
        f"{image} ({' and '.join(sorted(of.values()))})"
        for image, of in on.items()
        if len(of) > 1 and set(of) != {"train", "finetune"}
    ]
    if leaks:
        raise DataError(
            f"The lists in {place} put {len(leaks):,} image(s) on two sides: {few(leaks)}. What is trained on must not "
            "be tested on: take them off one list, or move all lists away and ucore makes clean ones."
        )
    if strangers:
        say(f"{len(strangers):,} name(s) on the lists in {place} are not in {index.name}: {few(strangers)}.")
    both = [image for image, of in on.items() if len(of) > 1]
    if both:
        say(f"{len(both):,} image(s) are on train_list.txt and finetune_list.txt in {place}; they count as train.")
    unlisted = [row["image"] for row in rows if row["image"] not in on]
    if unlisted:
        say(f"{len(unlisted):,} image(s) of {index.name} are on no list in {place}: {few(unlisted)}; split 'unlisted'.")
    splits = {image: "train" if "train" in of else next(iter(of)) for image, of in on.items()}
    return {row["image"]: splits.get(row["image"], "unlisted") for row in rows}


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from (line.strip() for line in read_text(path).split("\n") if line.strip())


def _drawn(rows: list[Entry], seed: int) -> dict[str, str]:
    """Image -> split, without leaks: see `spatial_split` for samples without a place."""
    blank = [{**row, "sample_id": row["image"], "split": ""} for row in rows]
    frame = spatial_split(Manifest.from_rows(blank, rows[0]["folder"]), seed=seed).frame
    return dict(zip(frame["image"], frame["split"], strict=True))


def _keep_lists(splits: dict[str, str], place: Path, seed: int) -> None:
    """Write the lists into the folder `place`, all or none."""
    with atomic_path(place) as temporary:
        temporary.mkdir()
        for split in FRACTIONS:
            names = [image for image, of in splits.items() if of == split]
            (temporary / f"{split}_list.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
        write_json(temporary / "about.json", {"made_by": "ucore", "seed": seed, "fractions": FRACTIONS})


def _key(index: Path) -> str:
    return content_hash(file_hash(index))


def _writable(base: Path) -> bool:
    place = base
    while not place.exists():
        place = place.parent
    return os.access(place, os.W_OK | os.X_OK)
