"""Images and their segments in one: what is scored, and what is learned."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.alignment import SegmentBranch, SegmentSets, has_segments, present_of
from ucore.config import TrainConfig
from ucore.crop_features import segment_features
from ucore.errors import DataError
from ucore.evaluate import similarity_matrix
from ucore.hubness import Bank, bias_of, distinct_rows
from ucore.losses import contrastive_loss, hinge_loss, sigmoid_loss
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.segment_store import SegmentStore

AT_ONCE = 256  # images whose segments are compared with all texts


def add_parts(encoder: DualEncoder, config: TrainConfig, images: int) -> None:
    """Give `encoder` what `config` asks for beside towers and heads, to be trained on so many images."""
    if config.loss == "sigmoid":
        encoder.add_bias(min(config.head_batch_size, images))
    if config.segments != "none":
        encoder.add_segments(config.segments)


def segment_sets(
    encoder: DualEncoder, manifest: Manifest, store: SegmentStore, config: TrainConfig, progress: bool = True
) -> SegmentSets:
    """Tower features of the images' best segments, as `config` says; computed once and kept beside `store`."""
    count = config.segment_count
    features, counts = segment_features(encoder, manifest, store, count, config.segment_background, progress=progress)
    return SegmentSets(torch.from_numpy(features), present_of(torch.from_numpy(counts), count))


@torch.inference_mode()
def heads_similarity(encoder: DualEncoder, views: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 (N, M) of images, their views averaged, and texts, and the texts' features float32 (M, D).

    views: tower features float (N, V, W); texts: tower features float (M, W').
    """
    device = encoder.device
    seen = [F.normalize(encoder.image_head(torch.from_numpy(view).to(device)), dim=1) for view in views.swapaxes(0, 1)]
    image = F.normalize(torch.stack(seen).mean(0), dim=1).cpu().numpy()
    text = F.normalize(encoder.text_head(torch.from_numpy(texts).to(device)), dim=1).cpu().numpy()
    return similarity_matrix(image, text), text


@torch.inference_mode()
def segment_vectors(branch: SegmentBranch, sets: SegmentSets, device: torch.device | str = "cpu") -> np.ndarray:
    """Features float32 (N, K, D) of all segments in the shared space, L2-normalised; 0 where there is none."""
    rows = (np.arange(start, min(start + AT_ONCE, len(sets.present))) for start in range(0, len(sets.present), AT_ONCE))
    return np.concatenate([branch.features(*sets.take(some, device)).cpu().numpy() for some in rows])


@torch.inference_mode()
def vector_scores(
    branch: SegmentBranch, vectors: np.ndarray, text_features: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Scores float32 (N, M) of sets of segments (`segment_vectors`) with texts, float (M, D), some at a time.

    Equal texts score exactly equal.
    """
    rows, place = distinct_rows(text_features)
    texts = torch.from_numpy(text_features[rows].astype(np.float32)).to(device)
    result = np.empty((len(vectors), len(texts)), np.float32)
    for start in range(0, len(result), AT_ONCE):
        some = torch.from_numpy(vectors[start : start + AT_ONCE].astype(np.float32)).to(device)
        result[start : start + AT_ONCE] = branch.pool(some, (some != 0).any(dim=2), texts).cpu().numpy()
    return result[:, place]


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
    vectors = segment_vectors(encoder.segments, sets, encoder.device)
    of_segments = vector_scores(encoder.segments, vectors, text_features, encoder.device)
    return fused(similarity, of_segments, sets.present.numpy(), share)


def fused_biases(
    encoder: DualEncoder,
    image_features: np.ndarray,
    text_features: np.ndarray,
    sets: SegmentSets,
    bank: Bank,
    share: float,
    temperature: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What `hubness` adds to scores of images and segments in one: float32 (N,) for images, (M,) for texts.

    How well a text fits training images with their segments, and an image with its segments training captions.
    image_features: float (N, D), with segments `sets`; text_features: float (M, D). Raises DataError where the bank
    knows no segments.
    """
    assert encoder.segments is not None
    if bank.segments is None:
        raise DataError(
            "The bank beside this checkpoint knows no segments, and its scores do: repeat ucore train on the folder of "
            "the checkpoint, which makes the bank anew, or leave hubs as they are with --no-correct-hubs"
        )
    branch, device = encoder.segments, encoder.device

    def scores(images: np.ndarray, vectors: np.ndarray, texts: np.ndarray) -> np.ndarray:
        plain = images.astype(np.float64) @ texts.astype(np.float64).T
        return fused(plain, vector_scores(branch, vectors, texts, device), (vectors != 0).any(axis=2), share)

    known, vectors = bank.segments, segment_vectors(branch, sets, device)
    rows, place = distinct_rows(text_features)
    texts = bias_of(lambda some: scores(bank.images, known, text_features[rows[some]]).T, len(rows), temperature)[place]
    own, place = distinct_rows(image_features, vectors)
    images = bias_of(
        lambda some: scores(image_features[own[some]], vectors[own[some]], bank.texts), len(own), temperature
    )
    return images[place], texts


def loss_weights(config: TrainConfig) -> dict[str, float]:
    """The weight that each part of `loss_parts` contains."""
    weights = {"segment_text": config.segment_weight, "image_segment": config.image_segment_weight}
    return {"image_text": 1.0, **weights}


def loss_parts(
    encoder: DualEncoder,
    config: TrainConfig,
    image_features: Tensor,
    text_features: Tensor,
    positives: Tensor,
    sets: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss, weighted: images with texts and, where there are any, segments with texts and with images.

    Features: float (B, D), L2-normalised; positives: as of `losses`; sets: the images' tower features of segments,
    float (B, K, W), and which are present, bool (B, K), as `SegmentSets.take` gives them. Images without segments count
    in the first part alone. Images and segments belong together where they are of one image.
    """

    def loss(similarity: Tensor, belonging: Tensor) -> Tensor:
        if config.loss == "triplet":
            return hinge_loss(similarity, belonging, config.margin)
        if encoder.logit_bias is not None:
            return sigmoid_loss(similarity, encoder.logit_scale, encoder.logit_bias, belonging)
        return contrastive_loss(similarity, encoder.logit_scale, belonging, config.label_smoothing)

    parts = {"image_text": loss(image_features @ text_features.T, positives)}
    if encoder.segments is not None and sets is not None:
        tower, present = sets
        some = has_segments(present)
        if not some.any():
            return parts
        present = present[some]
        segments, pool = encoder.segments.features(tower[some], present), encoder.segments.pool
        scores = pool(segments, present, text_features)
        parts["segment_text"] = config.segment_weight * loss(scores, positives[some])
        if config.image_segment_weight:
            scores = pool(segments, present, image_features[some])
            own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            parts["image_segment"] = config.image_segment_weight * loss(scores, own)
    return parts
