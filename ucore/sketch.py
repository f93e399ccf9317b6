"""Approximate search: every row that may be found is looked at, in a sketch of 8 bits a direction; exact sums decide.

A sketch keeps the directions in which the rows differ most (principal components, Pearson 1901), as bytes: a fraction
of the rows' size, read in a fraction of the time. The rows with the best sketched products are candidates, and their
exact scores order them, as in `nearest`. No row is left out by a guess, as it is where only the cells near a query are
opened: a text lies near none of the images' cells. Recall therefore holds for queries of the other modality and under
every filter. The price is time in proportion to the rows.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ucore.nearest import SEVERAL, best, blocks_of, faiss_module, rescore

FROM = 50_000  # rows from which on a sketch is worth its room
LEAST = 25_000  # rows up to which looking at all of them exactly is as fast
VARIANCE = 0.8  # share of the rows' variance that the directions hold
STEP, FEWEST = 16, 64  # directions: a multiple, for the processor's registers, and no fewer
CANDIDATES = 1000  # rows that exact scores decide on, at least; and 50 for every hit
SAMPLE = 50_000  # rows that directions are learned from


@dataclass(frozen=True, eq=False)
class Sketch:
    """mean: float32 (W,), of the rows. axes: float32 (W, S), orthogonal, of one length, such that a row's difference
    from the mean, times them, fits into signed bytes. codes: uint8 (N, S), these bytes plus 128.

    A query's product with a row is, but for the same constant in all rows, about that of `queries @ axes` with codes.
    """

    mean: np.ndarray
    axes: np.ndarray
    codes: np.ndarray

    @classmethod
    def learn(cls, vectors: np.ndarray, rows: np.ndarray, plain: int, seed: int = 0) -> "Sketch":
        """A sketch without codes: directions of a sample of `rows`, int64 (n,), of vectors float32 (N, W).

        plain: coordinates that are features. One behind them, the bias of hubs, is a direction of its own: queries
        weigh it by much more than a feature.
        """
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(rows, min(len(rows), SAMPLE), replace=False))
        sample = np.concatenate(list(blocks_of(vectors, chosen)))
        mean = sample.mean(axis=0)
        sample -= mean
        variances, directions = np.linalg.eigh(sample[:, :plain].T @ sample[:, :plain])
        held = np.cumsum(variances[::-1]) / max(variances.sum(), np.finfo(np.float32).tiny)
        bias = int(vectors.shape[1] > plain)
        size = -(-(max(FEWEST, int(np.searchsorted(held, VARIANCE)) + 1) + bias) // STEP) * STEP
        axes = np.zeros((vectors.shape[1], size), np.float32)
        axes[:plain, : min(plain, size - bias)] = directions[:, ::-1][:, : size - bias]
        if bias:
            axes[plain, -1] = 1
        largest = np.abs(sample @ axes).max()
        return cls(mean, axes * np.float32(127 / largest if largest else 1), np.zeros((0, size), np.uint8))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes uint8 (n, S) of rows float32 (n, W)."""
        return (np.clip(np.rint((vectors - self.mean) @ self.axes), -127, 127) + 128).astype(np.uint8)

    def search(
        self, vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `nearest`, exact among the candidates. allowed: bool (N,), the rows that may be found; None: all."""
        want = min(len(self.codes), max(CANDIDATES, 50 * k))
        queries = np.ascontiguousarray(queries, np.float32)
        asked = queries @ self.axes
        asked *= 127 / np.maximum(np.abs(asked).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        found = self._candidates(np.rint(asked), want, allowed)  # FAISS multiplies bytes with bytes
        found.sort(axis=1)
        scores = rescore(vectors, queries, found)
        scores[found < 0] = -np.inf
        found, scores = best(found, scores, k)
        pad = ((0, 0), (0, k - found.shape[1]))
        return np.pad(found, pad, constant_values=-1), np.pad(scores, pad, constant_values=-np.inf)

    @cached_property
    def _parts(self) -> list[tuple[int, Any]]:
        """The codes in FAISS, a part for every thread, and the row that each begins with."""
        faiss = faiss_module()
        count, size = self.codes.shape
        pieces = faiss.omp_get_max_threads() if 4 * count * size >= SEVERAL else 1
        edges = np.linspace(0, count, pieces + 1).astype(int) // 8 * 8  # whole bytes of a filter's bits
        edges[-1], parts = count, []
        for start, stop in itertools.pairwise(edges.tolist()):
            kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
            index: Any = faiss.IndexScalarQuantizer(size, kind, faiss.METRIC_INNER_PRODUCT)
            index.add_sa_codes(self.codes[start:stop])
            parts.append((start, index))
        return parts

    def _candidates(self, asked: np.ndarray, want: int, allowed: np.ndarray | None) -> np.ndarray:
        """`want` rows a query with the largest sketched products, int64 (Q, want), in any order; -1 where fewer."""
        faiss = faiss_module()
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")

        def walk(part: tuple[int, Any]) -> tuple[np.ndarray, np.ndarray]:
            (start, index), selector = part, None
            if bits is not None:
                own = bits[start // 8 :]
                selector = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(index.ntotal, faiss.swig_ptr(own)))
            scores, places = index.search(asked, min(want, index.ntotal), params=selector)
            return scores, np.where(places < 0, -1, places + start)

        several = len(self._parts) > 1
        # Threads of FAISS's own inside each of these would only wait for each other.
        with ThreadPoolExecutor(len(self._parts), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            made = list((pool.map if several else map)(walk, self._parts))
        scores, found = (np.hstack(of) for of in zip(*made, strict=True))
        if found.shape[1] > want:
            keep = np.argpartition(-scores, want - 1, axis=1)[:, :want]
            found = np.take_along_axis(found, keep, 1)
        return found
