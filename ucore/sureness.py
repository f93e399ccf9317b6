"""How sure a hit is: the share of hits with such a score that were right when the answers were known.

The captions of a validation split are asked of the very gallery that is searched. Of each, the first MOST hits are
taken, right where the image is the caption's own or has the same caption. A logistic curve through these points (Platt
1999, "Probabilistic outputs for support vector machines", with his targets away from 0 and 1) turns a score into a
probability. What it means, and what not:

- it is about *finding the very image that a caption was written for*; another image may show the same and counts as
  wrong, so that "shows what was asked" is likelier than the number says;
- it holds for queries that read like the captions, in the whole gallery; a filter or other ground changes it;
- scores are those of `hubness`, with the query's own correction, so that they compare between queries.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MOST = 10  # hits of a query that are looked at
FEWEST = 100  # hits to fit a curve to; fewer tell nothing


@dataclass(frozen=True)
class Sureness:
    """P(right | score) = 1 / (1 + exp(-(slope x score + offset))).

    queries, hits: what it was fitted to; right: share of these hits that were right; error: mean distance between what
    it says and what was so, over ten equal parts of the hits (expected calibration error).
    """

    slope: float
    offset: float
    queries: int
    hits: int
    right: float
    error: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities float64 of scores of any shape."""
        return _logistic(self.slope * np.asarray(scores, np.float64) + self.offset)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Sureness | None":
        return None if not values else cls(**values)


def fit_sureness(scores: np.ndarray, right: np.ndarray) -> Sureness | None:
    """Fit to the scores, real (Q, K), of K hits each of Q queries, and whether they were right, bool (Q, K).

    None where there are too few, all or none are right, or a higher score is not likelier right.
    """
    x, y = np.asarray(scores, np.float64).ravel(), np.asarray(right, bool).ravel()
    known = np.isfinite(x)
    x, y = x[known], y[known]
    wins, count = int(y.sum()), len(y)
    if count < FEWEST or wins in (0, count):
        return None
    target = np.where(y, (wins + 1) / (wins + 2), 1 / (count - wins + 2))
    middle, spread = float(x.mean()), float(x.std()) or 1.0
    design = np.column_stack([(x - middle) / spread, np.ones(count)])
    weights = np.zeros(2)
    for _ in range(100):  # Newton; the loss is convex
        p = _logistic(design @ weights)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (p - target))
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    if not np.isfinite(weights).all() or weights[0] <= 0:
        return None
    slope = weights[0] / spread
    fitted = Sureness(float(slope), float(weights[1] - slope * middle), len(scores), count, wins / count, 0.0)
    said, order = fitted(x), np.argsort(x, kind="stable")
    parts = [(abs(said[part].mean() - y[part].mean()), len(part)) for part in np.array_split(order, 10)]
    return Sureness(**{**fitted.to_dict(), "error": float(sum(gap * size for gap, size in parts) / count)})


def _logistic(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
