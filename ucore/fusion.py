"""Images and their segments in one: what is scored, and what is learned."""

import numpy as np
import torch
from torch import Tensor

from ucore.alignment import SegmentBranch, SegmentSets, has_segments, present_of
from ucore.config import TrainConfig
from ucore.crop_features import segment_features
from ucore.losses import contrastive_loss, hinge_loss
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.segment_store import SegmentStore


def segment_sets(
    encoder: DualEncoder, manifest: Manifest, store: SegmentStore, config: TrainConfig, progress: bool = True
) -> SegmentSets:
    """Tower features of the images' best segments, as `config` says; computed once and kept beside `store`."""
    count = config.segment_count
    features, counts = segment_features(encoder, manifest, store, count, config.segment_background, progress=progress)
    return SegmentSets(torch.from_numpy(features), present_of(torch.from_numpy(counts), count))


@torch.inference_mode()
def segment_scores(
    branch: SegmentBranch, sets: SegmentSets, text_features: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Scores float32 (N, M) of every image's segments with every text, float32 (M, D), some images at a time."""
    texts = torch.from_numpy(text_features).to(device)
    result = np.empty((len(sets.present), len(texts)), np.float32)
    for start in range(0, len(result), 256):
        tower, present = sets.take(np.arange(start, min(start + 256, len(result))), device)
        result[start : start + 256] = branch.pool(branch.features(tower, present), present, texts).cpu().numpy()
    return result


def fused(image_scores: np.ndarray, segment_scores: np.ndarray, present: np.ndarray, share: float) -> np.ndarray:
    """Scores float32 (N, M) of images and of their segments in one, the segments' with `share`.

    present: bool (N, K); an image without segments keeps its own score.
    """
    shares = np.float32(share) * present.any(axis=1, keepdims=True)
    return (1 - shares) * image_scores + shares * segment_scores


def with_segments(
    encoder: DualEncoder, similarity: np.ndarray, sets: SegmentSets, text_features: np.ndarray, share: float
) -> np.ndarray:
    """Scores float32 (N, M) of images, `similarity`, and of their segments in one: `fused`."""
    assert encoder.segments is not None
    of_segments = segment_scores(encoder.segments, sets, text_features, encoder.device)
    return fused(similarity, of_segments, sets.present.numpy(), share)


def loss_weights(config: TrainConfig) -> dict[str, float]:
    """The weight that each part of `loss_parts` contains."""
    return {"image_text": 1.0, "segment_text": config.segment_weight}


def loss_parts(
    encoder: DualEncoder,
    config: TrainConfig,
    image_features: Tensor,
    text_features: Tensor,
    positives: Tensor,
    sets: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss, weighted: images with texts, and, where there are any, segments with texts.

    Features: float (B, D), L2-normalised; positives: as of `losses`; sets: the images' tower features of segments,
    float (B, K, W), and which are present, bool (B, K), as `SegmentSets.take` gives them. Images without segments count
    in the first part alone.
    """

    def loss(similarity: Tensor, belonging: Tensor) -> Tensor:
        if config.loss == "triplet":
            return hinge_loss(similarity, belonging, config.margin)
        return contrastive_loss(similarity, encoder.logit_scale, belonging, config.label_smoothing)

    parts = {"image_text": loss(image_features @ text_features.T, positives)}
    if encoder.segments is not None and sets is not None:
        tower, present = sets
        scores = encoder.segments.pool(encoder.segments.features(tower, present), present, text_features)
        some = has_segments(present)
        parts["segment_text"] = config.segment_weight * loss(scores[some], positives[some])
    return parts
