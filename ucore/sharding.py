"""Writes a dataset of any layout as WebDataset tar files, which `shards` reads back."""

import io
import json
import math
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from ucore.errors import ConfigError, DataError, UserError
from ucore.files import atomic_path, require_writable
from ucore.manifest import COLUMNS, Manifest, few
from ucore.shards import PICTURES
from ucore.spans import part_bytes


def write_shards(manifest: Manifest, out: str | Path, images: int = 1000) -> list[Path]:
    """Write tar files SPLIT-NUMBER.tar of at most `images` images each, in the manifest's order; `read_shards` gives
    the same rows back. A shard is whole or absent.

    Raises UserError where `out` cannot be written, has shards or holds the dataset, DataError for an image that cannot
    be read.
    """
    out = Path(out)
    if images < 1:
        raise ConfigError(f"images is {images}; a shard holds 1 or more")
    if manifest.root.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} holds the dataset itself. Choose another --out, or the shards would be taken for it.")
    require_writable(out)
    if out.is_dir() and (old := sorted(path.name for path in out.glob("*.tar"))):
        raise UserError(
            f"{out} holds shards already ({few(old)}), which would mix with the new ones. Choose another --out."
        )
    written: list[Path] = []
    for split, rows in manifest.frame.groupby("split", sort=True).indices.items():
        name = re.sub(r"[^A-Za-z0-9]+", "_", str(split))
        for number, part in enumerate(np.split(rows, range(images, len(rows), images))):
            written.append(out / f"{name}-{number:05d}.tar")
            _write_shard(manifest, part, written[-1])
    return written


def _write_shard(manifest: Manifest, rows: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
        for row in rows.tolist():
            facts = {name: _plain(manifest.frame[name].iloc[row]) for name in COLUMNS if name != "image"}
            source = manifest.image_path(row)
            try:
                data = part_bytes(source)
                data = source.read_bytes() if data is None else data
            except OSError as error:
                raise DataError(
                    f"Cannot read the image {source} ({error.strerror}). Read the dataset again."
                ) from error
            suffix = Path(source.name.partition("@")[0]).suffix.lower()
            _add(tar, f"{row:07d}{suffix if suffix in PICTURES else '.jpg'}", data)
            _add(tar, f"{row:07d}.json", json.dumps(facts, ensure_ascii=False).encode())


def _plain(value: Any) -> Any:
    if hasattr(value, "wkt"):
        return value.wkt
    if isinstance(value, float) and math.isnan(value):
        return None
    return [str(item) for item in value] if isinstance(value, list | np.ndarray) else value


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner, no time: equal content gives equal shards
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
