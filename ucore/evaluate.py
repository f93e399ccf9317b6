"""Retrieval metrics from arrays alone: ranks, recall, median rank, bootstrap intervals.

    relevant = instance_relevance(text_image_index, n_images)          # (T, I) sparse bool
    ranks = best_ranks(similarity.T, relevant)                         # text -> image
    metrics = retrieval_metrics(similarity, text_image_index)          # both directions, mR, medians

Relevance is given, never read off a diagonal. A query's rank is that of its best relevant item; an irrelevant
item with the same score counts as placed before it, so a model that scores everything alike ranks last.

Scores from features are exact. In a plain matrix product two identical captions get scores that differ in the
last bit, depending on where they fall in the BLAS kernel (about 4 % of such pairs in float32): ties break by
chance and answers change with the block size. Here features are first rounded to a grid of 2**-26, finer than
float32 resolves in a dot product of unit vectors. Every partial sum is then a whole number, below 2**53, of
steps of 2**-52; float64 holds it exactly, in whatever order it is summed. It is rounded once, to float32.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy import ndarray as Array
from scipy.sparse import csr_array

from ucore.errors import ConfigError, DataError

CHUNK_BYTES = 128 * 2**20
CUTOFFS = (1, 5, 10)
RECALLS = tuple(f"{direction}_R@{k}" for direction in ("image_to_text", "text_to_image") for k in CUTOFFS)
METRICS = (*RECALLS, "mR", "image_to_text_median_rank", "text_to_image_median_rank")
Ranks = tuple[Array, Array]  # image -> text, text -> image
Metrics = dict[str, float]


def instance_relevance(text_image_index: Array, n_images: int) -> csr_array:
    """Standard protocol: a text is relevant to the one image it was written for.

    `text_image_index`: int (T,), every text's image. Returns bool CSR (T, n_images); transposed for image -> text.
    """
    index = np.asarray(text_image_index)
    if index.ndim != 1 or not index.size or index.dtype.kind not in "iu":
        raise DataError(f"text_image_index is {index.dtype} {index.shape}; give every text an image number.")
    bad = (index < 0) | (index >= n_images)
    if bad.any():
        raise DataError(f"Text {bad.argmax()} names image {index[bad][0]} of {n_images}, counted from 0.")
    return csr_array((np.ones(len(index), bool), (np.arange(len(index)), index)), (len(index), n_images))


def duplicate_aware_relevance(text_image_index: Array, caption_group: Array, n_images: int) -> csr_array:
    """As `instance_relevance`, but a text is relevant to every image that has an identical caption.

    `caption_group`: int (T,), equal for equal captions. Grows with the square of a caption's repetitions.
    """
    own, groups = instance_relevance(text_image_index, n_images), np.asarray(caption_group)
    if groups.shape != own.data.shape:
        raise DataError(f"caption_group is {groups.shape} for {own.nnz} texts; give one id for every text.")
    group = np.unique(groups, return_inverse=True)[1]
    return csr_array((own.data, (group, own.indices)), (group.max() + 1, n_images))[group]


def best_ranks(
    similarity: Array, relevant: Any, *, allow_unanswerable: bool = False, chunk_bytes: int = CHUNK_BYTES
) -> Array:
    """1-based rank of every query's best relevant item, ties counted against the model.

    `similarity`: real (Q, G), higher is closer. `relevant`: bool (Q, G), dense or scipy.sparse. Returns int64 (Q,);
    uses about `chunk_bytes` beyond its inputs. A query with nothing relevant is an error, or ranks 0 with
    `allow_unanswerable`. Raises DataError for shapes that disagree and for NaN or infinity.
    """
    similarity = _matrix(similarity, "similarity")
    relevance = _relevance(relevant, similarity.shape, allow_unanswerable)
    ranks = np.zeros(len(similarity), np.int64)
    for rows in _slices(len(similarity), chunk_bytes // similarity.shape[1]):
        scores = similarity[rows]
        query, item = relevance[rows].nonzero()
        ranks[rows] = _block_ranks(query, scores[query, item], [scores], len(scores))
    return ranks


def tie_counts(similarity: Array, relevant: Any, *, chunk_bytes: int = CHUNK_BYTES) -> Array:
    """int64 (3, Q), of every query's best relevant item: what scores above it, relevant ones equal to it, itself
    included, and irrelevant ones equal to it. Arguments as of `best_ranks`; zeros where nothing is relevant."""
    similarity = _matrix(similarity, "similarity")
    relevance = _relevance(relevant, similarity.shape, True)
    counts = np.zeros((3, len(similarity)), np.int64)
    for rows in _slices(len(similarity), chunk_bytes // similarity.shape[1]):
        scores, (query, item) = similarity[rows], relevance[rows].nonzero()
        pair_scores, best = scores[query, item], np.full(len(scores), np.inf, similarity.dtype)
        asks = np.unique(query)
        best[asks] = -np.inf
        np.maximum.at(best, query, pair_scores)
        own = np.bincount(query[pair_scores == best[query]], minlength=len(scores))
        equal = np.count_nonzero(scores == best[:, None], axis=1)
        counts[:, rows] = np.count_nonzero(scores > best[:, None], axis=1), own, equal - own
    return counts


def feature_ranks(
    query_features: Array,
    gallery_features: Array,
    relevant: Any,
    *,
    allow_unanswerable: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Array:
    """`best_ranks(similarity_matrix(query_features, gallery_features), relevant)`, never forming the matrix.

    Features are real (Q, D) and (G, D), best L2-normalised; `relevant` bool (Q, G), best CSR. Uses about
    `chunk_bytes` beyond its inputs, whatever Q and G; the answer does not depend on it.
    """
    queries, gallery, size = _grids(query_features, gallery_features, chunk_bytes)
    relevance = _relevance(relevant, (len(queries.features), len(gallery.features)), allow_unanswerable)
    ranks = np.zeros(relevance.shape[0], np.int64)
    for rows in _slices(len(ranks), size):
        block = queries[rows]
        query, item = relevance[rows].nonzero()
        pair_scores = np.empty(len(query), np.float32)
        for part in _slices(len(query), size):
            pair_scores[part] = np.einsum("ij,ij->i", block[query[part]], gallery[item[part]])
        blocks = ((block @ gallery[part].T).astype(np.float32) for part in _slices(relevance.shape[1], size))
        ranks[rows] = _block_ranks(query, pair_scores, blocks, len(block))
    return ranks


def similarity_matrix(query_features: Array, gallery_features: Array) -> Array:
    """Dot products, float32 (Q, G), of features (Q, D) and (G, D); equal features score exactly equal."""
    queries, gallery, size = _grids(query_features, gallery_features, CHUNK_BYTES)
    similarity = np.empty((len(queries.features), len(gallery.features)), np.float32)
    for rows, columns in product(*(_slices(length, size) for length in similarity.shape)):
        similarity[rows, columns] = queries[rows] @ gallery[columns].T
    return similarity


def recall_at_k(similarity: Array, relevant: Any, k: int) -> float:
    """Percentage of queries with a relevant item among the first `k`; arguments as `best_ranks`."""
    if k < 1 or k != int(k):
        raise ConfigError(f"k is {k}; recall needs a whole number of at least 1.")
    return 100.0 * float(np.mean(best_ranks(similarity, relevant) <= k))


def retrieval_ranks(similarity: Array, text_image_index: Array, caption_group: Array | None = None) -> Ranks:
    """(image -> text ranks, text -> image ranks) of `similarity`, real (I, T); duplicate-aware given groups.

    Every text is a query. Of the images only those with a caption are, one rank each by ascending index; an
    image without captions stays in the gallery that the texts search.
    """
    similarity = _matrix(similarity, "similarity")
    relevant = _text_relevance(text_image_index, caption_group, *similarity.shape)
    image_ranks = best_ranks(similarity, relevant.T, allow_unanswerable=True)
    return image_ranks[image_ranks > 0], best_ranks(similarity.T, relevant)


def retrieval_ranks_from_features(
    image_features: Array, text_features: Array, text_image_index: Array, caption_group: Array | None = None
) -> Ranks:
    """`retrieval_ranks` from features (I, D) and (T, D), never holding the (I, T) matrix."""
    relevant = _text_relevance(text_image_index, caption_group, len(image_features), len(text_features))
    image_ranks = feature_ranks(image_features, text_features, relevant.T, allow_unanswerable=True)
    return image_ranks[image_ranks > 0], feature_ranks(text_features, image_features, relevant)


def metrics_from_ranks(i2t_ranks: Array, t2i_ranks: Array) -> Metrics:
    """R@1/5/10 of both directions (percent), mR (the mean of these six), median ranks; keyed by METRICS."""
    both = [np.asarray(i2t_ranks), np.asarray(t2i_ranks)]
    if any(ranks.ndim != 1 or not ranks.size or ranks.min() < 1 for ranks in both):
        raise DataError("Ranks must be two vectors of numbers from 1, not empty; see retrieval_ranks.")
    recalls = [100.0 * float(np.mean(ranks <= k)) for ranks in both for k in CUTOFFS]
    values = [*recalls, float(np.mean(recalls)), *(float(np.median(ranks)) for ranks in both)]
    return dict(zip(METRICS, values, strict=True))


def retrieval_metrics(similarity: Array, text_image_index: Array, caption_group: Array | None = None) -> Metrics:
    """The nine METRICS of `similarity`, real (I, T), under the protocol of `retrieval_ranks`."""
    return metrics_from_ranks(*retrieval_ranks(similarity, text_image_index, caption_group))


def retrieval_metrics_from_features(
    image_features: Array, text_features: Array, text_image_index: Array, caption_group: Array | None = None
) -> Metrics:
    """The nine METRICS from features (I, D) and (T, D), in bounded memory."""
    ranks = retrieval_ranks_from_features(image_features, text_features, text_image_index, caption_group)
    return metrics_from_ranks(*ranks)


def bootstrap_ci(
    i2t_ranks: Array,
    t2i_ranks: Array,
    text_image_index: Array,
    *,
    seed: int,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile interval (low, high) of each of METRICS over queries, the gallery staying as it is.

    Ranks as from `retrieval_ranks`. Captioned images are drawn with replacement, each with all its captions,
    since captions of one image succeed or fail together (cluster bootstrap: Davison & Hinkley 1997, 3.8).
    Both directions share a draw, so mR has an interval too. Raises ConfigError for settings out of range.
    """
    (draws,) = _resampled_metrics([(i2t_ranks, t2i_ranks)], text_image_index, n_resamples, seed)
    low, high = _percentiles(draws, confidence)
    return dict(zip(METRICS, zip(low, high, strict=True), strict=True))


def paired_difference(
    ranks_a: Ranks,
    ranks_b: Ranks,
    text_image_index: Array,
    *,
    seed: int,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """(difference, low, high) of mR(a) - mR(b), in points, for two models' ranks on the same gallery.

    Both models share the draws of `bootstrap_ci`: these queries can tell a difference whose interval lacks 0.
    """
    a, b = _resampled_metrics([ranks_a, ranks_b], text_image_index, n_resamples, seed)[..., METRICS.index("mR")]
    low, high = _percentiles(a - b, confidence)
    return metrics_from_ranks(*ranks_a)["mR"] - metrics_from_ranks(*ranks_b)["mR"], low, high


def _resampled_metrics(models: list[Ranks], text_image_index: Array, n_resamples: int, seed: int) -> Array:
    """METRICS (models, n_resamples, 9) over draws of the captioned images, the same for every model."""
    image_of_text = np.unique(text_image_index, return_inverse=True)[1]
    n_images = int(image_of_text.max(initial=-1)) + 1
    if any(np.shape(i2t) != (n_images,) or np.shape(t2i) != image_of_text.shape for i2t, t2i in models):
        found = f"{n_images} captioned images and {len(image_of_text)} texts"
        raise DataError(f"text_image_index names {found}, the ranks do not; take both from the same split.")
    rng, draws = np.random.default_rng(seed), np.empty((len(models), max(0, n_resamples), len(METRICS)))
    for draw in range(n_resamples):
        counts = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
        for model, (i2t, t2i) in enumerate(models):
            metrics = metrics_from_ranks(np.repeat(i2t, counts), np.repeat(t2i, counts[image_of_text]))
            draws[model, draw] = list(metrics.values())
    return draws


def _percentiles(draws: Array, confidence: float) -> list:
    if not len(draws) or not 0 < confidence < 1:
        raise ConfigError("A bootstrap needs n_resamples of at least 1 and a confidence between 0 and 1.")
    return np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).tolist()


def _block_ranks(query: Array, pair_scores: Array, blocks: Iterable[Array], n: int) -> Array:
    """Ranks (n,) from the queries and scores of the relevant pairs, and from all scores, in blocks (n, g).

    No relevant item scores above the best one, so the irrelevant are counted without masking the relevant.
    """
    best = np.full(n, -np.inf, pair_scores.dtype)
    np.maximum.at(best, query, pair_scores)
    ranks = 1 - np.bincount(query[pair_scores == best[query]], minlength=n)
    for scores in blocks:
        ranks += np.count_nonzero(scores >= best[:, None], axis=1)
    return np.where(best > -np.inf, ranks, 0)


def _slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


class _Grid:
    """Features (N, D) read as float64 rows rounded to the grid on which dot products are exact."""

    def __init__(self, features: Array, name: str):
        self.features = _matrix(features, name)
        slices = _slices(len(self.features), 2**17 // self.features.shape[1])
        norm = max(np.linalg.norm(self.features[rows].astype(np.float64), axis=1).max() for rows in slices)
        # Unit vectors get one grid even if too long by a rounding error; 1.3 squared < 2 keeps sums below 2**53.
        self.step = 2.0 ** (np.ceil(np.log2(norm / 1.3)) - 26) if norm else 1.0

    def __getitem__(self, rows: slice | Array) -> Array:
        grid = self.features[rows].astype(np.float64) / self.step
        return np.multiply(np.rint(grid, out=grid), self.step, out=grid)


def _grids(query_features: Array, gallery_features: Array, chunk_bytes: int) -> tuple[_Grid, _Grid, int]:
    """Both feature sets, and the number of rows whose blocks fit in `chunk_bytes`."""
    queries, gallery = _Grid(query_features, "query features"), _Grid(gallery_features, "gallery features")
    d, other = queries.features.shape[1], gallery.features.shape[1]
    if d != other:
        raise DataError(f"Features of {d} and {other} dimensions do not compare; use one encoder for both.")
    # b rows take 20 b^2 bytes of scores (float64, float32, the block before, bool) and 40 d b of features.
    return queries, gallery, max(1, int(np.sqrt(d**2 + chunk_bytes / 20) - d))


def _matrix(array: Array, name: str) -> Array:
    matrix = np.asarray(array)
    if matrix.ndim != 2 or not matrix.size or matrix.dtype.kind not in "fiu":
        raise DataError(f"The {name} must be a non-empty real matrix, not {matrix.dtype} {matrix.shape}.")
    matrix = matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)
    largest = min(1e100, float(np.finfo(matrix.dtype).max))  # the square of 1e100 is finite
    for rows in _slices(len(matrix), 2**17 // matrix.shape[1]):
        usable = (np.abs(matrix[rows]) <= largest).all(axis=1)
        if not usable.all():
            bad = rows.start + usable.argmin()
            raise DataError(f"Row {bad} of the {name} holds NaN or infinity; check what the encoder returned.")
    return matrix


def _relevance(relevant: Any, shape: tuple[int, ...], allow_unanswerable: bool) -> Any:
    if np.shape(relevant) != shape or getattr(relevant, "dtype", None) != np.dtype(bool):
        raise DataError(f"Relevance must be a bool array of {shape}, queries x gallery, not {np.shape(relevant)}.")
    relevance = csr_array(relevant, copy=True)
    relevance.sum_duplicates()
    relevance.eliminate_zeros()
    unanswerable = np.diff(relevance.indptr) == 0
    if unanswerable.any() and not allow_unanswerable:
        raise DataError(f"The gallery holds nothing relevant to query {unanswerable.argmax()}; leave that query out.")
    return relevance


def _text_relevance(index: Array, groups: Array | None, n_images: int, n_texts: int) -> csr_array:
    if np.shape(index) != (n_texts,):
        raise DataError(f"text_image_index is {np.shape(index)} for {n_texts} texts; give every text an image.")
    return instance_relevance(index, n_images) if groups is None else duplicate_aware_relevance(index, groups, n_images)
