"""Two ways of doing something, each with several seeds, on the same gallery: how sure is the difference?"""

from collections.abc import Sequence

import numpy as np

from ucore.errors import ConfigError, DataError
from ucore.evaluate import CUTOFFS, Ranks, metrics_from_ranks


def seeded_difference(
    ours: Sequence[Ranks],
    base: Sequence[Ranks],
    text_image_index: np.ndarray,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """(difference, low, high) of mR in points: the mean over seeds of ours less base, and its percentile interval.

    ours, base: ranks as from `retrieval_ranks`, one pair a seed, in the same order of seeds. Captioned images, each
    with all its captions, and seeds are drawn with replacement, both at once and the same for both sides: the interval
    says what other queries and other seeds would have shown. With one seed it is `evaluate.paired_difference`'s.
    Raises DataError where the two sides do not have as many seeds, or the ranks not as many queries.
    """
    difference, draws = _draws(ours, base, text_image_index, seed, n_resamples, confidence)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return difference, float(low), float(high)


def pooled_difference(
    directions: Sequence[tuple[str, Sequence[Ranks], Sequence[Ranks], np.ndarray]],
    *,
    seed: int = 0,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """(difference, low, high) of mR in points: the mean over these directions, and its interval over queries and seeds.

    directions: the gallery's name, ranks of ours and of base, one pair a seed, and text_image_index, as in
    `seeded_difference`. Directions that lead to one gallery are drawn with the same queries, which they share, and all
    with the same seeds, as those from one source share its models.
    """
    if not directions:
        raise DataError("There is no direction to compare; run some.")
    galleries = sorted({name for name, *_ in directions})
    found = [
        _draws(ours, base, owner, (seed, galleries.index(name)), n_resamples, confidence, np.random.default_rng(seed))
        for name, ours, base, owner in directions
    ]
    draws = np.mean([one for _, one in found], axis=0)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.mean([difference for difference, _ in found])), float(low), float(high)


def _draws(
    ours: Sequence[Ranks],
    base: Sequence[Ranks],
    text_image_index: np.ndarray,
    seed: int | tuple[int, int],
    n_resamples: int,
    confidence: float,
    seeds_rng: np.random.Generator | None = None,
) -> tuple[float, np.ndarray]:
    """The difference of mR, mean over seeds, and (n_resamples,) of it with queries and seeds drawn again.

    seeds_rng: what draws the seeds; by default what has drawn the queries.
    """
    if len(ours) != len(base) or not ours:
        raise DataError(f"{len(ours)} and {len(base)} seeds do not pair up; run the same seeds on both sides.")
    if n_resamples < 1 or not 0 < confidence < 1:
        raise ConfigError("A bootstrap needs n_resamples of at least 1 and a confidence between 0 and 1.")
    owner = np.unique(text_image_index, return_inverse=True)[1]
    n_images, rng = int(owner.max(initial=-1)) + 1, np.random.default_rng(seed)
    if any(np.shape(i2t) != (n_images,) or np.shape(t2i) != owner.shape for i2t, t2i in (*ours, *base)):
        raise DataError(f"The ranks are not those of {n_images} images and {len(owner)} texts; take one split's.")
    times = np.stack(
        [np.bincount(rng.integers(n_images, size=n_images), minlength=n_images) for _ in range(n_resamples)]
    ).astype(np.float64)
    by_seed = np.stack([_means(a, owner, times) - _means(b, owner, times) for a, b in zip(ours, base, strict=True)])
    seeds = (seeds_rng or rng).integers(len(ours), size=(len(ours), n_resamples))
    draws = np.take_along_axis(by_seed, seeds, axis=0).mean(axis=0)
    each = [metrics_from_ranks(*a)["mR"] - metrics_from_ranks(*b)["mR"] for a, b in zip(ours, base, strict=True)]
    return float(np.mean(each)), draws


def _means(ranks: Ranks, owner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """mR (draws,) of one model where each image counts `times`, float (draws, images), with all its texts."""
    i2t, t2i = ranks
    texts = times @ np.bincount(owner, minlength=times.shape[1])
    recalls = [times @ (i2t <= k) / times.sum(axis=1) for k in CUTOFFS]
    recalls += [times @ np.bincount(owner, t2i <= k, times.shape[1]) / texts for k in CUTOFFS]
    return 100 * np.mean(recalls, axis=0)
