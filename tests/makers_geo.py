"""Tiny geographic datasets: UrbanCross's, SkyScript's and the geo-tagged tiles' layouts, and zip archives."""

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, size: int = 16) -> Path:
    """A PNG of noise: the same for the same seed, else different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], separator: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Text lines, or objects as JSON Lines."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def zip_folder(folder: Path, archive: Path) -> Path:
    """All files of `folder`, under its name, in an archive."""
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(folder.rglob("*")):
            content.write(path, path.relative_to(folder.parent))
    return archive


def make_country(root: Path, country: str = "Finland", n: int = 20) -> Path:
    """A country of UrbanCross's layout with images 0.png, ...; the last two share a picture, 0 and 1 a description."""
    folder = root / country
    for number in range(n):
        picture(folder / "images" / f"{country[0]}{number}.png", seed=min(number, n - 2))
    texts = [f"scene {max(number, 1)} of {country} , seen from above ." for number in range(n)]
    rows = [{"image_name": f"{country[0]}{k}.png", "description": text} for k, text in enumerate(texts)]
    write_csv(folder / f"instructblip_generation_{country.lower()}_refine.csv", rows)
    return folder


def make_skyscript(root: Path, per_split: int = 3) -> Path:
    """Three CSV files, images2/ and metadata.jsonl; the imagery is Finland's, Spain's and Sentinel's in turn."""
    meta = []
    for start, split in enumerate(("train", "val", "test")):
        rows = []
        for number in range(per_split):
            code = ("FI", "ES", "S2")[number % 3]
            name = f"images2/a{start}{number}_{code}_19.png"
            picture(root / name, seed=10 * start + number)
            rows.append({"filepath": name, "title": f"road {number}", "title_multi_objects": f"road {number} , tree"})
            west, south = 25 + 0.01 * number, 60 + 0.01 * start
            meta.append(
                {
                    "filepath": name,
                    "box": [west, south, west + 0.002, south + 0.001],
                    "center_tags": {"highway": "residential"},
                    "surrounding_tags": [{"natural": "tree"}, {"natural": "tree"}, {"building": "house"}],
                }
            )
        write_csv(root / f"SkyScript_{split}_5K_filtered.csv", rows)
    write_lines(root / "metadata.jsonl", meta)
    return root


def make_geotiles(root: Path, side: int = 6, country: str = "finland", columns: Iterable[str] = ()) -> Path:
    """`side` x `side` web-map tiles of zoom 17 around Helsinki with two captions each; metadata.csv has the file,
    the country and `columns` of lat, lon, west, south, east, north, x, y, z, gsd_m."""
    import mercantile

    corner = mercantile.tile(24.94, 60.17, 17)
    rows, lines = [], []
    for number in range(side * side):
        x, y = corner.x + number % side, corner.y + number // side
        name = f"{country}/images/{number:03d}.png"
        picture(root / name, seed=number)
        box = mercantile.bounds(x, y, 17)
        middle = {"lat": (box.south + box.north) / 2, "lon": (box.west + box.east) / 2, "gsd_m": 2.4}
        every = {**middle, **box._asdict(), "x": x, "y": y, "z": 17}
        rows.append({"file": name, "country": country, **{column: every[column] for column in columns}})
        captions = [f"tile {number} , first .", f"tile {number} , second ."]
        lines.append({"file": name, "captions": captions, "description": f"long {number}", "tags": ["building=house"]})
    write_csv(root / "metadata.csv", rows)
    write_lines(root / "captions.jsonl", lines)
    return root
