"""How sure a hit is: the share of hits with such a score that were right when the answers were known.

The captions of a validation split are asked of the very gallery that is searched. Of each, the first MOST hits are
taken, right where the image is the caption's own or has the same caption. A logistic curve through these points (Platt
1999, "Probabilistic outputs for support vector machines", with his targets away from 0 and 1) turns two numbers into a
probability: the hit's score, and what `hubness` would add for the query, which tells a query that fits everything
from one that fits little. What it means, and what not:

- it is about *finding the very image that a caption was written for*; another image may show the same and counts as
  wrong, so that "shows what was asked" is likelier than the number says;
- it holds for queries that read like the captions, in the whole gallery; a filter or other ground changes it;
- hits of one query are ordered by their scores alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ucore.errors import DataError
from ucore.files import parse_json

SURENESS = "sureness.json"  # in the folder of an index
MOST = 10  # hits of a query that are looked at
FEWEST = 100  # hits to fit a curve to; fewer tell nothing


@dataclass(frozen=True)
class Sureness:
    """P(right) = 1 / (1 + exp(-(slope x score + own x the query's bias + offset))).

    queries, hits: what it was fitted to; right: share of these hits that were right; error: mean distance between what
    it says and what was so, over ten equal parts of these hits (expected calibration error).
    """

    slope: float
    own: float
    offset: float
    queries: int
    hits: int
    right: float
    error: float

    def __call__(self, scores: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
        """Probabilities float64 of scores of any shape. bias: of the queries, which is none of the scores' parts."""
        return _logistic(self.slope * np.asarray(scores, np.float64) + self.own * np.asarray(bias) + self.offset)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Sureness | None":
        if not values:
            return None
        numbers = [value for value in values.values() if type(value) in (int, float) and abs(value) < 1e12]
        if len(numbers) != len(values):
            raise ValueError("a value is no number")
        return cls(**values)


def read_sureness(folder: Path) -> Sureness | None:
    """What the index in `folder` knows of itself; None where it is not known. Raises DataError for a damaged file."""
    path = folder / SURENESS
    if not path.is_file():
        return None
    try:
        return Sureness.from_dict(parse_json(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged. Delete it, or build the index again.") from error


def fit_sureness(scores: np.ndarray, bias: np.ndarray, right: np.ndarray) -> Sureness | None:
    """Fit to the scores, real (Q, K), of K hits each of Q queries, the queries' biases (Q,), and what was right, bool
    (Q, K). None where there are too few, all or none are right, or a higher score is not likelier right.
    """
    x = np.column_stack([np.ravel(scores), np.repeat(bias, np.shape(scores)[1])]).astype(np.float64)
    known = np.isfinite(x).all(axis=1)
    x, y = x[known], np.ravel(right)[known]
    wins, count = int(y.sum()), len(y)
    if count < FEWEST or wins in (0, count):
        return None
    target = np.where(y, (wins + 1) / (wins + 2), 1 / (count - wins + 2))
    middle, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread < 1e-9] = 1.0
    design = np.column_stack([(x - middle) / spread, np.ones(count)])
    weights = np.zeros(3)
    for _ in range(100):  # Newton; the loss is convex
        p = _logistic(design @ weights)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(3)
        step = np.linalg.solve(hessian, design.T @ (p - target))
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    if not np.isfinite(weights).all() or weights[0] <= 0:
        return None
    slope, own = (weights[:2] / spread).tolist()
    offset = float(weights[2] - slope * middle[0] - own * middle[1])
    fitted = Sureness(slope, own, offset, len(scores), count, wins / count, 0.0)
    said = fitted(x[:, 0], x[:, 1])
    parts = np.array_split(np.argsort(said, kind="stable"), 10)
    error = sum(abs(said[part].mean() - y[part].mean()) * len(part) for part in parts) / count
    return replace(fitted, error=float(error))


def _logistic(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
