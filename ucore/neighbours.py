"""Who is like whom, by features of the frozen towers: soft positives, and batches of hard negatives.

Both use what a tower knew before training, so that they are the same whatever was trained, and after resuming.
"""

from pathlib import Path

import numpy as np

from ucore.features import text_tower_features
from ucore.model import DualEncoder
from ucore.pairs import TrainingTexts

NEAREST = 64  # neighbours of an image that are remembered
CHUNK = 1024  # images compared with all others at a time


class CaptionLikeness:
    """Cosines of images' captions, in the mean, with texts: by features of the text tower as it is now.

    The features' mean over all captions is taken off first. cache: as of `text_tower_features`.
    """

    def __init__(
        self, encoder: DualEncoder, pairs: TrainingTexts, cache: str | Path | None = None, progress: bool = True
    ) -> None:
        first = pairs.first
        features = text_tower_features(encoder, pairs.texts, cache, progress).astype(np.float32)
        centred = _unit(features - features[: first[-1]].mean(axis=0))
        self.texts = centred.astype(np.float16)
        sums = np.zeros((len(first) - 1, features.shape[1]), np.float32)
        np.add.at(sums, np.repeat(np.arange(len(sums)), np.diff(first)), centred[: first[-1]])
        self.images = _unit(sums).astype(np.float16)

    def __call__(self, rows: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """float32 (images, texts)."""
        return self.images[rows].astype(np.float32) @ self.texts[texts].astype(np.float32).T


def soft_positives(positives: np.ndarray, likeness: np.ndarray, share: float, temperature: float) -> np.ndarray:
    """Weights float32 (N, M) in [0, 1]: 1 for `positives`, bool (N, M), and more for a liker text than for another.

    Of an image's target, which is its weights divided by their sum, the others have `share`, spread by a softmax of
    likeness / temperature; less where one of them would outweigh a positive. An image without positives or without
    others keeps its row. Texts learn from the same weights, divided by each column's sum.
    """
    logits = np.where(positives, -np.inf, likeness / temperature)
    top = logits.max(axis=1, keepdims=True)
    spread = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    spread /= np.maximum(spread.sum(axis=1, keepdims=True), 1e-12)
    total = share / (1 - share) * positives.sum(axis=1, keepdims=True)
    return np.where(positives, 1.0, np.minimum(total * spread, 1.0)).astype(np.float32)


class HardBatches:
    """Orders of an epoch in which a share of each batch are near neighbours of the rest of it.

    features: float (N, W), of the images; likeness is their cosine after each feature was standardised.
    """

    def __init__(self, features: np.ndarray, share: float, nearest: int = NEAREST) -> None:
        features = features.astype(np.float32)
        features = _unit((features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-4))
        self.share, count = share, min(nearest, len(features) - 1)
        self.nearest = np.empty((len(features), count), np.int64)
        self.likeness = np.empty((len(features), count), np.float32)
        for start in range(0, len(features), CHUNK):
            scores = features[start : start + CHUNK] @ features.T
            scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf  # oneself
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            self.nearest[start : start + CHUNK] = order
            self.likeness[start : start + CHUNK] = np.take_along_axis(scores, order, axis=1)

    def __call__(self, order: np.ndarray, batch_size: int) -> np.ndarray:
        """`order`, int64 (N,), every image once, with each batch's last `share` replaced by neighbours of its first.

        A batch takes its first images in the given order, then, of those not yet used, the ones nearest to any of
        these; where too few are remembered as near, it goes on in the given order.
        """
        hard = min(round(self.share * batch_size), batch_size - 1)
        left, result = np.ones(len(order), bool), []
        waiting = order
        while len(waiting) >= batch_size:
            first = waiting[: batch_size - hard]
            left[first] = False
            near, place = np.unique(self.nearest[first], return_inverse=True)
            best = np.full(len(near), -np.inf, np.float32)
            np.maximum.at(best, place.reshape(-1), self.likeness[first].reshape(-1))
            near = near[np.argsort(-best, kind="stable")]
            near = near[left[near]][:hard]
            left[near] = False
            rest = waiting[left[waiting]]
            missing = hard - len(near)
            left[rest[:missing]] = False
            result += [first, near, rest[:missing]]
            waiting = rest[missing:]
        return np.concatenate([*result, waiting])


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
