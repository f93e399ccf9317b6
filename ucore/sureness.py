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

How far off it is, is measured on captions that it was not fitted to: two curves, each of one half of the images, say
what the other half's hits are worth. The curve that is kept is fitted to both. `reliability` asks another split.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ucore.errors import DataError
from ucore.hubness import Bank, hub_bias
from ucore.index import GalleryIndex

SURENESS = "sureness"  # the name under which an index keeps it
MOST = 10  # hits of a query that are looked at
MOST_QUERIES = 5000  # of a split
FEWEST = 100  # hits to fit a curve to; fewer tell nothing
PARTS = 10  # of the hits, by what is said of them, in which that is compared with what was so

Bin = tuple[float, float, int]  # what was said on average, the share that was right, hits


@dataclass(frozen=True)
class Sureness:
    """P(right) = 1 / (1 + exp(-(slope x score + own x the query's bias + offset))).

    queries, hits: what it was fitted to; right: share of these hits that were right. error: mean distance between what
    is said and what was so, over PARTS equal parts of hits that the curve was not fitted to (expected calibration
    error, Naeini et al. 2015); None where there are too few for two halves. bins: these parts.
    """

    slope: float
    own: float
    offset: float
    queries: int
    hits: int
    right: float
    error: float | None = None
    bins: tuple[Bin, ...] = ()

    def __call__(self, scores: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
        """Probabilities float64 of scores of any shape. bias: of the queries, which is none of the scores' parts."""
        return _logistic(self.slope * np.asarray(scores, np.float64) + self.own * np.asarray(bias) + self.offset)

    @property
    def told(self) -> str:
        """The error, in words."""
        return "not measured" if self.error is None else f"{self.error:.1%} where it was not learned"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Sureness | None":
        """None for nothing. Raises ValueError, TypeError or AttributeError for what `to_dict` did not make."""
        if not values:
            return None
        bins = tuple(tuple(part) for part in values.get("bins", ()))
        unmeasured = values.get("error") is None  # nothing else may be
        numbers = [value for name, value in values.items() if name != "bins" and not (name == "error" and unmeasured)]
        for value in (*numbers, *(value for part in bins for value in part)):
            if type(value) not in (int, float) or not abs(value) < 1e12:
                raise ValueError("a value is no number")
        return cls(**{**values, "bins": bins})


class Asked(NamedTuple):
    """Hits of Q captions: scores float (Q, MOST), -inf where there is none; the captions' bias float (Q,); which hits
    are right, bool (Q, MOST); and whose the captions are, int64 (Q,)."""

    scores: np.ndarray
    bias: np.ndarray
    right: np.ndarray
    owner: np.ndarray


def read_sureness(index: GalleryIndex) -> Sureness | None:
    """What an index knows of itself; None where it is not known. Raises DataError where that is damaged."""
    try:
        return Sureness.from_dict(index.note(SURENESS))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"What {index.place} knows of its sureness is damaged. Repeat ucore index build.") from error


def ask(index: GalleryIndex, bank: Bank | None, temperature: float, split: str) -> Asked | None:
    """The captions of a split, asked of all images of an index; None where it has none.

    At most MOST_QUERIES of them, evenly spread. An image with the very same caption is right, too.
    """
    rows = index.rows(index.select("text"))
    queries = rows[(rows["split"] == split).to_numpy()]
    if not len(queries):
        return None
    spread = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).round().astype(int))
    queries = queries.iloc[spread]
    features = index.features(index.find(list(queries["item_id"])))
    hits = index.search(features, MOST, bias=bank is not None)
    bias = np.zeros(len(features)) if bank is None else hub_bias(features, bank.images, temperature)
    owners: dict[str, set[str]] = {}
    for text, name in zip(rows["text"], rows["sample_id"], strict=True):
        owners.setdefault(text, set()).add(name)
    found = hits.positions
    names = np.full(found.shape, "", object)
    names[found >= 0] = index.rows(found[found >= 0])["sample_id"].to_numpy()
    right = np.array([[name in owners[text] for name in of] for text, of in zip(queries["text"], names, strict=True)])
    return Asked(hits.scores, bias, right, np.unique(queries["sample_id"], return_inverse=True)[1])


def measure_sureness(index: GalleryIndex, bank: Bank | None, temperature: float) -> Sureness | None:
    """How sure a hit is, from the validation captions in the index; None where it has too few."""
    asked = ask(index, bank, temperature, "val")
    return None if asked is None else fit_sureness(*asked)


def reliability(
    index: GalleryIndex, bank: Bank | None, temperature: float, split: str
) -> tuple[float, tuple[Bin, ...]] | None:
    """The error of what the index knows of its sureness, asked with the captions of another split, and the parts.

    None where it knows nothing, or has no captions of the split.
    """
    sure, asked = read_sureness(index), ask(index, bank, temperature, split)
    if sure is None or asked is None:
        return None
    bias = np.broadcast_to(asked.bias[:, None], asked.scores.shape)
    known = np.isfinite(asked.scores)
    return calibration_error(sure(asked.scores[known], bias[known]), asked.right[known])


def calibration_error(said: np.ndarray, right: np.ndarray) -> tuple[float, tuple[Bin, ...]]:
    """Mean distance between probabilities, float (N,), and what was so, bool (N,), over PARTS equal parts."""
    parts = [part for part in np.array_split(np.argsort(said, kind="stable"), PARTS) if len(part)]
    bins = tuple((float(said[part].mean()), float(right[part].mean()), len(part)) for part in parts)
    return sum(abs(of_said - of_right) * count for of_said, of_right, count in bins) / len(said), bins


def fit_sureness(
    scores: np.ndarray, bias: np.ndarray, right: np.ndarray, owner: np.ndarray | None = None
) -> Sureness | None:
    """Fit to the scores, real (Q, K), of K hits each of Q queries, the queries' biases (Q,), and what was right, bool
    (Q, K). None where there are too few, all or none are right, or a higher score is not likelier right.

    owner: int (Q,), whose the queries are: those of one image stay in one half where the error is measured.
    """
    owner = np.arange(len(scores)) if owner is None else owner
    x = np.column_stack([np.ravel(scores), np.repeat(bias, np.shape(scores)[1])]).astype(np.float64)
    known = np.isfinite(x).all(axis=1)
    x, y = x[known], np.ravel(right)[known]
    curve = _curve(x, y)
    if curve is None:
        return None
    slope, own, offset = curve
    fitted = Sureness(slope, own, offset, len(scores), len(y), float(y.mean()))
    second = np.repeat(np.unique(owner, return_inverse=True)[1] % 2 == 1, np.shape(scores)[1])[known]
    said = np.full(len(y), np.nan)
    for half in (second, ~second):
        other = _curve(x[~half], y[~half])
        if other is None or not half.any():
            return fitted
        said[half] = replace(fitted, slope=other[0], own=other[1], offset=other[2])(x[half, 0], x[half, 1])
    error, bins = calibration_error(said, y)
    return replace(fitted, error=error, bins=bins)


def _curve(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float] | None:
    """Slope, own and offset of the curve through points, float64 (N, 2), that are right, bool (N,), or not."""
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
    return slope, own, offset


def _logistic(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
