"""Which segments of an image stand for it: by their likeness to its text, as the paper does, or without any text.

    rows = select_segments(segments, k=10)                                          # quality: leaks nothing
    rows = select_segments(segments, 10, "similarity", features, text, split_role="train")

All is arithmetic on arrays; images and models stay outside. A segment chosen by the caption that is searched for at
test time carries the answer in it: the similarity rule therefore wants to know what its text is for, and refuses
evaluation (`allow_leak=True` is for showing what one would wrongly report).
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ucore.errors import ConfigError
from ucore.masks import Segments, remove_overlapping

Rule = Literal["quality", "similarity"]
SplitRole = Literal["train", "side", "evaluate"]
LARGEST = 50  # masks an image, as in the paper: smaller ones are rarely named in a caption
OVERLAP = 0.7  # intersection over union above which two masks are one thing


def text_parts(text: str) -> list[str]:
    """A text cut at `;`, `,` and `.` (not within a number such as 0.5), as the paper compares long texts; [] if blank.

    >>> text_parts("road of residential; houses, a 2.5 m wall.")
    ['road of residential', 'houses', 'a 2.5 m wall']
    """
    return [part.strip() for part in re.split(r";|[.,](?!\d)", text) if part.strip(" \t\r\n'\"()-")]


def part_features(embed: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """Features float32 (T, D) of long texts: the mean of their parts' features, normalised again.

    embed: from P texts to their L2-normalised features (P, D), for example `partial(embed_texts, encoder)`; it sees
    every distinct part once, all in one call. A blank text is embedded as it is.
    """
    parts = [text_parts(text) or [text] for text in texts]
    distinct = list(dict.fromkeys(part for of_text in parts for part in of_text))
    position = {part: number for number, part in enumerate(distinct)}
    features = np.asarray(embed(distinct), np.float32)
    means = np.stack([features[[position[part] for part in of_text]].mean(0) for of_text in parts])
    return _normalised(means)


def quality(segments: Segments) -> np.ndarray:
    """Area share x predicted IoU x stability, float32 (N,)."""
    share = segments.areas / max(segments.size[0] * segments.size[1], 1)
    return (share * segments.predicted_iou * segments.stability).astype(np.float32)


def candidates(segments: Segments, largest: int = LARGEST, most_overlap: float = OVERLAP) -> np.ndarray:
    """Rows int64 left by the area filter (the `largest` of them) and the overlap filter, best quality first."""
    if not 0 <= most_overlap <= 1 or largest < 1:
        raise ConfigError(f"largest={largest} must be at least 1 and most_overlap={most_overlap} within 0 and 1")
    rows = np.argsort(-segments.areas, kind="stable")[:largest]
    some = segments.take(rows)
    return rows[remove_overlapping(some, quality(some), most_overlap)] if len(rows) else rows


def select_segments(
    segments: Segments,
    k: int = 10,
    rule: Rule = "quality",
    features: np.ndarray | None = None,
    text: np.ndarray | None = None,
    split_role: SplitRole | None = None,
    allow_leak: bool = False,
    largest: int = LARGEST,
    most_overlap: float = OVERLAP,
    diversity: float = 0.5,
) -> np.ndarray:
    """Rows int64 (at most k) of the segments to keep, best first; no segments is an answer.

    After the area and the overlap filter (`candidates`):
    rule "quality": greedily the best (1 - diversity) x quality - diversity x likeness to those already chosen (maximal
        marginal relevance, Carbonell and Goldstein 1998; quality relative to the best). Likeness is the cosine of
        `features`, float (N, D), where given, else the share of the smaller mask that lies in the other.
    rule "similarity": the most similar to `text`, a feature float (D,), as in the paper; needs `features`.
    split_role: what the text is for, which the similarity rule must be told. "train": half of a training pair. "side":
        a text that nobody searches with, such as map tags. "evaluate": the caption of a gallery image, or a query.
    Raises ConfigError for "evaluate", which would report a leak, unless `allow_leak`.
    """
    if k < 0 or not 0 <= diversity <= 1:
        raise ConfigError(f"k={k} must not be negative and diversity={diversity} must be within 0 and 1")
    if rule == "similarity":
        check_role(split_role, allow_leak)
        if features is None or text is None:
            raise ConfigError('rule="similarity" compares crops with a text: give features (N, D) and text (D,)')
    elif rule != "quality":
        raise ConfigError(f'There is no rule {rule!r} for segments: choose "quality" or "similarity"')
    if features is not None and len(features) != len(segments):
        raise ConfigError(f"{len(features)} features for {len(segments)} segments: give one row for each")
    rows = candidates(segments, largest, most_overlap)
    if not len(rows):
        return rows
    vectors = None if features is None else _normalised(np.asarray(features, np.float32)[rows])
    if rule == "similarity":
        assert vectors is not None
        return rows[np.argsort(-(vectors @ np.asarray(text, np.float32)), kind="stable")[:k]]
    some = segments.take(rows)
    if vectors is not None:
        likeness = vectors @ vectors.T
    else:
        inside = some.covered_by()
        likeness = np.maximum(inside, inside.T)
    return rows[diverse(quality(some), likeness, k, diversity)]


def select_similar(
    features: np.ndarray,
    counts: np.ndarray,
    texts: np.ndarray,
    k: int,
    split_role: SplitRole | None,
    allow_leak: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's rule for many images at once: positions int64 (N, k), -1 behind the last, and counts int64 (N,).

    features: float (N, K, D) of the candidates, L2-normalised, of which row n has `counts[n]`; the rest is padding.
    texts: float (N, D), one text an image. split_role, allow_leak: as of `select_segments`.
    """
    check_role(split_role, allow_leak)
    scores = np.einsum("nkd,nd->nk", features, texts, dtype=np.float32, casting="unsafe")
    scores[np.arange(scores.shape[1]) >= np.asarray(counts)[:, None]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    kept = np.minimum(counts, k).astype(np.int64)
    order = np.pad(order, ((0, 0), (0, k - order.shape[1])))
    return np.where(np.arange(k) < kept[:, None], order, -1), kept


def diverse(scores: np.ndarray, likeness: np.ndarray, k: int, diversity: float) -> np.ndarray:
    """At most k positions int64, best first, of maximal marginal relevance. scores: (N,) >= 0; likeness: (N, N)."""
    relevance = np.asarray(scores, np.float64) / max(float(np.max(scores, initial=0.0)), 1e-12)
    closest = np.zeros(len(relevance))
    left = np.ones(len(relevance), bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        gain = np.where(left, (1 - diversity) * relevance - diversity * closest, -np.inf)
        best = int(gain.argmax())
        chosen.append(best)
        left[best] = False
        closest = np.maximum(closest, likeness[best])
    return np.array(chosen, np.int64)


def check_role(split_role: SplitRole | None, allow_leak: bool) -> None:
    """Refuse a choice by text where the text is the answer that retrieval is tested for."""
    if split_role not in ("train", "side", "evaluate"):
        raise ConfigError(
            f'Choosing segments by a text needs split_role="train", "side" or "evaluate" (what the text is for), '
            f"not {split_role!r}"
        )
    if split_role == "evaluate" and not allow_leak:
        raise ConfigError(
            "Segments chosen by the caption that is searched for carry the answer: the recall would be wrong. "
            'Use rule="quality" for evaluation, or allow_leak=True to show what one would wrongly report'
        )


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
