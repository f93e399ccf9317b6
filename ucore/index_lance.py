"""The engine of a gallery index beyond memory: LanceDB tables in a folder or an object store (extra `lance`).

    URI/about.lance     one row: the card, the width of the features, whether the rows have a hub_bias, and notes
    URI/items.lance     one row an item: `index_rows.COLUMNS`, `vector` and `terms` (tags and their bare keys)

Lance keeps versions, commits a change whole or not at all, and applies SQL conditions before the search. Positions are
its row ids. What SQL cannot say (a circle, a polygon) is asked as a box and checked here, with more rows fetched until
there are k. In a local folder a lock keeps other writers out, and files have checksums (`lance_files`). An object store
has neither: Lance then keeps every change whole and loses none of two at the same time, but two processes that add the
same item both succeed. So let one process write; `verify` finds an item that is there twice. Keys and endpoints come
from the environment, as the stores' own tools read them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT, AZURE_STORAGE_ACCOUNT_NAME,
GOOGLE_APPLICATION_CREDENTIALS, ...). Lance must not be used in a process that was forked after it was imported.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ucore.errors import DataError
from ucore.files import only_writer, parse_json, require_writable
from ucore.filter_sql import exactly, one_of
from ucore.filters import Filter
from ucore.index_files import FORMAT
from ucore.index_rows import SCHEMA
from ucore.lance_files import LanceFiles
from ucore.lance_tables import EXTRA, condition_of, lancedb_module, opened, told, vectors_of, with_vectors
from ucore.manifest import few
from ucore.nearest import BLOCK, SPARE, best, rescore
from ucore.places import Place

SMALL = 1000  # rows up to which looking at all of them needs no index of a column
FROM = 50_000  # rows from which on `compact` makes an index of the vectors
SHARE, LEAST = 0.05, 10_000  # of the rows, and rows, that an approximate search looks at; captions find 0.96 of theirs
REFINE = 3  # times k rows whose own vectors are read after the compressed ones
KIND = "IvfSq"  # of the index of vectors: a byte a value; product codes are smaller, but lose a tenth of the best rows
NARROW = 5000  # rows up to which comparing all of them is faster than opening cells
ABOUT, ITEMS = "about", "items"


class LanceEngine:
    """An index at `uri`, read at the version it had when it was opened, written or refreshed."""

    name = "lance"

    def __init__(self, place: Place) -> None:
        self.place, self.uri, self._files = place, str(place), LanceFiles(place)
        with told(self.uri):
            self._database = lancedb_module().connect(self.uri)
        self._facts: tuple[int, dict[str, Any]] = -1, {}
        self.refresh()

    @staticmethod
    def exists(place: Place) -> bool:
        """Whether there is an index. Raises DataError where that cannot be found out."""
        if isinstance(place, Path):
            return (place / f"{ABOUT}.lance").exists()
        with told(place):
            return opened(lancedb_module().connect(place), ABOUT) is not None

    @classmethod
    def create(cls, place: Place, card: dict[str, Any], dim: int) -> None:
        """Empty tables, in the place of what a killed process left. Raises DataError where there is an index."""
        uri = str(place)
        if isinstance(place, Path):
            require_writable(place)
        with told(uri):
            database = lancedb_module().connect(uri)
            if opened(database, ABOUT) is not None:
                raise DataError(f"There is an index in {uri} already. Open it, or choose another folder.")
            # The description comes last: without it there is no index, whatever a killed process left.
            vector = pa.field("vector", pa.list_(pa.float32(), dim + EXTRA))
            schema = SCHEMA.append(vector).append(pa.field("terms", pa.list_(pa.string())))
            left = database.list_tables().tables
            database.create_table(ITEMS, schema=schema, mode="overwrite" if ITEMS in left else "create")
            about = json.dumps({"format": FORMAT, "card": card, "dim": dim, "bias": False, "notes": {}})
            data = pa.table({"about": [about]})
            database.create_table(ABOUT, data=data, mode="overwrite" if ABOUT in left else "create")
        LanceFiles(place).note()

    def refresh(self) -> None:
        """Read the newest version. Raises DataError where there is none, or a damaged one, or one of another format."""
        self._files.check()
        with told(self.uri):
            table = opened(self._database, ABOUT)
            if table is None:
                raise DataError(f"There is no index in {self.uri}. Make one: ucore index build --out {self.uri}")
            about = parse_json(table.to_arrow()["about"][0].as_py())
            if about["format"] != FORMAT:
                raise DataError(
                    f"{self.uri} has format {about['format']!r}, this ucore reads {FORMAT}. Remove and build it again."
                )
            self.card, self.dim, self.bias = about["card"], int(about["dim"]), bool(about["bias"])
            if not isinstance(self.card, dict) or not 1 <= self.dim <= 100_000:
                raise ValueError("its description is damaged")
            self._about: dict[str, Any] = about
            self._items: Any = self._database.open_table(ITEMS)

    def describe(self, card: dict[str, Any]) -> None:
        """Replace the card, in the table `about`."""
        with self._writing():
            self._describe(card=card)
            self.card = card

    def note(self, name: str) -> Any:
        """What `keep` was given under that name when the index was last read; None for nothing."""
        return self._about["notes"].get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep something JSON-able in the table `about`."""
        with self._writing():
            self._describe(notes={**self._about["notes"], name: value})

    def _describe(self, **changed: Any) -> None:
        self._about = {**self._about, **changed}
        self._database.open_table(ABOUT).update(values={"about": json.dumps(self._about)})

    @property
    def version(self) -> int:
        """Of the table of items, as Lance counts; the card and what is kept do not change it."""
        return int(self._items.version)

    @property
    def width(self) -> int:
        """Of the stored vectors: behind the features one coordinate for the bias, and zeros."""
        return self.dim + EXTRA

    limit = 2**62  # positions are below it

    def __len__(self) -> int:
        return self._items.count_rows()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within, the newest version is written; of other processes on this machine none does."""
        alone = only_writer(self.place) if isinstance(self.place, Path) else nullcontext()
        with alone, told(self.uri), self._files.noting():
            self.refresh()
            yield

    def add(self, features: np.ndarray, table: pa.Table, bias: bool, replace: bool) -> None:
        """Add rows, or merge them where items are replaced, in one commit.

        Raises DataError for items that are there (without `replace`), and for a `bias` unlike that of earlier rows.
        """
        with self._writing():
            if len(self) and bias != self.bias:
                what = "lack hub_bias, which this index has" if self.bias else "have hub_bias, which this index lacks"
                raise DataError(f"The rows {what}; build another index.")
            ids = table["item_id"].to_pylist()
            old = self.find(ids) >= 0
            if old.any() and not replace:
                twice = few([name for name, there in zip(ids, old, strict=True) if there])
                raise DataError(f"The index has these items already: {twice}. Delete them, or add with replace.")
            if bias != self.bias:
                self._describe(bias=bias)
                self.bias = bias
            rows = with_vectors(features, table)
            if old.any():
                merge = self._items.merge_insert("item_id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            else:
                self._items.add(rows)

    def delete(self, item_ids: Sequence[str]) -> None:
        """Delete items in one commit. Raises DataError for an unknown one, and then deletes none."""
        with self._writing():
            if unknown := [name for name, row in zip(item_ids, self.find(item_ids), strict=True) if row < 0]:
                raise DataError(f"The index has no item {few(unknown)}; nothing was deleted.")
            self._items.delete(one_of("item_id", item_ids))

    def compact(self) -> None:
        """Join files; where rows are many, index the columns of filters, and from FROM rows on the vectors."""
        from lancedb.index import Bitmap, BTree, IvfSq, LabelList

        with self._writing():
            self._items.optimize()
            if len(self) <= SMALL:
                return
            makers = {"terms": LabelList, "item_id": BTree, "lon": BTree, "lat": BTree, "kind": Bitmap}
            makers |= {"domain": Bitmap, "source": Bitmap}
            for column, maker in makers.items():
                self._items.create_index(column, config=maker(), replace=True)
            if len(self) >= FROM:
                config = IvfSq(distance_type="dot", num_partitions=self._partitions)
                self._items.create_index("vector", config=config, replace=True)

    @property
    def _partitions(self) -> int:
        return max(1, round(len(self) ** 0.5))

    def verify(self) -> None:
        """Raise DataError where a row cannot be read, or an item is there twice: two processes have added it."""
        times: Counter[str] = Counter()
        self._files.check(whole=True)
        with told(self.uri):
            for batch in self._items.search().to_batches():
                times.update(batch["item_id"].to_pylist())
        if twice := [name for name, count in times.items() if count > 1]:
            raise DataError(
                f"{self.uri} holds twice: {few(twice)}. Two processes have written at once: build the index again."
            )

    def select(self, kind: str, where: Filter | None) -> np.ndarray:
        """Row ids that a search may find, ascending int64 (n,)."""
        with told(self.uri):
            found = self._ask(self._items.search(), condition_of(self._items, kind, where), ["lon", "lat"]).to_arrow()
        rows = found["_rowid"].to_numpy().astype(np.int64)
        return np.sort(rows if where is None else rows[exactly(where).mask(found)])

    def search(
        self, queries: np.ndarray, k: int, where: Filter | None, kind: str, exact: bool, bias: bool
    ) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """Positions, scores, how many rows were allowed, and whether all of them were scored exactly.

        Approximate only where that is asked for, `compact` has indexed the vectors and more than NARROW rows pass.
        Raises ConfigError for a name in the filter that no row has.
        """
        found, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        wide = self.widened(queries, bias)
        with told(self.uri):
            condition = condition_of(self._items, kind, where)
            coarse = self._of_kind(kind) if where is None else self._items.count_rows(condition)
            condition = condition if coarse < self._known("rows", self._items.count_rows) else ""
            count = len(self.select(kind, where)) if where is not None and exactly(where).geographic else coarse
            indices = self._known("indices", self._items.list_indices)
            learned = any((one.columns, one.index_type) == (["vector"], KIND) for one in indices)
            exact = exact or not learned or coarse <= NARROW
            part = min(1.0, max(SHARE * len(self), LEAST) / max(coarse, 1))
            probes = None if exact else math.ceil(part * self._partitions)
            for number, query in enumerate(wide):
                rows, values = self._one(query, min(k, count), condition, where, probes)
                found[number, : len(rows)], scores[number, : len(rows)] = rows, values
        return found, scores, count, exact

    def _of_kind(self, kind: str) -> int:
        return self._known(f"kind {kind}", lambda: self._items.count_rows(condition_of(self._items, kind, None)))

    def _known(self, name: str, ask: Callable[[], Any]) -> Any:
        """What is true of this version of the items, asked once."""
        version = self.version
        if self._facts[0] != version:
            self._facts = version, {}
        known = self._facts[1]
        if name not in known:
            known[name] = ask()
        return known[name]

    def _one(
        self, query: np.ndarray, k: int, condition: str, where: Filter | None, probes: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores of the k best rows; k must not be more than there are."""
        want = k + SPARE
        while k:
            ask = self._items.search(query).distance_type("dot").limit(want)
            ask = ask.bypass_vector_index() if probes is None else ask.nprobes(probes).refine_factor(REFINE)
            places = ["lon", "lat"] if where is not None and exactly(where).geographic else []
            got = self._ask(ask, condition, ["vector", "_distance", *places]).to_arrow().combine_chunks()
            rows, whole = got["_rowid"].to_numpy().astype(np.int64), len(got) < want
            vectors = vectors_of(got, self.width)
            order = np.argsort(rows)
            exact = rescore(vectors[order], query[None], np.arange(len(rows))[None])
            last = exact.min(initial=np.inf)
            keep = exactly(where).mask(got)[order] if where is not None and places else np.ones(len(rows), bool)
            rows, values = best(rows[order][keep][None], exact[:, keep], k)
            scale = float(np.linalg.norm(query)) * float(np.linalg.norm(vectors, axis=1).max(initial=1.0))
            error = 2 * self.width * 2.0**-24 * scale
            enough = rows.shape[1] == k and (probes is not None or values[0, -1] > last + error)
            if enough or (whole and probes is None):
                return rows[0], values[0]
            if whole:  # the cells that were opened hold too few
                probes = None
            want *= 4
        return np.zeros(0, np.int64), np.zeros(0, np.float32)

    @staticmethod
    def _ask(ask: Any, condition: str, columns: list[str]) -> Any:
        return (ask.where(condition) if condition else ask).with_row_id(True).select(columns)

    def widened(self, queries: np.ndarray, bias: bool) -> np.ndarray:
        """Queries float32 (Q, width), 1 where the rows have their bias if that counts. Raises DataError without one."""
        if bias and not self.bias:
            raise DataError("This index has no hub_bias; build it with the bank of its checkpoint, or search without.")
        return np.hstack([queries, np.full((len(queries), EXTRA), float(bias), np.float32)])

    def scores(self, queries: np.ndarray, positions: np.ndarray, bias: bool) -> np.ndarray:
        """Float32 (Q, n), computed from the vectors themselves, BLOCK at a time."""
        if not len(positions):
            return np.zeros((len(queries), 0), np.float32)
        wide, parts = self.widened(queries, bias), []
        for start in range(0, len(positions), BLOCK):
            vectors = vectors_of(self._take(positions[start : start + BLOCK], ["vector"]), self.width)
            numbers = np.broadcast_to(np.arange(len(vectors)), (len(queries), len(vectors)))
            parts.append(rescore(vectors, wide, numbers))
        return np.hstack(parts)

    def features(self, positions: np.ndarray) -> np.ndarray:
        """Float32 (n, dim), without the coordinates behind them."""
        if not len(positions):
            return np.zeros((0, self.dim), np.float32)
        return vectors_of(self._take(positions, ["vector"]), self.width)[:, : self.dim]

    def table(self, positions: np.ndarray) -> pa.Table:
        """Metadata of n rows, columns as of `index_rows.SCHEMA`."""
        return self._take(positions, SCHEMA.names) if len(positions) else SCHEMA.empty_table()

    def _take(self, positions: np.ndarray, columns: list[str]) -> pa.Table:
        """Rows in the order of `positions`, repeated as they are. Raises DataError for one that is not there."""
        distinct, place = np.unique(positions, return_inverse=True)
        with told(self.uri):
            found = self._items.take_row_ids(distinct.tolist()).with_row_id().select(columns).to_arrow()
        if len(found) != len(distinct):
            raise DataError(f"{len(distinct) - len(found)} of the positions are not in this version of the index.")
        order = np.argsort(found["_rowid"].to_numpy())
        return found.drop_columns(["_rowid"]).take(pa.array(order[place])).combine_chunks()

    def find(self, item_ids: Sequence[str]) -> np.ndarray:
        """Row ids of items, int64 (n,), -1 where there is none."""
        place: dict[str, int] = {}
        for start in range(0, len(item_ids) if len(self) else 0, 1000):
            some = one_of("item_id", item_ids[start : start + 1000])
            found = self._ask(self._items.search(), some, ["item_id"]).to_arrow()
            place |= dict(zip(found["item_id"].to_pylist(), found["_rowid"].to_pylist(), strict=True))
        return np.array([place.get(name, -1) for name in item_ids], np.int64)
