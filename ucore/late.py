"""Images and their segments in one score, as an encoder that was trained with segments learned it, in numpy.

    score = (1 - share) x cosine of the image + share x how well its segments fit

The second is `alignment.SegmentPool`'s, and the sum `fusion.fused`'s; the tests compare them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ucore.checkpoint_files import WEIGHTS
from ucore.errors import CheckpointError, ConfigError
from ucore.index import GalleryIndex

PREFIX = "segments.pool."


class LateScores:
    """Reranks hits by their segments in the index.

    Raises ConfigError where the checkpoint was trained without segments, or the index holds none.
    """

    def __init__(self, index: GalleryIndex, checkpoint: Path) -> None:
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
        self.index = index
        self._weights = _pool_weights(checkpoint / WEIGHTS)
        self._of: dict[str, list[int]] = {}
        for position, name in zip(positions.tolist(), index.rows(positions)["sample_id"], strict=True):
            self._of.setdefault(name, []).append(position)

    def rerank(self, vector: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hits in their new order with their new scores. vector: of the query; scores: of the images, with or
        without their hub_bias, which stays as it is."""
        names = self.index.rows(positions)["sample_id"]
        plain = self.index.scores(vector[None], positions)[0]
        fused = scores.astype(np.float32).copy()
        for number, name in enumerate(names):
            own = self._of.get(name, [])
            if own:
                of_segments = pool_score(self.kind, self._weights, self.index.features(np.array(own)), vector)
                fused[number] += self.share * (of_segments - plain[number])
        order = np.lexsort((positions, -fused))
        return positions[order], fused[order]


def pool_score(kind: str, weights: dict[str, np.ndarray], segments: np.ndarray, text: np.ndarray) -> float:
    """How well the segments of one image, float32 (K, D), fit a text, float32 (D,): see `alignment.SegmentPool`."""
    cosines = segments @ text
    if kind == "late":
        return float(_softmax(cosines / np.exp(weights["log_temperature"])) @ cosines)
    if kind == "attention":
        hidden = np.tanh(segments @ weights["attend.0.weight"].T + weights["attend.0.bias"])
        shares = _softmax((hidden @ weights["attend.2.weight"].T + weights["attend.2.bias"])[:, 0])
    else:
        shares = np.full(len(segments), 1 / len(segments), np.float32)
    mean = shares @ segments
    return float(mean @ text / max(float(np.linalg.norm(mean)), 1e-12))


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def _pool_weights(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as stored:
            names = [name for name in stored.keys() if name.startswith(PREFIX)]  # noqa: SIM118 - it is no mapping
            return {name.removeprefix(PREFIX): stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path} is cut short or damaged; copy the checkpoint again") from error
