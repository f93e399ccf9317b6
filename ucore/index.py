"""A gallery that was embedded once and is searched often: images, segments and texts, with filters applied first.

    index = GalleryIndex.create(folder, card={"name": "lite0-minilm", "root": "data"}, dim=512)
    index.add(features, rows)                                   # features (N, 512), one row of metadata each
    hits = GalleryIndex.open(folder).search(queries, k=10, where=Filter(domains=("finland",)))
    index.rows(hits.positions[0])

Engine "flat" (default) is exact and lies in a local folder; "lance" is for what does not fit into memory, in a folder
or an object store (s3://bucket/index, gs://, az://), and needs the extra `lance`. A search sees one version, whatever
is written meanwhile. One process writes: a lock sees to it in a folder, nothing does in an object store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.config import did_you_mean
from ucore.errors import ConfigError, DataError
from ucore.files import read_json, safe_join
from ucore.filters import Filter
from ucore.index_engine import Engine
from ucore.index_files import NAME
from ucore.index_flat import FlatEngine
from ucore.index_lance import LanceEngine
from ucore.index_rows import KINDS, checked_features, checked_queries, checked_rows
from ucore.places import Place, place_of

if TYPE_CHECKING:
    import pandas as pd

MOST_HITS = 100_000_000  # of one search: they take 12 bytes each, found or not
IDENTITY = ("name", "fingerprint", "weights", "embed_dim")  # of a card: what makes features comparable


ENGINES: dict[str, Any] = {"flat": FlatEngine, "lance": LanceEngine}  # name -> Engine


def engine_at(place: Place) -> Any:
    """The engine of the index in a place; that which says best what is wrong, where there is none.

    Raises ConfigError for an engine that is not in ENGINES.
    """
    if isinstance(place, str) or LanceEngine.exists(place):
        return LanceEngine
    known = read_json(place / NAME)
    name = str(known.get("engine", "flat")) if isinstance(known, dict) else "flat"
    if name not in ENGINES:
        raise ConfigError(f"{place} was made with the engine {name!r}: import what adds it to ucore.index.ENGINES")
    return ENGINES[name]


@dataclass(frozen=True, eq=False)
class Hits:
    """What was found, best first; equal scores keep the order of positions.

    positions: int64 (Q, k), -1 where fewer than k rows were allowed; valid for `version` of the index.
    scores: float32 (Q, k), -inf there. allowed: rows that kind and filter let through. exact: all of them were scored.
    """

    positions: np.ndarray
    scores: np.ndarray
    version: int
    allowed: int
    exact: bool

    def __len__(self) -> int:
        return len(self.positions)


class GalleryIndex:
    """Features and metadata of a gallery; made by `create` or `open`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def create(cls, folder: str | Path, card: dict[str, Any], dim: int, engine: str = "flat") -> "GalleryIndex":
        """An empty index in `folder`; with engine "lance" that may be an address (s3://bucket/index).

        card: JSON-able; what the features were made with (IDENTITY), and `root`, the folder that images are in.
        dim: width of the features. Raises ConfigError for an unknown engine, DataError where there is an index.
        """
        if engine not in ENGINES:
            known = " or ".join(ENGINES)
            raise ConfigError(f"There is no engine {engine!r}{did_you_mean(engine, ENGINES)}; choose {known}.")
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 100_000:
            raise ConfigError(f"dim is {dim!r}; it must be a whole number from 1 to 100,000")
        place = place_of(folder)
        if isinstance(place, str) and engine != "lance":
            raise ConfigError(f"{folder} is not a local folder; choose engine lance for it")
        ENGINES[engine].create(place, dict(card), dim)
        return cls.open(place)

    @classmethod
    def open(cls, folder: str | Path) -> "GalleryIndex":
        """The newest version of the index in `folder`, or under an address.

        Raises DataError where there is none, or a damaged one.
        """
        place = place_of(folder)
        return cls(engine_at(place)(place))

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether there is an index, whole or damaged. Raises DataError where a store cannot be reached."""
        place = place_of(folder)
        return LanceEngine.exists(place) or (isinstance(place, Path) and (place / NAME).is_file())

    def refresh(self) -> None:
        """Go on with the newest version; positions of an earlier one are no longer valid."""
        self._engine.refresh()

    @property
    def place(self) -> Place:
        """Where it lies: a folder (Path), or an address in an object store (str)."""
        return self._engine.place

    def describe(self, card: dict[str, Any]) -> None:
        """Put another card in the place of the one there is, where they differ, as a new version.

        Raises ConfigError as `require` does.
        """
        self.require(card)
        if card != self.card:
            self._engine.describe(dict(card))

    def note(self, name: str) -> Any:
        """What `keep` kept; None where there is nothing. Raises DataError for a damaged file."""
        return self._engine.note(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep something JSON-able that is known of the index, under a name, in the place of what was there."""
        self._engine.keep(name, value)

    @property
    def version(self) -> int:
        """Grows with every change: by 1, or as LanceDB counts."""
        return self._engine.version

    @property
    def card(self) -> dict[str, Any]:
        """What the features were made with and where the images lie, as given to `create` or `describe`."""
        return self._engine.card

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self._engine.dim

    @property
    def engine(self) -> str:
        """Name among ENGINES."""
        return self._engine.name

    @property
    def has_bias(self) -> bool:
        """Whether the rows have a hub_bias."""
        return self._engine.bias

    def __len__(self) -> int:
        return len(self._engine)

    def require(self, card: dict[str, Any]) -> None:
        """Raise ConfigError unless the encoder of `card` is the one the index was built with."""
        differ = [name for name in IDENTITY if name in self.card and self.card[name] != card.get(name)]
        if differ:
            mine, given = (", ".join(f"{name} {of.get(name)}" for name in differ) for of in (self.card, card))
            raise ConfigError(
                f"The index was built with another encoder ({mine}) than this one ({given}): their features cannot be "
                "compared. Search with that encoder, or build the index again."
            )

    def add(self, features: np.ndarray, rows: "pd.DataFrame", replace: bool = False) -> None:
        """Add N items, all or none of them, as one new version.

        features: float32 (N, D), L2-normalised. rows: N rows with the columns of `index_rows.COLUMNS`; hub_bias is
        given for all rows of an index, or for none.
        replace: items whose item_id the index has take the place of those. Raises DataError naming what is wrong.
        """
        if len(rows) == 0 and len(features) == 0:
            return
        table = checked_rows(rows)
        checked = checked_features(features, len(rows), self.dim, table["item_id"])
        self._engine.add(checked, table, "hub_bias" in rows.columns, replace)

    def delete(self, item_ids: Sequence[str]) -> None:
        """Delete items, all or none of them, as one new version. Raises DataError for one that the index lacks."""
        names = [item_ids] if isinstance(item_ids, str) else [str(name) for name in item_ids]
        if names:
            self._engine.delete(names)

    def compact(self) -> None:
        """Give the room of deleted rows back; from 50,000 rows on, make a sketch for exact=False. Positions change."""
        self._engine.compact()

    def verify(self) -> None:
        """Read everything and raise DataError naming a file that is damaged."""
        self._engine.verify()

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: Filter | None = None,
        kind: str = "image",
        exact: bool = True,
        bias: bool = False,
    ) -> Hits:
        """The k items of a kind with the largest inner products with each query, of those that pass `where`.

        queries: float (Q, D). exact=False scores those rows exactly that look best in the sketch which `compact`
        made, where that is faster; the hits say whether it did.
        bias: add each item's hub_bias to its scores.
        Raises ConfigError for an unknown kind, a k below 1, or a name in the filter that no row has.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ConfigError(f"k is {k!r}; it must be a whole number of at least 1")
        self._check_kind(kind)
        checked = checked_queries(queries, self.dim)
        if k * max(1, len(checked)) > MOST_HITS:
            raise ConfigError(f"k is {k:,}: with {len(checked):,} queries that is more than {MOST_HITS:,} hits at once")
        positions, scores, allowed, whole = self._engine.search(checked, int(k), where, kind, exact, bias)
        return Hits(positions, scores, self.version, allowed, whole)

    def select(self, kind: str = "image", where: Filter | None = None) -> np.ndarray:
        """Positions of all items that a search may find, ascending, int64 (n,)."""
        self._check_kind(kind)
        return self._engine.select(kind, where)

    def scores(self, queries: np.ndarray, positions: np.ndarray, bias: bool = False) -> np.ndarray:
        """Scores of given items, float32 (Q, n), the same as `search` gives."""
        return self._engine.scores(checked_queries(queries, self.dim), self._checked(positions), bias)

    def rows(self, positions: np.ndarray) -> "pd.DataFrame":
        """Metadata of items, in the order of `positions`; tags are lists. Raises DataError for one out of range."""
        frame = self._engine.table(self._checked(positions)).to_pandas()
        frame["tags"] = [list(tags) for tags in frame["tags"]]
        return frame

    def features(self, positions: np.ndarray) -> np.ndarray:
        """Features of items, float32 (n, D)."""
        return self._engine.features(self._checked(positions))

    def find(self, item_ids: Sequence[str]) -> np.ndarray:
        """Positions of items by their ids, int64 (n,), -1 where the index has none."""
        return self._engine.find([item_ids] if isinstance(item_ids, str) else list(item_ids))

    def image_path(self, position: int) -> Path:
        """Path of an item's image. Raises DataError for a name that leaves card["root"]."""
        name = self.rows(np.array([position]))["image"].iloc[0]
        of = f"the data of the index {self.place}, and build it again"
        return safe_join(str(self.card.get("root", ".")), name, of)

    def _checked(self, positions: np.ndarray) -> np.ndarray:
        array = np.atleast_1d(np.asarray(positions))
        if array.size == 0:
            return np.zeros(0, np.int64)
        most = self._engine.limit
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= most:
            raise DataError(f"Positions must be a row of whole numbers from 0 to {most - 1:,} (-1 stands for no hit).")
        return array.astype(np.int64)

    def _check_kind(self, kind: str) -> None:
        if kind not in KINDS:
            raise ConfigError(f"There is no kind {kind!r}{did_you_mean(kind, KINDS)} (choose {', '.join(KINDS)}).")
