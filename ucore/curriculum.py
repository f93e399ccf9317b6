"""Which source samples are shown, and how much each counts: those near the target first, then ever more.

    sampler = CurriculumSampler(source_features, target_features)
    kept, weights = sampler.keep(rows, target_rows, cycle=0)

The features are of a frozen encoder, so that the choice does not chase what training changes (UrbanCross's figure).
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from ucore.errors import ConfigError

Curriculum = Literal["none", "cosine", "density"]


def share_of(cycle: int, start: float = 0.2, growth: float = 0.2) -> float:
    """Share of a batch's source samples that are kept in a cycle through the target (paper: min(0.2 + 0.2 c, 1))."""
    return min(start + growth * cycle, 1.0)


class Taken(NamedTuple):
    """What the curriculum made of one step's batch: images of the source, by their rows."""

    cycle: int
    offered: np.ndarray  # int64 (n,), those that the epoch's order gave
    rows: np.ndarray  # int64 (k,), of these the ones kept
    weights: np.ndarray  # float64 (k,), summing to 1


class CurriculumSampler:
    """Keeps the share of source rows that suits the target best.

    source, target: features of a frozen encoder, float (N, D) and (M, D), L2-normalised; of texts, as in the paper.
    kind: "cosine" (the paper's: the mean cosine with the batch's target rows), "density" (how much likelier the target
    than the source has such a row, by a logistic regression between the two), or "none" (everything, weighted as by
    "cosine").
    """

    def __init__(
        self, source: np.ndarray, target: np.ndarray, kind: Curriculum = "cosine", start: float = 0.2,
        growth: float = 0.2,
    ) -> None:  # fmt: skip
        if source.shape[1:] != target.shape[1:]:
            raise ConfigError(
                f"The source's features are {source.shape[1:]}, the target's {target.shape[1:]}; use one encoder"
            )
        self.source, self.target, self.kind = source, target, kind
        self.start, self.growth = start, growth
        self.ratio = density_ratio(source, target) if kind == "density" else None

    def likeness(self, rows: np.ndarray, target_rows: np.ndarray) -> np.ndarray:
        """How well each source row suits the target, float (n,)."""
        if self.ratio is not None:
            return self.ratio[rows]
        return (self.source[rows] @ self.target[target_rows].T).mean(axis=1)

    def keep(self, rows: np.ndarray, target_rows: np.ndarray, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `rows` that are kept, in their order, int64 (k,), and their weights, float64 (k,), summing to 1.

        rows: int64 (n,), of `source`; target_rows: int64 (m,), of `target`; cycle: complete passes through the target,
        from 0. At least two are kept, as a contrast needs them.
        """
        likeness = self.likeness(rows, target_rows)
        share = 1.0 if self.kind == "none" else share_of(cycle, self.start, self.growth)
        count = min(len(rows), max(2, math.floor(share * len(rows))))
        kept = np.sort(np.argsort(-likeness, kind="stable")[:count])
        return kept, scaled(likeness[kept])

    def target_weights(self, rows: np.ndarray, target_rows: np.ndarray, top: int = 5) -> np.ndarray:
        """W2 of the paper: for each target row the sum of its `top` cosines with the source rows, min-max scaled,
        summing to 1; float64 (m,)."""
        cosines = self.target[target_rows] @ self.source[rows].T
        return scaled(np.sort(cosines, axis=1)[:, -top:].sum(axis=1))


def scaled(values: np.ndarray) -> np.ndarray:
    """Min-max scaled, then normalised once, so that they sum to 1; even where all are equal. float64 (n,)."""
    spread = values - values.min()
    total = spread.sum()
    return spread / total if total > 0 else np.full(len(values), 1 / len(values))


def density_ratio(source: np.ndarray, target: np.ndarray, weight_decay: float = 1.0) -> np.ndarray:
    """log p(target row) / p(source row) of every source row, float64 (N,): the logit of a logistic regression between
    both, classes counting alike; it is fitted on half of the source and scores the other half, twice."""
    result = np.empty(len(source))
    halves = np.arange(len(source)) % 2
    for half in (0, 1):
        fitted = source[halves != half]
        result[halves == half] = source[halves == half] @ _direction(fitted, target, weight_decay)
    return result


def _direction(source: np.ndarray, target: np.ndarray, weight_decay: float) -> np.ndarray:
    """Weights float64 (D,) of a balanced logistic regression with target as 1, by Newton's method."""
    rows = np.concatenate([source, target]).astype(np.float64)
    labels = np.repeat([0.0, 1.0], [len(source), len(target)])
    importance = np.repeat([0.5 / len(source), 0.5 / len(target)], [len(source), len(target)])
    weights = np.zeros(rows.shape[1])
    penalty = weight_decay / len(rows)
    for _ in range(25):
        chance = expit(rows @ weights)
        gradient = rows.T @ (importance * (chance - labels)) + penalty * weights
        curvature = (rows * (importance * chance * (1 - chance))[:, None]).T @ rows + penalty * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights
