"""What recall would be if equal scores were put in order by chance, as the sorting of most evaluations does.

    metrics, intervals = random_tie_metrics(similarity, text_image_index, seed=0)

`evaluate` counts ties against the model. Published tables of RSICD and its relatives come from a sort, which puts equal
captions of different images in any order. Here nothing is drawn: each query has its chance of a hit, and a recall is
the mean of the chances.
"""

from typing import Any

import numpy as np
from numpy import ndarray as Array

from ucore.evaluate import CUTOFFS, RECALLS, Metrics, instance_relevance

TIES = "ties at random"  # in the label of such rows
SCORES = 2**22  # looked at together


def hit_chances(similarity: Array, relevant: Array) -> Array:
    """Chance float64 (Q, 3) that a relevant item is among the first 1, 5 and 10, equal scores in random order.

    similarity: finite real (Q, G). relevant: bool (Q, G); a query without a relevant item has the chance 0.
    """
    similarity, relevant = np.asarray(similarity), np.asarray(relevant, bool)
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    above = (similarity > best).sum(axis=1)
    equal = similarity == best
    own = (equal & relevant).sum(axis=1)
    others = equal.sum(axis=1) - own
    chances = np.zeros((len(similarity), len(CUTOFFS)))
    for column, k in enumerate(CUTOFFS):
        places, missed = np.clip(k - above, 0, None), np.ones(len(similarity))
        for place in range(k):  # draws without replacement, from those equal to the best
            left = np.clip(others + own - place, 1, None)
            missed *= np.where(place < places, np.clip(others - place, 0, None) / left, 1)
        chances[:, column] = np.where(own > 0, 1 - missed, 0)
    return chances


def random_tie_metrics(
    similarity: Array, text_image_index: Array, *, seed: int, n_resamples: int = 1000
) -> tuple[Metrics, dict[str, tuple[float, float]]]:
    """RECALLS and mR (percent) of real (I, T) scores by the standard protocol, ties broken at random, in expectation.

    With 95 % intervals over images, drawn as by `evaluate.bootstrap_ci` with the same seed. text_image_index: int (T,).
    """
    relevant = instance_relevance(text_image_index, len(similarity))  # (T, I)
    by_image, by_text = relevant.T.tocsr(), relevant.tocsr()
    captioned = np.flatnonzero(np.diff(by_image.indptr))
    images = _chances(similarity, by_image)[captioned]
    texts = _chances(np.asarray(similarity).T, by_text)
    owner = np.searchsorted(captioned, text_image_index)
    n, rng = len(captioned), np.random.default_rng(seed)
    draws = [np.ones(n), *(np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_resamples))]
    values = np.array([100 * np.r_[_mean(images, counts), _mean(texts, counts[owner])] for counts in draws])
    values = np.c_[values, values.mean(axis=1)]
    low, high = np.quantile(values[1:], [0.025, 0.975], axis=0).tolist()
    names = (*RECALLS, "mR")
    return dict(zip(names, values[0].tolist(), strict=True)), dict(zip(names, zip(low, high, strict=True), strict=True))


def _chances(similarity: Array, relevant: Any) -> Array:
    size = max(1, SCORES // similarity.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(similarity), size)]
    return np.concatenate([hit_chances(similarity[part], relevant[part].toarray()) for part in parts])


def _mean(chances: Array, counts: Array) -> Array:
    return counts @ chances / counts.sum()
