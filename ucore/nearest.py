"""The k rows with the largest inner products, exactly: FAISS proposes in float32, float64 decides.

Sums of float32 products depend on the order in which they are added, so equal rows may differ in their last bit, by
where they lie. A row's score is therefore its inner product in float64, rounded to float32, and ties go to the
row that comes first. FAISS is asked for a few rows more than k; where its own rounding could hide a better row behind
the last of these (many equal captions do that), it is asked for more.
"""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np

from ucore.errors import DataError, UserError

SPARE = 8  # rows more than k that FAISS proposes at first
BATCH = 16  # from so many queries on, blocks of rows are multiplied with all of them at once
BLOCK = 32_768  # rows of such a block: 64 MB at 512 dimensions
AT_ONCE = 4_000_000  # values that are multiplied in float64 at a time: 32 MB
SEVERAL = 2**23  # values, 32 MB, that are worth a second thread for one query: some milliseconds of work
DENSE = 0.6  # share of rows from which on walking over all of them is faster than jumping from one to the next


def faiss_module() -> Any:
    """faiss, imported when first needed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError('Searching needs faiss: pip install "faiss-cpu"') from error
    return faiss


@cache
def crew(threads: int) -> ThreadPoolExecutor:
    """Threads that stay, each of which lets FAISS use no more of its own: these would only wait for each other."""
    faiss = faiss_module()
    return ThreadPoolExecutor(threads, "nearest", initializer=faiss.omp_set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=crew.cache_clear)  # a child has none of its parent's threads


def nearest(
    vectors: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None = None, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Positions int64 (Q, k) and scores float32 (Q, k), best first; -1 and -inf where fewer than k rows are given.

    vectors: float32 (N, W), C-contiguous, may be memory-mapped. queries: float32 (Q, W).
    rows: int64 (n,), ascending, the rows that may be found; None: all. scale: bound of the rows' norms.
    """
    count = len(vectors) if rows is None else len(rows)
    k, queries = int(k), np.ascontiguousarray(queries, np.float32)
    positions, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    open_ = np.arange(len(queries))
    want = k + SPARE
    while count and len(open_):
        asked = queries[open_]
        if want >= count:
            found, exact = _all(vectors, asked, rows, k)
            certain = np.ones(len(open_), bool)
        else:
            found, last = _propose(vectors, asked, want, rows)
            found.sort(axis=1)
            exact = rescore(vectors, asked, found)
            found, exact = best(found, exact, k)
            error = vectors.shape[1] * 2.0**-24 * np.linalg.norm(asked, axis=1) * scale
            certain = exact[:, -1] > last + 2 * error
        done = open_[certain]
        positions[done, : found.shape[1]], scores[done, : found.shape[1]] = found[certain], exact[certain]
        open_ = open_[~certain]
        want *= 4
    return positions, scores


def blocks_of(vectors: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, block after block. Of a whole mapped file they are read: mapped pages would pile up in memory."""
    mapped: Any = vectors.base if isinstance(vectors.base, np.memmap) else None
    path = mapped.filename if mapped is not None and mapped.shape == vectors.shape else None
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        if path is None:
            yield vectors[some]
            continue
        block: Any = np.empty((len(some), vectors.shape[1]), np.float32)
        with open(path, "rb", buffering=0) as file:
            for row, target in zip((some * block.strides[0]).tolist(), block, strict=True):
                if os.preadv(file.fileno(), [target], row) != target.nbytes:
                    raise DataError(f"{path} ends too early. Build the index again.")
        yield block


def best(positions: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of candidates (Q, C) whose positions ascend: by score, ties by position."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)


def rescore(vectors: np.ndarray, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Inner products of query q with the rows positions[q], summed in float64, float32 (Q, C)."""
    scores = np.empty(positions.shape, np.float32)
    columns = max(1, AT_ONCE // vectors.shape[1])  # of one query, where these are many: a map asks for all rows
    step = max(1, columns // max(1, positions.shape[1]))
    for start, first in itertools.product(range(0, len(queries), step), range(0, positions.shape[1], columns)):
        some = slice(start, start + step), slice(first, first + columns)
        rows = vectors[positions[some]].astype(np.float64)
        scores[some] = np.einsum("qcd,qd->qc", rows, queries[some[0]].astype(np.float64))
    return scores


def _all(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all rows, every score in float64; memory for 16 million scores at a time."""
    count = len(vectors) if rows is None else len(rows)
    k = min(k, count)
    positions, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    step = max(1, 16_000_000 // count)
    for first in range(0, len(queries), step):
        wide = queries[first : first + step].astype(np.float64)
        every = np.empty((len(wide), count), np.float32)
        for start in range(0, count, BLOCK):
            some = slice(start, start + BLOCK)
            every[:, some] = wide @ vectors[some if rows is None else rows[some]].astype(np.float64).T
        order = np.argsort(-every, axis=1, kind="stable")[:, :k]
        positions[first : first + step] = order if rows is None else rows[order]
        scores[first : first + step] = np.take_along_axis(every, order, 1)
    return positions, scores


def _propose(
    vectors: np.ndarray, queries: np.ndarray, want: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """`want` rows a query with the largest float32 scores, int64 (Q, want), in any order, and the smallest of these."""
    faiss = faiss_module()
    count = len(vectors) if rows is None else len(rows)
    if len(queries) >= BATCH:
        cuts = [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]
        parts = map(partial(_multiply, vectors, queries, want, rows), cuts)
    else:
        pieces = faiss.omp_get_max_threads() if count * vectors.shape[1] >= SEVERAL else 1
        edges = np.linspace(0, count, pieces + 1).astype(int)
        cuts = [slice(*edge) for edge in itertools.pairwise(edges.tolist())]
        walk = partial(_walk, vectors, queries, want, rows)
        parts = list(crew(pieces).map(walk, cuts) if pieces > 1 else map(walk, cuts))
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    found = np.full((len(queries), 0), -1, np.int64)
    for more_scores, more in parts:
        scores, found = np.hstack([scores, more_scores]), np.hstack([found, more])
        if scores.shape[1] > want:
            keep = np.argpartition(-scores, want - 1, axis=1)[:, :want]
            scores, found = np.take_along_axis(scores, keep, 1), np.take_along_axis(found, keep, 1)
    return found, scores.min(axis=1)


def _multiply(
    vectors: np.ndarray, queries: np.ndarray, want: int, rows: np.ndarray | None, cut: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Best rows of a block, for many queries, by a matrix product."""
    faiss = faiss_module()
    block = np.ascontiguousarray(vectors[cut] if rows is None else vectors[rows[cut]])
    scores, found = faiss.knn(queries, block, min(want, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
    return scores, (found + cut.start if rows is None else rows[cut][found])


def _walk(
    vectors: np.ndarray, queries: np.ndarray, want: int, rows: np.ndarray | None, cut: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Best rows of a part, for few queries, without copying any row."""
    faiss = faiss_module()
    first, part, selector = 0, vectors, None
    if rows is None:
        first, part = cut.start, vectors[cut]
    else:
        ids = np.ascontiguousarray(rows[cut])
        first, stop = int(ids[0]), int(ids[-1]) + 1
        part, ids = vectors[first:stop], ids - first
        if len(ids) < DENSE * len(part):
            selector = faiss.IDSelectorArray(len(ids), faiss.swig_ptr(ids))
        elif len(ids) < len(part):
            chosen = np.zeros(len(part), bool)
            chosen[ids] = True
            bits = np.packbits(chosen, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(part), faiss.swig_ptr(bits))
    want = min(want, cut.stop - cut.start)
    scores, found = np.empty((len(queries), want), np.float32), np.empty((len(queries), want), np.int64)
    data, places, values = (faiss.swig_ptr(array) for array in (part, found, scores))
    faiss.knn_inner_product(
        faiss.swig_ptr(queries), data, part.shape[1], len(queries), len(part), want, values, places, selector
    )
    return scores, found + first
