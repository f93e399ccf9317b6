"""Contrastive losses: pure functions of features or of similarities, with the positives given explicitly.

positives, everywhere: bool or float (N, M), which text belongs to which image; the diagonal when None. Floats in [0, 1]
are soft: 1 for an image's own text, less for one that would fit, too. What has no positive in the batch is a negative
of others, but asks for nothing itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 8  # positives of an image, up to which the sum-hinge goes through them pair by pair


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    positives: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`contrastive_loss` of the cosines of L2-normalised features, float (N, D) and (M, D)."""
    return contrastive_loss(image_features @ text_features.T, logit_scale, positives, label_smoothing)


def contrastive_loss(
    similarity: Tensor, logit_scale: Tensor, positives: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE in which an image may have several texts in the batch and a text several images.

    similarity: float (N, M), cosines. logit_scale: scalar, natural log of the inverse temperature (CLIP's
    parametrisation). positives: a row's or column's target is spread over its positives, by their weights.
    label_smoothing: share of the target spread evenly over the whole batch.

    Returns the scalar mean of the image-to-text and text-to-image cross-entropies. With one positive per row
    it equals CLIP's loss (Radford et al. 2021); with several, the supervised contrastive form of Khosla et
    al. 2020 with the mean inside the logarithm's expectation (L_out).
    """
    positives = _given(similarity, positives)
    logits = logit_scale.exp() * similarity
    return (_soft_cross_entropy(logits, positives, label_smoothing)
            + _soft_cross_entropy(logits.T, positives.T, label_smoothing)) / 2  # fmt: skip


def sigmoid_loss(
    similarity: Tensor, logit_scale: Tensor, logit_bias: Tensor, positives: Tensor | None = None
) -> Tensor:
    """Every pair by itself: belongs together, or not (Zhai et al. 2023, arXiv 2303.15343).

    Sum of the pairs' binary cross-entropies with the logits exp(logit_scale) x similarity + logit_bias, divided by the
    number of images.
    """
    positives = _given(similarity, positives)
    logits = logit_scale.exp() * similarity + logit_bias
    return F.binary_cross_entropy_with_logits(logits, positives.to(logits.dtype), reduction="sum") / len(similarity)


def _given(similarity: Tensor, positives: Tensor | None) -> Tensor:
    if positives is not None:
        return positives
    if similarity.shape[0] != similarity.shape[1]:
        raise ValueError("Without `positives`, as many images as texts are needed")
    return torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)


def _soft_cross_entropy(logits: Tensor, positives: Tensor, label_smoothing: float) -> Tensor:
    count = positives.sum(1, keepdim=True)
    kept = count[:, 0] > 0
    target = positives / torch.where(count > 0, count, 1)
    target = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    losses = -(target * F.log_softmax(logits, dim=1)).sum(1)
    return losses[kept].mean() if kept.any() else logits.sum() * 0


def triplet_loss(
    image_features: Tensor, text_features: Tensor, positives: Tensor | None = None, margin: float = 0.2
) -> Tensor:
    """`hinge_loss` of the cosines of L2-normalised features, float (N, D) and (M, D)."""
    return hinge_loss(image_features @ text_features.T, positives, margin)


def hinge_loss(similarity: Tensor, positives: Tensor | None = None, margin: float = 0.2) -> Tensor:
    """The paper's sum-hinge over all in-batch negatives (stage 2), with true positives left out of them.

    L = sum over positive pairs (i, j) of w_ij sum over k of (1 - w_ik) [margin + S_ik - S_ij]_+
    + (1 - w_kj) [margin + S_kj - S_ij]_+, where w are `positives`, divided by the number of images so that the value
    does not depend on the batch size more than the number of negatives does. similarity: float (N, M), cosines S.
    """
    positives = _given(similarity, positives)
    positives = positives.to(similarity.dtype)
    of = _few_pairs if int((positives > 0).sum()) <= FEW * len(similarity) else _all_pairs
    return (of(similarity, positives, margin) + of(similarity.T, positives.T, margin)) / len(similarity)


def _few_pairs(similarity: Tensor, positives: Tensor, margin: float) -> Tensor:
    """The first half of the sum-hinge: over pairs (i, j) and k, each pair with its row of negatives."""
    rows, columns = (positives > 0).nonzero(as_tuple=True)
    negatives = 1 - positives[rows]
    negatives[torch.arange(len(rows), device=similarity.device), columns] = 0  # a soft positive is not its own negative
    violations = (margin + similarity[rows] - similarity[rows, columns, None]).clamp(min=0)
    return (positives[rows, columns] * (violations * negatives).sum(1)).sum()


def _all_pairs(similarity: Tensor, positives: Tensor, margin: float) -> Tensor:
    """The same where most pairs are positive, softly. Sorted, violators of a pair come first in its row, and sums over
    them are differences of running sums: a batch of 512 takes no cube of memory."""
    negatives = 1 - positives
    order = similarity.detach().argsort(dim=1, descending=True)
    sorted_similarity, sorted_negatives = similarity.gather(1, order), negatives.gather(1, order)
    threshold = similarity - margin
    first = torch.searchsorted(-sorted_similarity.detach(), -threshold.detach().contiguous())
    running = F.pad(torch.stack([sorted_negatives, sorted_negatives * sorted_similarity]).cumsum(2), (1, 0))
    count, total = running[0].gather(1, first), running[1].gather(1, first)
    own = margin * negatives  # a soft positive is not its own negative
    return (positives * (total - threshold * count - own)).sum()
