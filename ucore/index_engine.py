"""What an engine of a gallery index does, whatever it keeps vectors and metadata in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ucore.filters import Filter
from ucore.places import Place

if TYPE_CHECKING:
    import pyarrow as pa


class Engine(Protocol):
    """What an engine of a `GalleryIndex` does; arguments were checked before. FlatEngine is the one to start from.

    Positions are int64 and name the rows of the version that is read; `limit` is above all of them. `search` gives
    positions (Q, k), -1 where there is none, scores float32 (Q, k), how many rows kind and filter let through, and
    whether all of them were scored exactly. A change is one new version, whole or not at all.
    """

    name: str  # among index.ENGINES
    place: Place
    version: int  # grows with every change of the rows
    card: dict[str, Any]
    dim: int
    bias: bool  # whether the rows have a hub_bias
    limit: int

    def __init__(self, place: Place) -> None: ...  # at its newest version; DataError where there is none

    @classmethod
    def create(cls, place: Place, card: dict[str, Any], dim: int) -> None:
        """Make an empty index. Raises DataError where there is one."""

    def __len__(self) -> int: ...  # rows that are not deleted

    def refresh(self) -> None:
        """Read the newest version."""

    def describe(self, card: dict[str, Any]) -> None:
        """Replace the card."""

    def note(self, name: str) -> Any:
        """What `keep` was given under that name; None where there is nothing."""

    def keep(self, name: str, value: Any) -> None:
        """Keep something JSON-able beside the rows."""

    def add(self, features: np.ndarray, table: "pa.Table", bias: bool, replace: bool) -> None:
        """Rows of float32 (n, dim) and `index_rows.COLUMNS`; `replace` deletes items of the same ids, which are a
        DataError otherwise, as is a `bias` unlike that of the rows before."""

    def delete(self, item_ids: Sequence[str]) -> None:
        """Delete all of these items; none, and a DataError, where one is unknown."""

    def compact(self) -> None:
        """Let go what was deleted, and learn what makes searching fast; positions change."""

    def verify(self) -> None:
        """Read everything. Raises DataError naming what is damaged."""

    def select(self, kind: str, where: Filter | None) -> np.ndarray:
        """Positions (n,), ascending, of all rows that kind and filter let through."""
        ...

    def search(
        self, queries: np.ndarray, k: int, where: Filter | None, kind: str, exact: bool, bias: bool
    ) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """The k best rows for each query float32 (Q, dim); equal scores go to the lower position."""
        ...

    def scores(self, queries: np.ndarray, positions: np.ndarray, bias: bool) -> np.ndarray:
        """Scores float32 (Q, n) of n rows, the same as `search` gives."""
        ...

    def features(self, positions: np.ndarray) -> np.ndarray:
        """Features float32 (n, dim) of n rows."""
        ...

    def table(self, positions: np.ndarray) -> "pa.Table":
        """Metadata of n rows, `index_rows.COLUMNS`."""
        ...

    def find(self, item_ids: Sequence[str]) -> np.ndarray:
        """Positions (n,) of items, -1 for an unknown id."""
        ...
