"""A table that grows by whole files: what a stage has finished survives kill -9, and nothing is done or kept twice.

    OUT/settings.json          what the rows were made with; other settings need another folder
    OUT/part-000000.parquet    rows, written once and never changed
    OUT/quarantine.jsonl       items that cannot be done (a damaged image), by name, with the reason

A row is known by its key, which its maker derives from the item's content and the settings: a changed item has another
key and is done again, an unchanged one is found.
"""

import json
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ucore.errors import ConfigError, DataError
from ucore.files import atomic_path, explained, only_writer, parse_json, require_writable, write_json

ROWS, SECONDS = 256, 30.0  # a part is written when it has so many rows, or is so old
PARTS_IN_MEMORY = 8  # of those read last, for looking rows up by key


class PartStore:
    """Append-only rows in `folder`, made or opened.

    settings: JSON-able; None opens what is there, whatever it was made with.
    schema: of the rows, with a string column "key"; without it pyarrow infers one from each part.
    Raises ConfigError where the folder was made with other settings, DataError where there is nothing to open or
    settings.json is damaged, UserError where it cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None, schema: pa.Schema | None = None) -> None:
        self.folder, self.schema = Path(folder), schema
        path = self.folder / "settings.json"
        stored = _read_settings(path)
        if stored is None and settings is None:
            raise DataError(f"There is no finished stage in {self.folder}: it has no settings.json. Name its folder.")
        wanted: dict[str, Any] = (stored or {}) if settings is None else json.loads(json.dumps(settings, default=str))
        if stored is None:
            require_writable(self.folder)
            write_json(path, wanted)
        elif stored != wanted:
            changed = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
            raise ConfigError(
                f"{self.folder} was made with other settings ({', '.join(changed)}); choose another folder for these"
            )
        self.settings = wanted
        self._parts: dict[str, list[str]] = {}
        self._place: dict[str, tuple[str, int]] = {}
        self._recent: OrderedDict[str, pa.Table] = OrderedDict()
        self._writing = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, this process alone appends. Parts that were cut short are put aside, with a warning that names them.

        Raises UserError while another process writes.
        """
        with only_writer(self.folder):
            for path in self._scan():
                os.replace(path, f"{path}.damaged")
                warnings.warn(f"{path} is cut short or damaged; its items are done again", stacklevel=3)
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store `rows` as one part, whole or not at all; rows whose key is stored already are left out."""
        self._must_write()
        fresh = {row["key"]: dict(row) for row in reversed(rows) if row["key"] not in self._place}
        if not fresh:
            return
        numbers = (int(path.name[5:].split(".")[0]) for path in self.folder.glob("part-*.parquet*"))
        name = f"part-{max(numbers, default=-1) + 1:06d}.parquet"
        table = pa.Table.from_pylist(list(reversed(fresh.values())), schema=self.schema)
        with atomic_path(self.folder / name) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        self._add(name, table["key"].to_pylist())

    @contextmanager
    def in_parts(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Within, a function that stores one row after another, in parts; whatever ends it, all given are stored."""
        waiting: list[Mapping[str, Any]] = []
        since = time.monotonic()

        def add(row: Mapping[str, Any]) -> None:
            nonlocal since
            waiting.append(row)
            if len(waiting) >= ROWS or time.monotonic() - since > SECONDS:
                self.append(waiting)
                waiting.clear()
                since = time.monotonic()

        try:
            yield add
        finally:
            self.append(waiting)

    def quarantine(self, key: str, sample_id: str, reason: str) -> None:
        """Note that the item `key` cannot be done, and why; it counts as done."""
        self._must_write()
        path = self.folder / "quarantine.jsonl"
        line = json.dumps({"key": key, "sample_id": sample_id, "reason": reason}, ensure_ascii=False) + "\n"
        # A process killed while writing may have left half a line, which a line break closes.
        cut = path.is_file() and not path.read_bytes().endswith(b"\n")
        with explained(path), open(path, "ab") as stream:
            stream.write(("\n" * cut + line).encode())

    def done(self) -> set[str]:
        """Keys that are stored or quarantined."""
        self._scan()
        return set(self._place) | set(self.reasons())

    def quarantined(self) -> dict[str, str]:
        """Name -> reason of what cannot be done."""
        return {entry["sample_id"]: entry["reason"] for entry in self._quarantine()}

    def reasons(self) -> dict[str, str]:
        """Key -> reason of what cannot be done. An item put right has another key, so its old one is nobody's."""
        return {entry["key"]: entry["reason"] for entry in self._quarantine()}

    def __len__(self) -> int:
        self._scan()
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        if key not in self._place:
            self._scan()
        return key in self._place

    def row(self, key: str) -> dict[str, Any]:
        """The row of one key; rows stored together are read together. Raises KeyError, or DataError for damage."""
        if key not in self:
            raise KeyError(key)
        name, number = self._place[key]
        if name not in self._recent:
            self._recent[name] = self._read(name)
            while len(self._recent) > PARTS_IN_MEMORY:
                self._recent.popitem(last=False)
        self._recent.move_to_end(name)
        return self._recent[name].slice(number, 1).to_pylist()[0]

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows sorted by key, or some of their columns. Raises DataError naming a damaged part."""
        damaged = self._scan()
        if damaged:
            raise _damage(damaged[0])
        wanted = None if columns is None else list(dict.fromkeys(["key", *columns]))
        parts = []
        for name, keys in self._parts.items():
            own = [number for number, key in enumerate(keys) if self._place[key] == (name, number)]
            parts.append(self._read(name, wanted).take(own))
        if not parts:
            schema = self.schema or pa.schema([(name, pa.string()) for name in wanted or ["key"]])
            return schema.empty_table().select(list(columns or schema.names))
        table = pa.concat_tables(parts, promote_options="permissive").sort_by("key")
        return table if columns is None else table.select(list(columns))

    def _must_write(self) -> None:
        if not self._writing:
            raise RuntimeError("append and quarantine belong into: with store.writing()")

    def _scan(self) -> list[Path]:
        """Take note of parts that came or went since the last look; return those that cannot be read."""
        paths = sorted(self.folder.glob("part-*.parquet"))
        if set(self._parts) - {path.name for path in paths}:
            self._parts, self._place = {}, {}
            self._recent.clear()
        damaged = []
        for path in paths:
            if path.name in self._parts:
                continue
            try:
                self._add(path.name, self._read(path.name, ["key"])["key"].to_pylist())
            except DataError:
                damaged.append(path)
        return damaged

    def _add(self, name: str, keys: list[str]) -> None:
        self._parts[name] = keys
        for number, key in enumerate(keys):
            self._place.setdefault(key, (name, number))

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        path = self.folder / name
        try:
            # Not read_table(path): it would take a folder named key=value for a column.
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                if self.schema is not None and not file.schema_arrow.equals(self.schema):
                    raise ValueError("other columns")
                table = file.read(columns)
                table["key"].cast(pa.string())
                table.validate(full=True)  # before rows are made of it: pyarrow takes offsets on trust
                return table
        except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
            raise _damage(path) from error

    def _quarantine(self) -> list[dict[str, str]]:
        """Whole lines of quarantine.jsonl; half a line, left by a killed process, is not one."""
        path = self.folder / "quarantine.jsonl"
        entries = []
        for line in path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else []:
            try:
                entry = parse_json(line)
            except ValueError:
                continue
            known = isinstance(entry, dict) and [entry.get(name) for name in ("key", "sample_id", "reason")]
            if known and all(isinstance(text, str) for text in known):
                entries.append(entry)
        return entries


def _damage(path: Path) -> DataError:
    return DataError(f"{path} is damaged. Delete that file and repeat the command: its items are done again.")


def _read_settings(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        settings = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read. Choose another --out, or delete the folder it lies in.") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} holds no settings. Choose another --out, or delete the folder it lies in.")
    return settings
