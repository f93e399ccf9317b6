"""What recall would be if equal scores were put in order by chance, as the sorting of most evaluations does.

    metrics, intervals = random_tie_metrics(similarity, text_image_index, seed=0)

`evaluate` counts ties against the model. Published tables of RSICD and its relatives come from a sort, which puts equal
captions of different images in any order. Here nothing is drawn: each query has its chance of a hit, and a recall is
the mean of the chances.
"""

from typing import Any

import numpy as np
from numpy import ndarray as Array

from ucore.evaluate import CUTOFFS, RECALLS, Metrics, instance_relevance, tie_counts

TIES = "ties at random"  # in the label of such rows


def hit_chances(similarity: Array, relevant: Any) -> Array:
    """Chance float64 (Q, 3) that a relevant item is among the first 1, 5 and 10, equal scores in random order.

    Arguments as of `evaluate.best_ranks`; a query without a relevant item has the chance 0.
    """
    above, own, others = tie_counts(similarity, relevant)
    chances = np.zeros((len(above), len(CUTOFFS)))
    for column, k in enumerate(CUTOFFS):
        places, missed = np.clip(k - above, 0, None), np.ones(len(above))
        for place in range(k):  # drawn without replacement, from those equal to the best
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
    similarity = np.asarray(similarity)
    relevant = instance_relevance(text_image_index, len(similarity))
    captioned = np.unique(text_image_index)
    images, texts = hit_chances(similarity, relevant.T)[captioned], hit_chances(similarity.T, relevant)
    owner, n = np.searchsorted(captioned, text_image_index), len(captioned)
    values, rng = np.empty((1 + n_resamples, len(RECALLS) + 1)), np.random.default_rng(seed)
    for draw in range(len(values)):
        counts = np.ones(n) if draw == 0 else np.bincount(rng.integers(n, size=n), minlength=n)
        # Not a matrix product: its last bits depend on the number of threads.
        of_images, of_texts = (
            (counts[whose, None] * chances).sum(axis=0) / counts[whose].sum()
            for whose, chances in ((np.arange(n), images), (owner, texts))
        )
        values[draw, :-1] = 100 * np.concatenate([of_images, of_texts])
    values[:, -1] = values[:, :-1].mean(axis=1)
    low, high = np.quantile(values[1:], [0.025, 0.975], axis=0).tolist()
    names = (*RECALLS, "mR")
    return dict(zip(names, values[0].tolist(), strict=True)), dict(zip(names, zip(low, high, strict=True), strict=True))
