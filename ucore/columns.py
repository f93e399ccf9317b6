"""What filters look at: places, names and tags of a gallery's rows, in arrays that are made once and asked often."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.config import did_you_mean
from ucore.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SPREAD = (  # shifts and masks that put a zero before each of 32 bits
    (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)  # fmt: skip
FILTERED = ("domain", "source", "tags", "lon", "lat")  # columns that filters look at


class Columns:
    """The columns that filters look at, as arrays.

    lon, lat: float64 (N,), NaN where unknown. Names and tags are numbers into sorted lists of what occurs.
    """

    def __init__(self, table: "pa.Table", present: np.ndarray | None = None) -> None:
        """present: bool (N,), the rows whose names count when one is unknown; None: all."""
        self._table, self._present = table, present
        self._known: dict[str, list[str]] = {}

    @classmethod
    def of(cls, rows: "pd.DataFrame | pa.Table") -> "Columns":
        """From a table of pyarrow or pandas."""
        import pyarrow as pa

        if isinstance(rows, pa.Table):
            return cls(rows)
        lists = {"tags": pa.list_(pa.string()), "domain": pa.string(), "source": pa.string()}
        wanted = [name for name in FILTERED if name in rows.columns]
        arrays = [pa.array(rows[name].tolist(), lists.get(name, pa.float64()), from_pandas=True) for name in wanted]
        return cls(pa.table(arrays, names=wanted) if wanted else pa.table({"rows": np.zeros(len(rows))}))

    def __len__(self) -> int:
        return self._table.num_rows

    @cached_property
    def lon(self) -> np.ndarray:
        """Degrees east, float64 (N,), NaN where unknown. Raises ConfigError where the rows have no such column."""
        return self._degrees("lon")

    @cached_property
    def lat(self) -> np.ndarray:
        """Degrees north, float64 (N,), NaN where unknown. Raises ConfigError where the rows have no such column."""
        return self._degrees("lat")

    @property
    def placed(self) -> np.ndarray:
        """Which rows have a place, bool (N,)."""
        return np.isfinite(self.lon) & np.isfinite(self.lat)

    @property
    def along(self) -> np.ndarray:
        """How far along a curve through all places each row lies, uint64 (N,): near ones mostly follow each other
        (Morton 1966, the bits of both degrees by turns). Rows without a place come last.
        """
        axes = []
        for degrees, most in ((self.lon, 180.0), (self.lat, 90.0)):
            bits = (np.nan_to_num(np.clip(degrees / most, -1, 1) + 1) * (2**31 - 1)).astype(np.uint64)
            for shift, mask in SPREAD:
                bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
            axes.append(bits)
        return np.where(self.placed, axes[0] | axes[1] << np.uint64(1), np.uint64(2**64 - 1))

    def _degrees(self, name: str) -> np.ndarray:
        return self._column(name).cast("float64").to_numpy(zero_copy_only=False).astype(np.float64, copy=False)

    def _column(self, name: str) -> Any:
        if name not in self._table.column_names:
            raise ConfigError(f"These rows have no column {name!r}, so they cannot be filtered by it")
        return self._table[name].combine_chunks()

    @cached_property
    def _domain(self) -> tuple[np.ndarray, list[str]]:
        return _codes(self._column("domain"))

    @cached_property
    def _source(self) -> tuple[np.ndarray, list[str]]:
        return _codes(self._column("source"))

    @cached_property
    def _tags(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Row and tag of every pair of them, int32 (P,) each, and the tags' names."""
        import pyarrow.compute

        pc: Any = pyarrow.compute  # its functions are made at import, which type checkers do not see
        column: Any = self._column("tags")
        codes, names = _codes(pc.list_flatten(column))
        return pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int32), codes, names

    def names(self, column: str) -> list[str]:
        """What occurs in "domain", "source" or "tags", sorted."""
        if column not in self._known:
            self._known[column] = self._occurring(column)
        return self._known[column]

    def _occurring(self, column: str) -> list[str]:
        if column == "tags":
            rows, codes, names = self._tags
            codes = codes if self._present is None else codes[self._present[rows]]
        else:
            codes, names = self._domain if column == "domain" else self._source
            codes = codes if self._present is None else codes[self._present]
        return names if self._present is None else [names[code] for code in np.unique(codes)]

    def named(self, column: str, wanted: Sequence[str]) -> np.ndarray:
        """Which rows have one of the names, bool (N,). Raises ConfigError for a name that no row has."""
        codes, names = self._domain if column == "domain" else self._source
        occurring = self.names(column)
        for name in wanted:
            if name not in occurring:
                raise ConfigError(_unknown(column, name, occurring))
        return np.isin(names, wanted)[codes] if names else np.zeros(len(self), bool)

    def tagged(self, wanted: Sequence[str]) -> np.ndarray:
        """Which rows have at least one of the tags, bool (N,). Raises ConfigError for a tag that no row has."""
        rows, codes, names = self._tags
        occurring = self.names("tags")
        hit = np.zeros(len(names), bool)
        for tag in wanted:
            if not any(_fits(tag, name) for name in occurring):
                keys = sorted({name.partition("=")[0] for name in occurring})
                raise ConfigError(_unknown("tag", tag, occurring if "=" in tag else [*keys, *occurring]))
            hit |= np.array([_fits(tag, name) for name in names])
        passed = np.zeros(len(self), bool)
        passed[rows[hit[codes]]] = True
        return passed


def _fits(tag: str, name: str) -> bool:
    """Whether a name, "key=value", is what a tag asks for: the very same, or any of a bare key."""
    return name == tag or ("=" not in tag and name.partition("=")[0] == tag)


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    """Number of each value in the sorted list of those that occur, int32 (N,), and that list; missing is ""."""
    import pyarrow.compute

    pc: Any = pyarrow.compute
    encoded = pc.dictionary_encode(pc.fill_null(column.cast("string"), ""))
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), np.int32)
    place[order] = np.arange(len(names), dtype=np.int32)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return place[codes] if names else codes.astype(np.int32), [names[number] for number in order]


def _unknown(what: str, name: str, names: Sequence[str]) -> str:
    near = did_you_mean(name, names)
    if near or not names:
        return f"No row has the {what} {name!r}{near or '; none has any'}"
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"No row has the {what} {name!r}; there are: {some}"
