"""One version of a gallery index in a folder: vectors and metadata mapped, what was deleted, cells if it has some."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ucore import index_files as files
from ucore.cells import Cells
from ucore.columns import Columns
from ucore.errors import DataError
from ucore.index_rows import SCHEMA

pc: Any = pyarrow.compute  # its functions are made when it is imported, which type checkers do not see


@dataclass(frozen=True, eq=False)
class Version:
    """What one version of an index holds; mapped files stay readable after a writer has moved on.

    vectors: float32 (N, width). table: metadata (N rows). gone: positions of deleted rows, ascending int64.
    cells: None where the index has not learned any.
    """

    manifest: files.Manifest
    vectors: np.ndarray
    table: pa.Table
    gone: np.ndarray
    cells: Cells | None

    @classmethod
    def load(cls, folder: Path, manifest: files.Manifest, check: bool = True) -> "Version":
        """Map the files of a version. check: compare them with sizes and checksums, see `index_files.check`."""
        if check:
            files.check(folder, manifest)
        table = files.map_table(folder, manifest, SCHEMA)
        gone, cells = np.zeros(0, np.int64), None
        if manifest["gone"]:
            gone = _checked_gone(folder / manifest["gone"]["name"], manifest["rows"])
        if manifest["cells"]:
            cells = _checked_cells(folder / manifest["cells"]["name"], manifest["rows"], manifest["width"])
        return cls(manifest, files.map_vectors(folder, manifest), table, gone, cells)

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
        found = pc.dictionary_encode(self.table["kind"].combine_chunks())
        codes = found.indices.to_numpy(zero_copy_only=False)
        return {kind: (codes == code) & self.alive for code, kind in enumerate(found.dictionary.to_pylist())}

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


def _checked_cells(path: Path, rows: int, width: int) -> Cells:
    centroids, cell = files.load_arrays(path, "centroids", "cell")
    fit = centroids.ndim == 2 and centroids.shape[1] == width and cell.shape == (rows,)
    kinds = centroids.dtype == np.float32 and cell.dtype == np.int32 and np.isfinite(centroids).all()
    if not (fit and kinds and (cell >= 0).all() and (cell < len(centroids)).all()):
        raise DataError(f"{path} is damaged. To go on, {files.ANEW}")
    return Cells(centroids, cell)
