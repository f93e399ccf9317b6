"""Images and their segments in one score, as an encoder that was trained with segments learned it, in numpy.

    score = (1 - share) x cosine of the image + share x how well its segments fit

The second is `alignment.SegmentPool`'s, and the sum `fusion.fused`'s. With hubs corrected, an image's own bias is that
of its score with segments, `fusion.fused_biases`', and no longer that of its cosine alone. The tests compare them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ucore.checkpoint_files import WEIGHTS
from ucore.errors import CheckpointError, ConfigError
from ucore.hubness import Bank, bias_of
from ucore.index import GalleryIndex

PREFIX = "segments.pool."


class LateScores:
    """Reranks hits by their segments in the index. bank: of the checkpoint, for hubs; None where there is none.

    Raises ConfigError where the checkpoint was trained without segments, or the index holds none.
    """

    def __init__(self, index: GalleryIndex, checkpoint: Path, bank: Bank | None = None) -> None:
        learned = index.card.get("segments", {})
        self.kind, self.share = str(learned.get("pooling", "none")), float(learned.get("share", 0))
        if self.kind == "none":
            raise ConfigError(
                f"The checkpoint {checkpoint} was trained without segments, so nothing is known of how to weigh them; "
                "leave --late out, or train with --segments"
            )
        positions = index.select("segment")
        if not len(positions):
            raise ConfigError("The index holds no segments; build it with --segments FOLDER, or leave --late out")
        self.index, self.temperature = index, float(index.card["temperature"])
        self.texts = None if bank is None else bank.texts.astype(np.float32)
        self._biases: dict[int, float] = {}  # of images that were met
        self._weights = _pool_weights(checkpoint / WEIGHTS)
        self._of: dict[str, list[int]] = {}
        rows, count = index.rows(positions), learned.get("count")  # of an image; they are numbered, the best first
        for position, name, item in zip(positions.tolist(), rows["sample_id"], rows["item_id"], strict=True):
            if count is None or int(item.rpartition("#")[2]) < count:
                self._of.setdefault(name, []).append(position)

    def rerank(self, vector: np.ndarray, positions: np.ndarray, correct_hubs: bool) -> tuple[np.ndarray, np.ndarray]:
        """Images in their new order, with their new scores float32 (n,). vector: of the query; correct_hubs: with each
        image's own bias."""
        table = self.index.rows(positions)
        own = [self._of.get(name, []) for name in table["sample_id"]]
        fused = self.index.scores(vector[None], positions)[0].astype(np.float32).copy()
        bias = table["hub_bias"].to_numpy(np.float32).copy()
        segments = self.index.features(np.array([position for of in own for position in of], np.int64))
        parts = np.split(segments, np.cumsum([len(of) for of in own])[:-1]) if own else []
        for number, (position, part) in enumerate(zip(positions.tolist(), parts, strict=True)):
            if len(part):
                fused[number] = self._fused(fused[number : number + 1], part, vector[None])[0]
                if correct_hubs and self.texts is not None:
                    bias[number] = self._bias(position, part)
        fused = fused + bias if correct_hubs else fused
        order = np.lexsort((positions, -fused))
        return positions[order], fused[order]

    def scores(self, vectors: np.ndarray, position: int) -> np.ndarray:
        """Scores of one image and its segments with texts float32 (M, D): float32 (M,), without any bias."""
        at = np.array([position])
        cosines = self.index.scores(vectors, at)[:, 0].astype(np.float32)
        part = self._of.get(str(self.index.rows(at)["sample_id"].iloc[0]), [])
        return self._fused(cosines, self.index.features(np.array(part)), vectors) if part else cosines

    def _fused(self, cosines: np.ndarray, segments: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return cosines + self.share * (pool_scores(self.kind, self._weights, segments, texts) - cosines)

    def _bias(self, position: int, segments: np.ndarray) -> float:
        """What to add to the scores of an image with segments, from the bank's captions; computed once."""
        assert self.texts is not None
        if position not in self._biases:
            image = self.texts @ self.index.features(np.array([position]))[0]
            of_segments = pool_scores(self.kind, self._weights, segments, self.texts)
            scores = (1 - self.share) * image + self.share * of_segments
            self._biases[position] = float(bias_of(lambda _: scores[None], 1, self.temperature)[0])
        return self._biases[position]


def pool_scores(kind: str, weights: dict[str, np.ndarray], segments: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """How well the segments of one image, float32 (K, D), fit texts, float32 (M, D): (M,), as `alignment.SegmentPool`
    gives."""
    if kind == "late":
        cosines = texts @ segments.T
        return (_softmax(cosines / np.exp(weights["log_temperature"])) * cosines).sum(axis=1)
    if kind == "attention":
        hidden = np.tanh(segments @ weights["attend.0.weight"].T + weights["attend.0.bias"])
        shares = _softmax((hidden @ weights["attend.2.weight"].T + weights["attend.2.bias"])[:, 0])
    else:
        shares = np.full(len(segments), 1 / len(segments), np.float32)
    mean = shares @ segments
    return texts @ (mean / max(float(np.linalg.norm(mean)), 1e-12))


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _pool_weights(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as stored:
            names = [name for name in stored.keys() if name.startswith(PREFIX)]  # noqa: SIM118 - it is no mapping
            return {name.removeprefix(PREFIX): stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path} is cut short or damaged; copy the checkpoint again") from error
