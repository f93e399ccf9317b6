"""Approximate search: every row that may be found is looked at, in a sketch of 8 bits a direction; exact sums decide.

A sketch keeps the directions in which the rows differ most (principal components, Pearson 1901), as bytes: a fraction
of the rows' size, read in a fraction of the time. The rows with the best sketched products are candidates, and their
exact scores order them, as in `nearest`. No row is left out because it lies elsewhere than the query, as with inverted
files or graphs of neighbours, which a text enters far from all images. What may be missed is a row that owes its place
to directions in which rows hardly differ. The price is time that grows with the rows.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ucore.nearest import SEVERAL, best, blocks_of, crew, faiss_module, rescore

FROM = 50_000  # rows from which on a sketch is worth its room
WORTH = 25  # times the candidates: the rows from which on looking at all of them exactly is slower
VARIANCE = 0.8  # share of the rows' variance that the directions hold
STEP, FEWEST = 16, 64  # directions: a multiple, for the processor's registers, and no fewer
CANDIDATES, A_HIT = 1000, 50  # rows that exact scores decide on, at least; and for every hit
SAMPLE = 50_000  # rows that directions are learned from
AT_ONCE = 64  # queries, whose candidates are held


@dataclass(frozen=True, eq=False)
class Sketch:
    """mean: float32 (W,), of the rows. axes: float32 (W, S): orthogonal columns of one length, or zeros where there are
    more of them than directions. codes: uint8 (N, S), a row's difference from the mean, times the axes, as a signed
    byte plus 128; the length is such that this seldom cuts anything.

    A query's product with a row is, but for the same constant in all rows, about that of `queries @ axes` with codes.
    """

    mean: np.ndarray
    axes: np.ndarray
    codes: np.ndarray

    @classmethod
    def learn(cls, vectors: np.ndarray, rows: np.ndarray, plain: int, seed: int = 0) -> "Sketch":
        """A sketch without codes: directions of a sample of `rows`, int64 (n,), of vectors float32 (N, W).

        plain: coordinates that are features. Two directions are always among them, since queries may weigh them by much
        more than their rows differ: that of the mean, which is where the two modalities lie apart, and a coordinate
        behind the features, the bias of hubs.
        """
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(rows, min(len(rows), SAMPLE), replace=False))
        sample = np.concatenate(list(blocks_of(vectors, chosen)))
        mean = sample.mean(axis=0)
        sample -= mean
        first = mean[:plain] / max(np.linalg.norm(mean[:plain]), np.finfo(np.float32).tiny)
        others = sample[:, :plain] - np.outer(sample[:, :plain] @ first, first)
        square = others.T @ others
        # Below zero, so that of all directions without variance the mean's comes last, and is left out here.
        variances, directions = np.linalg.eigh(square - (np.trace(square) + 1) * np.outer(first, first))
        variances = np.maximum(variances, 0)
        held = np.cumsum(variances[::-1]) / max(variances.sum(), np.finfo(np.float32).tiny)
        always = 1 + int(vectors.shape[1] > plain)
        size = -(-(max(FEWEST, int(np.searchsorted(held, VARIANCE)) + 1 + always)) // STEP) * STEP
        axes = np.zeros((vectors.shape[1], size), np.float32)
        count = min(plain - int(first.any()), size - always)
        axes[:plain, 0], axes[:plain, 1 : 1 + count] = first, directions[:, ::-1][:, :count]
        if always == 2:
            axes[plain, -1] = 1
        largest = np.abs(sample @ axes).max()
        return cls(mean, axes * np.float32(127 / largest if largest else 1), np.zeros((0, size), np.uint8))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes uint8 (n, S) of rows float32 (n, W)."""
        return (np.clip(np.rint((vectors - self.mean) @ self.axes), -127, 127) + 128).astype(np.uint8)

    @staticmethod
    def pays(rows: int, k: int) -> bool:
        """Whether asking a sketch for the k best of so many rows is faster than looking at all of them exactly."""
        return rows > WORTH * max(CANDIDATES, A_HIT * k)

    def search(
        self, vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `nearest`, exact among the candidates: positions int64 (Q, k) and scores float32 (Q, k).

        vectors: float32 (N, W). queries: float32 (Q, W). allowed: bool (N,), the rows that may be found; None: all.
        Of equal rows those that come first are found.
        """
        want = min(len(self.codes), max(CANDIDATES, A_HIT * k))
        positions, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        for start in range(0, len(queries), AT_ONCE):
            some = np.ascontiguousarray(queries[start : start + AT_ONCE], np.float32)
            found = self._candidates(self._asked(some), want, bits)
            found.sort(axis=1)
            exact = rescore(vectors, some, found)
            exact[found < 0] = -np.inf
            found, exact = best(found, exact, k)
            rows, width = slice(start, start + len(some)), found.shape[1]
            positions[rows, :width], scores[rows, :width] = found, exact
        return positions, scores

    def _asked(self, queries: np.ndarray) -> np.ndarray:
        """What FAISS multiplies codes with: whole numbers from -127 to 127, as float32 (Q, S)."""
        sketched = _scaled(queries) @ self.axes  # scaled before, too, so that nothing overflows
        return np.rint(127 * _scaled(sketched))

    @cached_property
    def _parts(self) -> list[tuple[int, Any]]:
        """The codes in FAISS, a part for every thread, and the row that each begins with."""
        faiss = faiss_module()
        count, size = self.codes.shape
        pieces = faiss.omp_get_max_threads() if 4 * count * size >= SEVERAL else 1
        edges = np.linspace(0, count, pieces + 1).astype(int) // 8 * 8  # whole bytes of a filter's bits
        edges[-1], parts = count, []
        for start, stop in itertools.pairwise(edges.tolist()):
            if start == stop:
                continue
            kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
            index: Any = faiss.IndexScalarQuantizer(size, kind, faiss.METRIC_INNER_PRODUCT)
            index.add_sa_codes(self.codes[start:stop])
            parts.append((start, index))
        return parts

    def _candidates(self, asked: np.ndarray, want: int, bits: np.ndarray | None) -> np.ndarray:
        """`want` rows a query with the largest sketched products, int64 (Q, want), in any order; -1 where fewer.

        asked: float32 (Q, S), see `_asked`. bits: uint8, a bit for each row that may be found; None: all.
        """
        faiss = faiss_module()

        def walk(part: tuple[int, Any]) -> tuple[np.ndarray, np.ndarray]:
            (start, index), selector = part, None
            if bits is not None:
                own = bits[start // 8 :]
                selector = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(index.ntotal, faiss.swig_ptr(own)))
            scores, places = index.search(asked, min(want, index.ntotal), params=selector)
            return scores, np.where(places < 0, -1, places + start)

        parts = self._parts
        made = list(crew(len(parts)).map(walk, parts) if len(parts) > 1 else map(walk, parts))
        scores, found = (np.hstack(of) for of in zip(*made, strict=True))
        if found.shape[1] > want:  # of equal ones the first, however many threads there are
            keep = np.lexsort((found, -scores), axis=1)[:, :want]
            found = np.take_along_axis(found, keep, 1)
        return found


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Rows whose largest value is 1 or -1; rows of zeros as they are."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    return rows / np.where(largest > 0, largest, 1)
