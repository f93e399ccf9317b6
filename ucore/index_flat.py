"""The embedded engine of a gallery index: memory-mapped float32 vectors, searched exactly or by a sketch of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ucore import index_files as files
from ucore.errors import DataError
from ucore.files import parse_json
from ucore.filters import Filter
from ucore.index_version import Version
from ucore.manifest import few
from ucore.nearest import BLOCK, blocks_of, nearest, rescore
from ucore.sketch import FROM, Sketch

MOST_PARTS = 32  # files of metadata, before they are joined


class FlatEngine:
    """An index in a local folder. name: among `index.ENGINES`.

    `now` is what this process reads; only `refresh` and its own writing change it.
    """

    name = "flat"

    def __init__(self, place: Path) -> None:
        self.place = place
        self.refresh()

    @classmethod
    def create(cls, folder: Path, card: dict[str, Any], dim: int) -> None:
        """An empty index, version 0. Raises DataError where there is one."""
        files.require_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with files.only_writer(folder):
            if (folder / files.NAME).exists():
                raise DataError(f"There is an index in {folder} already. Open it, or choose another folder.")
            manifest = {"format": files.FORMAT, "engine": cls.name, "version": 0, "card": card, "dim": dim,
                        "width": dim, "bias": None, "rows": 0, "vectors": None, "parts": [], "gone": None,
                        "sketch": None}  # fmt: skip
            files.commit(folder, manifest)

    def refresh(self) -> None:
        """Read the newest version."""
        manifest = files.read_manifest(self.place)
        while True:
            try:
                self._read(manifest)
                return
            except (DataError, OSError):
                newer = files.read_manifest(self.place)  # a writer may have removed what the older one named
                if newer["version"] == manifest["version"]:
                    raise
                manifest = newer

    def describe(self, card: dict[str, Any]) -> None:
        """Replace the card, as a new version."""
        with files.writing(self.place) as manifest:
            _, new, _ = self._start(manifest)
            self._commit({**new, "card": card})

    def note(self, name: str) -> Any:
        """What `keep` put into a file of that name; None where there is none. Raises DataError for a damaged one."""
        path = self.place / f"{name}.json"
        try:
            return parse_json(path.read_text("utf-8")) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged. Delete it: ucore index build makes it anew.") from error

    def keep(self, name: str, value: Any) -> None:
        """Write something JSON-able to a file beside the rows; no new version."""
        files.write_json(self.place / f"{name}.json", value)

    @property
    def manifest(self) -> files.Manifest:
        """What belongs to the version that is read, as index.json says it."""
        return self.now.manifest

    @property
    def version(self) -> int:
        """Of what is read; grows by 1 with every change."""
        return self.manifest["version"]

    @property
    def card(self) -> dict[str, Any]:
        """The card of the version that is read."""
        return self.manifest["card"]

    @property
    def dim(self) -> int:
        """Width of the features, without the coordinate of the bias."""
        return self.manifest["dim"]

    @property
    def bias(self) -> bool:
        """Whether the rows have a hub_bias, as a coordinate behind those of the features."""
        return bool(self.manifest["bias"])

    @property
    def limit(self) -> int:
        """Positions are below it."""
        return self.manifest["rows"]

    def __len__(self) -> int:
        return self.manifest["rows"] - len(self.now.gone)

    def _start(self, manifest: files.Manifest) -> tuple[Version, files.Manifest, str]:
        """The version to write after, the manifest to change, and the number for new files' names."""
        if manifest["version"] != self.manifest["version"]:
            self._read(manifest)
        version = manifest["version"] + 1
        return self.now, {**manifest, "version": version}, f"{version:06d}"

    def add(self, features: np.ndarray, table: pa.Table, bias: bool, replace: bool) -> None:
        """Append rows, to the sketch as well where there is one; replaced items are marked as deleted.

        Raises DataError for items that are there (without `replace`), and for a `bias` unlike that of earlier rows.
        """
        with files.writing(self.place) as manifest:
            now, new, number = self._start(manifest)
            if now.manifest["bias"] not in (None, bias):
                what = "lack hub_bias, which this index has" if not bias else "have hub_bias, which this index lacks"
                raise DataError(f"The rows {what}; build another index.")
            old = now.find(table["item_id"].to_pylist())
            if (old >= 0).any() and not replace:
                twice = table["item_id"].filter(pa.array(old >= 0)).to_pylist()
                raise DataError(f"The index has these items already: {few(twice)}. Delete them, or add with replace.")
            new["bias"], new["width"] = bias, new["dim"] + 8 * bias  # a whole number of SIMD registers
            vectors = new["vectors"] or {"name": f"vectors-{number}.f32", "chunks": []}
            offset = 4 * new["rows"] * new["width"]
            _, crc = files.append(self.place / vectors["name"], offset, _widened(features, table, new))
            if now.sketch:
                new["sketch"] = self._sketched(now.sketch, _widened(features, table, new), new)
            new["vectors"] = {**vectors, "chunks": [*vectors["chunks"], [len(features), crc]]}
            joined = table if len(new["parts"]) < MOST_PARTS else pa.concat_tables([now.table, table])
            entry = self._write_table(joined, number)
            new["parts"] = [*new["parts"], entry] if joined is table else [entry]
            new["rows"] += len(features)
            if (old >= 0).any():
                new["gone"] = self._write_gone(np.union1d(now.gone, old[old >= 0]), number)
            self._commit(new)

    def delete(self, item_ids: Sequence[str]) -> None:
        """Mark items as deleted; their room stays until `compact`. Raises DataError for an unknown one."""
        with files.writing(self.place) as manifest:
            now, new, number = self._start(manifest)
            rows = now.find(item_ids)
            if (rows < 0).any():
                unknown = [name for name, row in zip(item_ids, rows, strict=True) if row < 0]
                raise DataError(f"The index has no item {few(unknown)}; nothing was deleted.")
            new["gone"] = self._write_gone(np.union1d(now.gone, rows), number)
            self._commit(new)

    def compact(self) -> None:
        """Write the rows that are left anew; from FROM of them on, near places together, and with a sketch."""
        with files.writing(self.place) as manifest:
            now, new, number = self._start(manifest)
            keep, sketch = np.flatnonzero(now.alive), None
            if len(keep) >= FROM:
                sketch = Sketch.learn(now.vectors, keep, new["dim"])
                # What a filter lets through then lies in a few long runs, which are faster to walk over.
                keep = keep[np.lexsort((now.columns.along[keep], now.kind_codes[keep]))]
            name = f"vectors-{number}.f32"
            _, crc = files.append(self.place / name, 0, blocks_of(now.vectors, keep))
            table = pa.concat_tables([now.table.take(pa.array(keep))]).combine_chunks()
            new |= {"rows": len(keep), "vectors": {"name": name, "chunks": [[len(keep), crc]]}, "gone": None}
            new["parts"] = [self._write_table(table, number)] if len(keep) else []
            new["sketch"] = None
            if sketch:
                with files.new_file(self.place, f"axes-{number}.npz") as (path, entry), open(path, "wb") as stream:
                    np.savez(stream, mean=sketch.mean, axes=sketch.axes)
                empty = {"name": f"codes-{number}.u8", "chunks": []}
                new["sketch"] = {"axes": entry, "size": sketch.axes.shape[1], "codes": empty}
                written = files.map_vectors(self.place, new)
                new["sketch"] = self._sketched(sketch, blocks_of(written, np.arange(len(keep))), {**new, "rows": 0})
            self._commit(new)

    def _sketched(self, sketch: Sketch, blocks: Iterator[np.ndarray], manifest: files.Manifest) -> dict[str, Any]:
        """Codes of more rows, behind those of the manifest's; its entry for the sketch with them."""
        old = manifest["sketch"]
        path, size = self.place / old["codes"]["name"], old["size"]
        written, crc = files.append(path, manifest["rows"] * size, (sketch.encode(block) for block in blocks))
        return {**old, "codes": {**old["codes"], "chunks": [*old["codes"]["chunks"], [written // size, crc]]}}

    def _write_table(self, table: pa.Table, number: str) -> dict[str, Any]:
        with files.new_file(self.place, f"rows-{number}.arrow") as (path, entry):
            files.write_table(path, table)
        return {**entry, "rows": len(table)}

    def _write_gone(self, rows: np.ndarray, number: str) -> dict[str, Any]:
        with files.new_file(self.place, f"gone-{number}.npy") as (path, entry), open(path, "wb") as stream:
            np.save(stream, rows.astype(np.int64))
        return entry

    def _commit(self, manifest: files.Manifest) -> None:
        files.commit(self.place, manifest)
        self._read(manifest, check=False)

    def _read(self, manifest: files.Manifest, check: bool = True) -> None:
        old, self.now = getattr(self, "now", None), Version.load(self.place, manifest, check)
        if old and old.sketch and old.manifest["sketch"] == manifest["sketch"]:  # it holds what FAISS has copied
            self.now = replace(self.now, sketch=old.sketch)

    def select(self, kind: str, where: Filter | None) -> np.ndarray:
        """Positions that a search may find, ascending int64 (n,)."""
        return np.flatnonzero(self._allowed(kind, where))

    def _allowed(self, kind: str, where: Filter | None) -> np.ndarray:
        allowed = self.now.kinds.get(kind)
        if allowed is None:
            allowed = np.zeros(len(self.now.vectors), bool)
        return allowed if where is None or where.empty else allowed & where.mask(self.now.columns)

    def search(
        self, queries: np.ndarray, k: int, where: Filter | None, kind: str, exact: bool, bias: bool
    ) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """Positions, scores, how many rows were allowed, and whether all of them were scored exactly."""
        allowed = self._allowed(kind, where)
        count = int(np.count_nonzero(allowed))
        wide, everything = self._wide(queries, bias), count == len(allowed)
        if self.now.sketch and not exact and Sketch.pays(count, k):
            found = self.now.sketch.search(self.now.vectors, wide, k, None if everything else allowed)
            return *found, count, False
        rows = None if everything else np.flatnonzero(allowed)
        return *nearest(self.now.vectors, wide, k, rows, self.now.scale), count, True

    def scores(self, queries: np.ndarray, positions: np.ndarray, bias: bool) -> np.ndarray:
        """float32 (Q, n)."""
        wide = self._wide(queries, bias)
        return rescore(self.now.vectors, wide, np.broadcast_to(positions, (len(queries), len(positions))))

    def _wide(self, queries: np.ndarray, bias: bool) -> np.ndarray:
        """Queries with the coordinate that the rows' bias is multiplied with."""
        if bias and not self.bias:
            raise DataError("This index has no hub_bias; build it with the bank of its checkpoint, or search without.")
        wide = np.zeros((len(queries), self.manifest["width"]), np.float32)
        wide[:, : self.dim] = queries
        if bias:
            wide[:, self.dim] = 1
        return wide

    def features(self, positions: np.ndarray) -> np.ndarray:
        """Float32 (n, dim), without the coordinate of the bias."""
        return self.now.vectors[positions, : self.dim]

    def table(self, positions: np.ndarray) -> pa.Table:
        """Metadata of n rows, columns as of `index_rows.SCHEMA`."""
        return self.now.table.take(pa.array(positions))

    def find(self, item_ids: Sequence[str]) -> np.ndarray:
        """Positions of items, int64 (n,), -1 where there is none or it is deleted."""
        return self.now.find(item_ids)

    def verify(self) -> None:
        """Raise DataError naming a file whose checksum differs; reads everything."""
        files.check(self.place, self.manifest, whole=True)


def _widened(features: np.ndarray, table: pa.Table, manifest: files.Manifest) -> Iterator[np.ndarray]:
    """Blocks of rows as they are stored: with their bias in a coordinate of its own, where the index has one."""
    bias = table["hub_bias"].to_numpy()
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK]
        if not manifest["bias"]:
            yield block
            continue
        wide = np.zeros((len(block), manifest["width"]), np.float32)
        wide[:, : block.shape[1]], wide[:, block.shape[1]] = block, bias[start : start + BLOCK]
        yield wide
