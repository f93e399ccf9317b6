"""One version of a gallery index in a folder: vectors and metadata mapped, what was deleted, a sketch if it has one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ucore import index_files as files
from ucore.columns import Columns
from ucore.errors import DataError
from ucore.index_rows import SCHEMA
from ucore.sketch import Sketch

LARGEST = 1e12  # of the numbers of a sketch: more would overflow in products
pc: Any = pyarrow.compute  # its functions are made when it is imported, which type checkers do not see


@dataclass(frozen=True, eq=False)
class Version:
    """What one version of an index holds; mapped files stay readable after a writer has moved on.

    vectors: float32 (N, width). table: metadata (N rows). gone: positions of deleted rows, ascending int64.
    sketch: None where the index has not made one.
    """

    manifest: files.Manifest
    vectors: np.ndarray
    table: pa.Table
    gone: np.ndarray
    sketch: Sketch | None

    @classmethod
    def load(cls, folder: Path, manifest: files.Manifest, check: bool = True) -> "Version":
        """Map the files of a version. check: compare them with sizes and checksums, see `index_files.check`."""
        if check:
            files.check(folder, manifest)
        table = files.map_table(folder, manifest, SCHEMA)
        gone, sketch = np.zeros(0, np.int64), None
        if manifest["gone"]:
            gone = _checked_gone(folder / manifest["gone"]["name"], manifest["rows"])
        if manifest["sketch"]:
            sketch = _checked_sketch(folder, manifest)
        return cls(manifest, files.map_vectors(folder, manifest), table, gone, sketch)

    @cached_property
    def columns(self) -> Columns:
        """What filters look at, of all N rows; a name that only deleted rows have is an unknown one."""
        return Columns(self.table, self.alive if len(self.gone) else None)

    @cached_property
    def alive(self) -> np.ndarray:
        """Which rows are not deleted, bool (N,)."""
        alive = np.ones(len(self.vectors), bool)
        alive[self.gone] = False
        return alive

    @cached_property
    def kinds(self) -> dict[str, np.ndarray]:
        """Kind -> which rows, bool (N,), are of it and not deleted."""
        codes, names = self._kinds
        return {kind: (codes == code) & self.alive for code, kind in enumerate(names)}

    @property
    def kind_codes(self) -> np.ndarray:
        """Whole numbers (N,), the same for rows of one kind."""
        return self._kinds[0]

    @cached_property
    def _kinds(self) -> tuple[np.ndarray, list[str]]:
        found = pc.dictionary_encode(self.table["kind"].combine_chunks())
        return found.indices.to_numpy(zero_copy_only=False), found.dictionary.to_pylist()

    @cached_property
    def scale(self) -> float:
        """Bound of the norms of rows with their bias."""
        bias = pc.max(pc.abs(self.table["hub_bias"])).as_py() if self.manifest["bias"] else 0.0
        return float(np.hypot(1.01, bias or 0.0))

    def find(self, item_ids: Sequence[str]) -> np.ndarray:
        """Positions of items that are not deleted, int64 (n,), -1 where there is none."""
        names, asked = np.unique(np.array(item_ids, object), return_inverse=True)  # an item may be asked for twice
        place = pc.index_in(self.table["item_id"], value_set=pa.array(names, pa.string()))
        place = place.combine_chunks().to_numpy(zero_copy_only=False) if len(self.table) else np.zeros(0)
        rows = np.flatnonzero(~np.isnan(place.astype(np.float64)) & self.alive)
        found = np.full(len(names), -1, np.int64)
        found[place[rows].astype(np.int64)] = rows
        return found[asked]


def _checked_gone(path: Path, rows: int) -> np.ndarray:
    (gone,) = files.load_arrays(path)
    if gone.dtype != np.int64 or gone.ndim != 1 or (np.diff(gone, prepend=-1, append=rows) < 1).any():
        raise DataError(f"{path} is damaged. To go on, {files.ANEW}")
    return gone


def _checked_sketch(folder: Path, manifest: files.Manifest) -> Sketch:
    path = folder / manifest["sketch"]["axes"]["name"]
    mean, axes = files.load_arrays(path, "mean", "axes")
    width, size = manifest["width"], manifest["sketch"]["size"]
    fit = mean.shape == (width,) and axes.shape == (width, size) and mean.dtype == axes.dtype == np.float32
    if not (fit and (np.abs(mean) < LARGEST).all() and (np.abs(axes) < LARGEST).all()):
        raise DataError(f"{path} is damaged. To go on, {files.ANEW}")
    codes = np.memmap(folder / manifest["sketch"]["codes"]["name"], np.uint8, "r", shape=(manifest["rows"], size))
    return Sketch(mean, axes, np.asarray(codes))
