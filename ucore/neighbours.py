"""Who is like whom, by features of the frozen towers: soft positives, and batches of hard negatives.

Both use what a tower knew before training, so that they are the same whatever was trained, and after resuming.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ucore.errors import ConfigError
from ucore.features import text_tower_features
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.pairs import TrainingTexts

NEAREST = 64  # neighbours of an image that are remembered
CHUNK = 1024  # images compared with all others at a time


class CaptionLikeness:
    """Cosines of images' captions, in the mean, with texts: by features of the text tower as it is now.

    The features' mean over all captions is taken off first. soft_tags: share of the likeness that the tags of the
    image and of the text's image have, cosines of their indicators, rare tags counting more. cache: as of
    `text_tower_features`. Raises ConfigError without captions, or where tags shall count and no image has any.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        train: Manifest,
        pairs: TrainingTexts,
        soft_tags: float = 0.0,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        first = pairs.first
        if not first[-1]:
            raise ConfigError("soft_share compares captions, and no training image has one: leave it at 0")
        features = text_tower_features(encoder, pairs.texts, cache, progress).astype(np.float32)
        centred = _unit(features - features[: first[-1]].mean(axis=0))
        self.texts = centred.astype(np.float16)
        sums = np.zeros((len(first) - 1, features.shape[1]), np.float32)
        np.add.at(sums, np.repeat(np.arange(len(sums)), np.diff(first)), centred[: first[-1]])
        self.images = _unit(sums).astype(np.float16)
        self.share, self.owner = soft_tags, pairs.owner
        self.tags = tag_vectors(train.frame["tags"]) if soft_tags else None
        if self.tags is not None and not self.tags.nnz:
            raise ConfigError("soft_tags compares tags, and no training image has one: leave it at 0")

    def __call__(self, rows: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """float32 (images, texts)."""
        captions = self.images[rows].astype(np.float32) @ self.texts[texts].astype(np.float32).T
        if self.tags is None:
            return captions
        tags = (self.tags[rows] @ self.tags[self.owner[texts]].T).toarray()
        return ((1 - self.share) * captions + self.share * tags).astype(np.float32)


def tag_vectors(tags: Iterable[Sequence[str]]) -> Any:
    """Unit vectors of the images' tags, a sparse float32 (N, kinds of tags): weights log(N / images with that tag).

    An image without tags, or with none but those of all images, is like nothing: 0.
    """
    from scipy.sparse import csr_array

    kinds: dict[str, int] = {}
    of_images = [sorted({kinds.setdefault(tag, len(kinds)) for tag in of_image}) for of_image in tags]
    places = np.array([place for of_image in of_images for place in of_image], np.int64)
    rows = np.repeat(np.arange(len(of_images)), [len(of_image) for of_image in of_images])
    rare = np.log(len(of_images) / np.maximum(np.bincount(places, minlength=len(kinds)), 1))
    values = rare[places]
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(of_images)))
    values = np.divide(values, lengths[rows], out=np.zeros_like(values), where=lengths[rows] > 0)
    vectors = csr_array((values.astype(np.float32), (rows, places)), shape=(len(of_images), max(len(kinds), 1)))
    vectors.eliminate_zeros()
    return vectors


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
