"""The files of a gallery index: a version is whole or absent, readers keep theirs, one process writes.

INDEX/index.json             what belongs to this version, with sizes and checksums; replaced as the last step
INDEX/vectors-000001.f32     float32 rows, one after the other; grows at its end, memory-mapped
INDEX/rows-000002.arrow      metadata of the rows of one add (Arrow IPC, memory-mapped)
INDEX/gone-000003.npy        positions of deleted rows
INDEX/axes-000004.npz        what rows of a sketch are made with, for approximate search, see `sketch`
INDEX/codes-000004.u8        rows of the sketch, uint8, in the order of the vectors

The number in a name is the version that began the file. What index.json does not name is a leftover of a killed
writer, or of an earlier version; the next writer removes it. A reader that has mapped such a file keeps it.
"""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ucore.errors import DataError
from ucore.files import atomic_path, content_hash, explain, only_writer, parse_json, require_writable, write_json

FORMAT = 3  # 2 had cells instead of a sketch, 1 no column content
NAME = "index.json"
CHECKED = 2**26  # files up to 64 MB are read through and compared with their checksum whenever they are opened
ANEW = "remove the folder and build the index again."  # what helps when its files are damaged
PIECE = 2**24  # bytes of a checksum at a time
Manifest = dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """index.json of `folder`. Raises DataError where there is none, or a damaged one."""
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"There is no index in {folder} (no {NAME}). Make one: ucore index build --out {folder}")
    damaged = f"{path} is damaged. Restore that file, or {ANEW}"
    try:
        manifest = parse_json(path.read_text("utf-8"))
        checksum = manifest.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(damaged) from error
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} has format {manifest.get('format')!r}, this ucore reads {FORMAT}. Remove and build it again."
        )
    if checksum != content_hash(manifest):
        raise DataError(f"{path} is damaged: its checksum differs. Restore that file, or {ANEW}")
    if not _is_right(manifest):
        raise DataError(damaged)
    return manifest


def _is_right(manifest: Manifest) -> bool:
    """Whether a manifest names files of an index, and counts that can be: anyone can compute a checksum."""

    def whole(value: Any, most: int = 2**62) -> bool:
        return type(value) is int and 0 <= value < most

    def is_file(entry: Any, kind: str) -> bool:
        named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
        return named and re.fullmatch(rf"{kind.replace('*', '[0-9]+')}", entry["name"]) is not None

    def chunked(entry: Any, kind: str) -> bool:
        chunks = entry.get("chunks") if is_file(entry, kind) else None
        return (
            isinstance(chunks, list)
            and all(isinstance(chunk, list) and len(chunk) == 2 and all(map(whole, chunk)) for chunk in chunks)
            and sum(rows for rows, _ in chunks) == manifest["rows"]
        )

    card, vectors, parts, sketch = (manifest.get(name) for name in ("card", "vectors", "parts", "sketch"))
    counts: list[Any] = [manifest.get(name) for name in ("version", "rows", "width", "dim")]
    if not (isinstance(card, dict) and isinstance(parts, list) and all(map(whole, counts))):
        return False
    bias = manifest.get("bias", "")
    if not 1 <= counts[3] <= 100_000 or counts[2] != counts[3] + 8 * bool(bias):
        return False
    undecided = bias is None and counts[1] == 0
    if not {"gone", "sketch", "vectors"} <= set(manifest) or not (isinstance(bias, bool) or undecided):
        return False
    files = [(part, "rows-*[.]arrow") for part in parts]
    files += [] if manifest["gone"] is None else [(manifest["gone"], "gone-*[.]npy")]
    if sketch is not None:
        if not (isinstance(sketch, dict) and whole(sketch.get("size"), 200_000) and counts[1]):
            return False
        if not (sketch["size"] and chunked(sketch.get("codes"), "codes-*[.]u8")):
            return False
        files.append((sketch.get("axes"), "axes-*[.]npz"))
    for entry, kind in files:
        if not (is_file(entry, kind) and whole(entry.get("bytes")) and whole(entry.get("crc"))):
            return False
    return counts[1] == 0 if vectors is None else chunked(vectors, "vectors-*[.]f32")


def commit(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the version that is opened from now on, then remove what it does not name."""
    write_json(folder / NAME, {**manifest, "checksum": content_hash(manifest)})
    remove_leftovers(folder, manifest)


def named(manifest: Manifest) -> set[str]:
    """Names of the files that belong to a version."""
    return {entry["name"] for entry in [*_whole_files(manifest), *(entry for entry, _ in _growing(manifest))]}


def _whole_files(manifest: Manifest) -> list[dict[str, Any]]:
    """Entries of the files that are written at once."""
    sketch = manifest["sketch"]
    return [entry for entry in (*manifest["parts"], manifest["gone"], sketch and sketch["axes"]) if entry]


def _growing(manifest: Manifest) -> list[tuple[dict[str, Any], int]]:
    """Entries of the files that grow at their end, and the bytes of a row."""
    vectors, sketch = manifest["vectors"], manifest["sketch"]
    found = [(vectors, 4 * manifest["width"])] if vectors else []
    return [*found, (sketch["codes"], sketch["size"])] if sketch else found


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Delete the files of `folder` that look like an index's and that `manifest` does not name."""
    for pattern in ("vectors-*.f32", "rows-*.arrow", "gone-*.npy", "axes-*.npz", "codes-*.u8"):
        for path in sorted(folder.glob(pattern)):
            if path.name not in named(manifest):
                path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[Manifest]:
    """Within, this process alone writes; gives the newest manifest, with leftovers of a killed writer removed.

    Raises UserError while another process writes, DataError for a damaged index.
    """
    require_writable(folder)
    with only_writer(folder):
        manifest = read_manifest(folder)
        remove_leftovers(folder, manifest)
        yield manifest


def append(path: Path, offset: int, blocks: Iterator[np.ndarray]) -> tuple[int, int]:
    """Write blocks behind the first `offset` bytes of `path`; what followed is gone. Bytes written, their CRC-32.

    Raises UserError where the disk is full or the file cannot be written, DataError where the first bytes are missing.
    """
    written, crc = 0, 0
    if offset:  # a hole would be filled with zeros
        _check_size(path, offset, exact=False)
    try:
        with open(path, "r+b" if path.exists() else "w+b") as stream:
            stream.seek(offset)
            for block in blocks:
                data = np.ascontiguousarray(block).data.cast("B")
                stream.write(data)
                written, crc = written + len(data), zlib.crc32(data, crc)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise explain(error, path) or error from error
    return written, crc


@contextmanager
def new_file(folder: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary to be written, renamed to `name` at the end, and its entry for the manifest, complete after that."""
    entry: dict[str, Any] = {"name": name}
    with atomic_path(folder / name) as temporary:
        yield temporary, entry
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        entry |= {"bytes": temporary.stat().st_size, "crc": crc_of(temporary)}


def crc_of(path: Path, start: int = 0, length: int | None = None) -> int:
    """CRC-32 of `length` bytes of a file from `start` on, by default to its end."""
    crc, left = 0, path.stat().st_size - start if length is None else length
    with open(path, "rb") as stream:
        stream.seek(start)
        while left > 0:
            data = stream.read(min(PIECE, left))
            if not data:
                break
            crc, left = zlib.crc32(data, crc), left - len(data)
    return crc


def check(folder: Path, manifest: Manifest, whole: bool = False) -> None:
    """Raise DataError naming a file that is missing, cut short or changed.

    Sizes are compared for all, checksums for files up to CHECKED bytes, or for all where `whole`.
    """
    for entry in _whole_files(manifest):
        _check_size(folder / entry["name"], entry["bytes"], exact=True)
        if whole or entry["bytes"] <= CHECKED:
            _check_crc(folder / entry["name"], 0, entry["bytes"], entry["crc"])
    for entry, width in _growing(manifest):
        path, total, start = folder / entry["name"], manifest["rows"] * width, 0
        _check_size(path, total, exact=False)
        for rows, crc in entry["chunks"] if whole or total <= CHECKED else []:
            _check_crc(path, start, rows * width, crc)
            start += rows * width


def _check_size(path: Path, size: int, exact: bool) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"The index lacks its file {path}. To go on, {ANEW}") from error
    if found < size or (exact and found != size):
        raise DataError(f"{path} is damaged: {found:,} bytes instead of {size:,}. To go on, {ANEW}")


def _check_crc(path: Path, start: int, length: int, crc: int) -> None:
    try:
        found = crc_of(path, start, length)
    except OSError as error:
        raise DataError(f"The index cannot read its file {path} ({error.strerror}). To go on, {ANEW}") from error
    if found != crc:
        raise DataError(f"{path} is damaged: its checksum differs. To go on, {ANEW}")


def map_vectors(folder: Path, manifest: Manifest) -> np.ndarray:
    """The rows of this version, float32 (N, width), read-only and memory-mapped."""
    shape = (manifest["rows"], manifest["width"])
    if not manifest["rows"]:
        return np.zeros(shape, np.float32)
    return np.asarray(np.memmap(folder / manifest["vectors"]["name"], np.float32, "r", shape=shape))


def map_table(folder: Path, manifest: Manifest, schema: pa.Schema) -> pa.Table:
    """Metadata of the rows of this version, memory-mapped."""
    tables = []
    for entry in manifest["parts"]:
        path = folder / entry["name"]
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if not table.schema.equals(schema):
                raise pa.ArrowInvalid("other columns")
            table.validate(full=entry["bytes"] <= CHECKED)  # pyarrow takes offsets on trust
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise DataError(f"{path} is damaged. To go on, {ANEW}") from error
        tables.append(table)
    if sum(map(len, tables)) != manifest["rows"]:
        raise DataError(f"{folder / NAME} counts other rows than its files hold. To go on, {ANEW}")
    return pa.concat_tables(tables) if tables else schema.empty_table()


def load_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """The array of a .npy file, or those of a .npz file called `names`. Raises DataError where it is damaged."""
    try:
        found = np.load(path, "r", allow_pickle=False) if not names else np.load(path, allow_pickle=False)
        if not names:
            return [np.array(found)]
        with found as stored:
            return [stored[name] for name in names]
    except Exception as error:  # numpy, zipfile and zlib each raise their own on damaged bytes
        raise DataError(f"{path} is damaged. To go on, {ANEW}") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write metadata as one Arrow IPC file, which `map_table` maps."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
