"""What the readers of datasets share: files that may be broken, checks of captions and images, names of samples.

An *entry* is a dict on its way to become a row of the `Manifest`: image (name inside the image folder), captions
(a list, unchecked), split, domain and whatever else the layout knows.
"""

import csv
import io
import json
import math
import os
import string
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ucore.checked import find_bad_files
from ucore.config import did_you_mean
from ucore.errors import DataError
from ucore.files import safe_join
from ucore.manifest import Names, few, known_names

Entry = dict[str, Any]

LONGEST_PART, LONGEST_NAME = 255, 3000  # bytes of a file's name and of its path; the folder has a path, too


def caption_groups(captions: Sequence[str]) -> np.ndarray:
    """int64 (T,): equal ids mark equal captions up to case, spacing and trailing punctuation.

    Ids count up in order of first appearance.
    """
    ids: dict[str, int] = {}
    keys = (" ".join(text.lower().split()).rstrip(string.punctuation + " ") for text in captions)
    return np.array([ids.setdefault(key, len(ids)) for key in keys], dtype=np.int64)


def say(text: str) -> None:
    """Warn of something that does not stop the reading, at the line outside ucore that asked for it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ucore."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def read_text(path: Path, what: str = "text") -> str:
    """The whole file, UTF-8 with or without byte order mark. Raises DataError for other bytes."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {what} in UTF-8. Save it as UTF-8, or fetch the file again.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Check its permissions.") from error


def load_json(path: Path) -> Any:
    """What a JSON file holds. Raises DataError with line and column of a mistake."""
    text = read_text(path, "JSON text")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(f"{path} is not valid JSON ({where}). Correct it, or fetch the file again.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON text in UTF-8. Fetch the file again.") from error


def load_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a JSON Lines file that is not blank."""
    items = []
    # Only real line ends count: str.splitlines would also cut at U+2028 inside a caption.
    for number, line in enumerate(read_text(path, "JSON text").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"Line {number} of {path} is not valid JSON. Correct or remove that line.") from error
        if not isinstance(item, dict):
            raise DataError(f"Line {number} of {path} is not a JSON object. Correct or remove that line.")
        items.append((number, item))
    return items


def load_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a heading, as text, keyed by heading in lower case; "" where a cell is empty.

    needed: columns that must be there. Commas are expected; semicolons and tabs are read with a warning. Raises
    DataError, with the line, for wrong columns, quotation marks, or a row of another length than the heading.
    """
    csv.field_size_limit(2**31 - 1)  # polygons make long cells
    text = read_text(path, "CSV text")
    separator, header = _header(text, needed, path)
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    rows = []
    try:
        next(reader)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"Line {reader.line_num:,} of {path} has {len(cells)} cells, the heading {len(header)}. Put cells "
                    "that hold the separator in quotation marks."
                )
            rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path} has a quotation mark out of place at or before line {reader.line_num:,} ({error}). Double the "
            "marks inside a quoted cell, and close every quoted cell."
        ) from error
    if not rows:
        raise DataError(f"{path} has a heading and no rows. Fetch the file again.")
    return rows


def header_of(path: Path) -> set[str]:
    """Headings of a CSV file in lower case, whatever its separator; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as stream:  # another encoding: its reader says so
            first = stream.readline(10_000)
    except OSError:
        return set()
    return {cell.strip().strip('"').lower() for separator in ",;\t" for cell in first.split(separator)}


def _header(text: str, needed: Sequence[str], path: Path) -> tuple[str, list[str]]:
    """(separator, headings) with which all `needed` columns are found."""
    first, seen = text.split("\n", 1)[0], list[str]()
    for separator, called in ((",", ""), (";", "semicolons"), ("\t", "tabs")):
        try:
            cells = next(csv.reader([first], delimiter=separator), [])
        except csv.Error:
            continue
        header = [cell.strip().lower() for cell in cells]
        seen = header if len(header) > len(seen) else seen
        if set(needed) <= set(header):
            twice = [name for name, count in Counter(header).items() if name and count > 1]
            if twice:
                raise DataError(f"{path} has the column {few(twice)} more than once. Keep one of each.")
            if called:
                say(f"{path} is separated by {called}, not commas; it was read that way.")
            return separator, header
    if not seen:
        raise DataError(f"{path} is empty. Fetch the file again.")
    absent = [name for name in needed if name not in seen]
    hint = did_you_mean(absent[0], seen)
    raise DataError(
        f"{path} lacks the column {few(absent)}. It has: {few(seen, 12)}{hint or '.'} Correct the heading in its first "
        "line."
    )


def number(cell: str, column: str, where: str) -> float:
    """A cell as a float; NaN where it is empty. A decimal comma is understood. Raises DataError otherwise."""
    if not cell:
        return math.nan
    try:
        value = float(cell.replace(",", ".") if "." not in cell else cell)
    except ValueError:
        value = math.inf
    if math.isinf(value) or "_" in cell:
        raise DataError(f"{column} is {cell[:40]!r} in {where}; it must be a number. Correct that cell.")
    return value


def clean_name(name: str, where: str) -> str:
    """A file name as the index has it, with "/" and without "./"; DataError for one that no file can have."""
    if not name or not name.isprintable():
        raise DataError(f"The file name {name[:80]!r} in {where} is empty or cannot be printed. Correct it.")
    path = PurePosixPath(name.replace("\\", "/"))
    part, whole = max(len(part.encode()) for part in path.parts or [""]), len(str(path).encode())
    if part > LONGEST_PART or whole > LONGEST_NAME:
        raise DataError(f"The file name {name[:40]!r}... in {where} is longer than a file's may be. Correct it.")
    return str(path)


def name_samples(entries: list[Entry], index: Path) -> None:
    """Give every entry its sample_id: the file's name without suffix where that leaves all distinct."""
    twice = [name for name, count in Counter(entry["image"] for entry in entries).items() if count > 1]
    if twice:
        raise DataError(f"{index} lists {len(twice):,} file name(s) more than once: {few(twice)}. Keep one entry each.")
    stems = [PurePosixPath(entry["image"]).stem for entry in entries]
    names = stems if len(set(stems)) == len(stems) else [entry["image"] for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        entry["sample_id"] = name


def check_captions(entries: list[Entry], index: Path, skip_bad: bool = False) -> list[Entry]:
    """The entries, captions stripped; DataError for unusable captions, or without these entries if `skip_bad`."""
    good, bad = [], []
    for entry in entries:
        problem = "" if entry["captions"] else "no captions"
        for position, caption in enumerate(entry["captions"], start=1):
            problem = problem or _caption_problem(caption, position)
        if problem:
            bad.append(f"{entry['image']} ({problem})")
        else:
            good.append({**entry, "captions": [caption.strip() for caption in entry["captions"]]})
    if bad:
        message = f"{len(bad):,} image(s) in {index} lack usable captions: {few(bad)}."
        if not skip_bad or not good:
            raise DataError(f"{message} Correct these entries.")
        say(f"Skipped: {message}")
    return good


def _caption_problem(caption: Any, position: int) -> str:
    if not isinstance(caption, str):
        return f"caption {position} is not text"
    if not caption.strip():
        return f"caption {position} is blank"
    # JSON permits lone surrogates, which no tokenizer and no file takes.
    broken = any("\ud800" <= sign <= "\udfff" for sign in caption)
    return f"caption {position} is not valid Unicode" if broken else ""


def of_split(entries: list[Entry], split: Names | None, where: Path) -> list[Entry]:
    """The entries of the asked split(s). Raises DataError listing the splits there are."""
    if split is None:
        return entries
    wanted = known_names(split, Counter(entry["split"] for entry in entries), "split", where)
    return [entry for entry in entries if entry["split"] in wanted]


def usable(entries: list[Entry], folder: Path, skip_bad: bool) -> list[Entry]:
    """The entries whose image can be decoded: all of them, or DataError without `skip_bad`."""
    problems = find_bad_files([safe_join(folder, entry["image"]) for entry in entries])
    if not problems:
        return entries
    # What is left out is named whole, up to a screenful: nothing else tells which images a result lacks.
    most = 40 if skip_bad else 3
    named = few([f"{entries[position]['image']} ({problem})" for position, problem in problems.items()], most)
    count = f"{len(problems):,} of {len(entries):,} images in {folder} cannot be used: {named}."
    if not skip_bad:
        raise DataError(f"{count} Restore them, leave them out with --skip-bad, or choose one --split that is there.")
    if len(problems) == len(entries):
        raise DataError(f"{count} None is left; put the dataset's images there.")
    say(f"Skipped images: {count}")
    return [entry for position, entry in enumerate(entries) if position not in problems]


def image_folder(folder: Path, names: list[str]) -> Path:
    """Where the images lie: `folder`/images, `folder`/imgs, or `folder` itself."""
    places = [folder / "images", folder / "imgs", folder]
    for place in places:
        if any(os.path.exists(place / name) for name in names):
            return place
    return next(place for place in places if place.is_dir())


def common_root(entries: list[Entry]) -> Path:
    """The folder above the `folder` of all entries; their images, names inside it, become names from there.

    Raises DataError for a name that leaves its folder.
    """
    root = Path(os.path.commonpath({folder.resolve() for folder in {entry["folder"] for entry in entries}}))
    for entry in entries:
        entry["image"] = safe_join(entry.pop("folder"), entry["image"]).relative_to(root).as_posix()
    return root
