"""Approximate search: rows are grouped into cells of near neighbours, and a query looks into the nearest cells only.

As an inverted file (Sivic and Zisserman 2003, https://doi.org/10.1109/ICCV.2003.1238663), but cells hold row numbers,
not copies of vectors, and how many cells are looked into is not fixed: they are opened, nearest first, until they hold
enough rows *that the filter lets through*. A narrow filter therefore opens more cells at the same cost, and one that
lets through fewer rows than would be looked at anyway is searched exactly. With a fixed number of cells, recall
collapses under a narrow filter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ucore.nearest import BLOCK, blocks_of, faiss_module, nearest

FROM = 50_000  # rows from which on cells are learned
SHARE, LEAST = 0.03, 10_000  # of the rows, and rows, that a query looks at
FINER, MOST = 4, 8192  # cells: so many times the root of the rows, and no more than these
SAMPLE = 32  # rows a cell that centroids are learned from
ROUNDS = 10  # of k-means


@dataclass(frozen=True, eq=False)
class Cells:
    """centroids: float32 (C, W), of norm 1. cell: int32 (N,), the cell of each row."""

    centroids: np.ndarray
    cell: np.ndarray

    @classmethod
    def learn(cls, vectors: np.ndarray, rows: np.ndarray, seed: int = 0) -> "Cells":
        """Cells by spherical k-means on a sample, in two levels: groups, then the cells of each; every row gets one.

        Small cells are worth more than well-placed ones: a query of the other modality lies far from all rows, and its
        nearest are strewn over many cells. The second level is what makes so many of them cheap.

        vectors: float32 (N, W). rows: int64 (n,), which of them.
        """
        count = int(np.clip(round(FINER * len(rows) ** 0.5), 1, min(MOST, max(1, len(rows)))))
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(rows, min(len(rows), SAMPLE * count), replace=False))
        sample = np.concatenate(list(blocks_of(vectors, chosen)))
        groups = _kmeans(sample, round(count**0.5), seed)
        group, fine = _nearest(sample, groups), []
        for number in range(len(groups)):
            own = sample[group == number]
            share = round(count * len(own) / len(sample))
            fine.append(_kmeans(own, min(max(1, share), len(own)), seed) if len(own) else groups[number : number + 1])
        made = cls(np.concatenate(fine), np.zeros(0, np.int32))
        members = np.split(np.arange(len(made.centroids)), np.cumsum([len(of) for of in fine])[:-1])
        return cls(made.centroids, np.concatenate([made._placed(block, groups, members)
                                                   for block in blocks_of(vectors, rows)]))  # fmt: skip

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """Cells for more rows, int32 (N,); vectors: float32 (N, W)."""
        return self._placed(vectors, *self._groups)

    @cached_property
    def _groups(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Centres of groups of cells, and the cells of each."""
        groups = _kmeans(self.centroids, round(len(self.centroids) ** 0.5), 0)
        member = _nearest(self.centroids, groups)
        used = np.unique(member)
        return groups[used], [np.flatnonzero(member == number) for number in used]

    def _placed(self, vectors: np.ndarray, groups: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
        """Of the group that is nearest to each row, the nearest cell; members: the cells of each group."""
        group, cell = _nearest(vectors, groups), np.empty(len(vectors), np.int32)
        for number in np.unique(group):
            own = np.flatnonzero(group == number)
            cell[own] = members[number][_nearest(vectors[own], self.centroids[members[number]])]
        return cell

    @cached_property
    def _rows(self) -> list[np.ndarray]:
        """The rows of each cell, ascending."""
        order = np.argsort(self.cell, kind="stable")
        return np.split(order, np.cumsum(self._sizes)[:-1])

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.bincount(self.cell, minlength=len(self.centroids))

    @property
    def look(self) -> int:
        """How many rows a query looks at."""
        return max(LEAST, int(SHARE * len(self.cell)))

    def search(
        self,
        vectors: np.ndarray,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
        scale: float = 1.0,
        look: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `nearest`, of about `look` rows a query; never fewer than k, where k are allowed.

        allowed: bool (N,), the rows that may be found; None: all. look: None means `self.look`.
        """
        enough = max(self.look if look is None else look, k)
        found, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        for number, query in enumerate(queries):
            # Not a matrix product: BLAS wakes threads for it, which takes longer than the sum.
            order = np.argsort(-np.einsum("cd,d->c", self.centroids, query), kind="stable")
            rows = self._open(order[self._sizes[order] > 0], allowed, enough)
            rows.sort()
            one = slice(number, number + 1)
            found[one], scores[one] = nearest(vectors, queries[one], k, rows, scale)
        return found, scores

    def _open(self, order: np.ndarray, allowed: np.ndarray | None, enough: int) -> np.ndarray:
        """The allowed rows of cells, none of them empty, in this order until there are enough of them; int64."""
        if allowed is None:
            share, allowed = 1.0, np.broadcast_to(True, self.cell.shape)
        else:
            share = np.count_nonzero(allowed) / len(allowed)
        usual, opened, held, parts = share * len(self.cell) / max(1, len(order)), 0, 0, [np.zeros(0, np.int64)]
        while held < enough and opened < len(order):
            # Filtered in steps of as many cells as are likely still needed: a filter's rows are rarely spread evenly.
            cells = order[opened : opened + math.ceil((enough - held) / usual)] if usual else order[opened:]
            rows = np.concatenate([self._rows[cell] for cell in cells])
            passed = allowed[rows]
            ends = np.cumsum(self._sizes[cells])
            sums = held + np.cumsum(np.add.reduceat(passed, ends - self._sizes[cells], dtype=np.int64))
            last = int(np.searchsorted(sums, enough))  # the cell that makes it enough
            if last < len(cells):
                rows, passed = rows[: ends[last]], passed[: ends[last]]
            parts.append(rows[passed])
            held, opened = int(sums[min(last, len(cells) - 1)]), opened + len(cells)
        return np.concatenate(parts)


def _kmeans(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centroids float32 (count, W) of norm 1, or the vectors themselves, where they are as few; float32 (n, W)."""
    if count == len(vectors):
        return vectors
    kmeans = faiss_module().Kmeans(vectors.shape[1], count, niter=ROUNDS, seed=seed, spherical=True,
                                   min_points_per_centroid=1, max_points_per_centroid=256)  # fmt: skip
    kmeans.train(vectors)
    return kmeans.centroids


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The centroid with the largest product for each row, int32 (N,)."""
    parts = (vectors[start : start + BLOCK] @ centroids.T for start in range(0, len(vectors), BLOCK))
    return np.concatenate([np.zeros(0, np.int32), *(part.argmax(axis=1).astype(np.int32) for part in parts)])
