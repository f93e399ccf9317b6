"""Hubs: texts that fit every image a little and images that fit every text crowd out the right answers.

A bank of *training* images and captions tells which they are. For image i, text t, cosine s and temperature T,

    score(i, t) = s(i, t) - T log mean_b exp(s(b, t) / T) - T log mean_c exp(s(i, c) / T)

with b over the bank's images and c over its captions: how well t fits i, beside how well t fits training images in
general and i fits training captions in general (inverted softmax, Smith et al. 2017, https://arxiv.org/abs/1702.03859;
with a bank of training data, as QB-Norm, https://arxiv.org/abs/2112.12777). T is the model's own temperature. The first
correction changes image -> text alone, the second text -> image alone; neither sees the gallery that is searched.
Where segments count in the score, s is the score of images and segments in one (`fusion.fused_biases`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ucore.errors import DataError

MOST_BANK = 10_000  # images, and captions, in a bank: the mean over more would not change noticeably
CHUNK = 2048  # rows at a time: 2048 x 10,000 float64 scores are 160 MB


@dataclass(frozen=True)
class Bank:
    """Features of training images and of training captions, float (B, D) and (C, D), L2-normalised.

    segments: float (B, K, D), of the images' segments, L2-normalised, 0 where there is none; None: they do not count.
    """

    images: np.ndarray
    texts: np.ndarray
    segments: np.ndarray | None = None


def distinct_rows(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 (n,) that differ in any of the arrays (N, ...), the first of each kind, and each row's place there."""
    places: dict[bytes, int] = {}
    rows = (b"".join(array[row].tobytes() for array in arrays) for row in range(len(arrays[0])))
    place = np.array([places.setdefault(row, len(places)) for row in rows], np.int64)
    return np.unique(place, return_index=True)[1], place


def bias_of(scores_of: Callable[[slice], np.ndarray], count: int, temperature: float) -> np.ndarray:
    """-T log mean_b exp(s / T) of `count` items, float32, from their scores with the bank, float (n, B), in slices."""
    bias = np.empty(count)
    for start in range(0, count, CHUNK):
        scores = scores_of(slice(start, start + CHUNK)).astype(np.float64) / temperature
        top = scores.max(axis=1)
        bias[start : start + CHUNK] = -temperature * (top + np.log(np.exp(scores - top[:, None]).mean(axis=1)))
    return bias.astype(np.float32)


def hub_bias(features: np.ndarray, bank_features: np.ndarray, temperature: float) -> np.ndarray:
    """What to add to every score of an item, float32 (N,): -T log mean_b exp(s(b, item) / T).

    features: float (N, D), texts or images; bank_features: float (B, D), of the other kind; both L2-normalised.
    Identical rows get identical values, so that exact ties stay ties. Raises DataError when the widths differ.
    """
    if features.shape[1] != bank_features.shape[1]:
        raise DataError(
            f"The bank has {bank_features.shape[1]} dimensions, the features {features.shape[1]}; "
            "use the bank of the same checkpoint."
        )
    rows, place = distinct_rows(features)
    distinct, bank = features[rows].astype(np.float64), bank_features.astype(np.float64).T
    return bias_of(lambda some: distinct[some] @ bank, len(rows), temperature)[place]


def correct_hubs(
    similarity: np.ndarray, image_features: np.ndarray, text_features: np.ndarray, bank: Bank, temperature: float
) -> np.ndarray:
    """`similarity`, float32 (I, T), of image features (I, D) and text features (T, D), with hubs corrected."""
    texts = hub_bias(text_features, bank.images, temperature)
    images = hub_bias(image_features, bank.texts, temperature)
    return similarity + texts + images[:, None]
