"""Contrastive losses: pure functions of features, with the positives given explicitly."""

import torch
from torch import Tensor
from torch.nn import functional as F


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    positives: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric InfoNCE in which an image may have several texts in the batch and a text several images.

    Parameters
    ----------
    image_features: float (N, D), L2-normalised.
    text_features: float (M, D), L2-normalised.
    logit_scale: scalar, natural log of the inverse temperature (CLIP's parametrisation).
    positives: bool (N, M), which text belongs to which image; the diagonal when None. A row's or column's
        target is uniform over its positives; rows and columns without a positive are left out.
    label_smoothing: share of the target spread evenly over the whole batch.

    Returns the scalar mean of the image-to-text and text-to-image cross-entropies. With one positive per row
    it equals CLIP's loss (Radford et al. 2021); with several, the supervised contrastive form of Khosla et
    al. 2020 with the mean inside the logarithm's expectation (L_out).
    """
    if positives is None:
        if len(image_features) != len(text_features):
            raise ValueError("Without `positives`, as many images as texts are needed")
        positives = torch.eye(len(image_features), dtype=torch.bool, device=image_features.device)
    logits = logit_scale.exp() * image_features @ text_features.T
    return (_soft_cross_entropy(logits, positives, label_smoothing)
            + _soft_cross_entropy(logits.T, positives.T, label_smoothing)) / 2  # fmt: skip


def _soft_cross_entropy(logits: Tensor, positives: Tensor, label_smoothing: float) -> Tensor:
    count = positives.sum(1, keepdim=True)
    kept = count[:, 0] > 0
    target = positives / count.clamp(min=1)
    target = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    losses = -(target * F.log_softmax(logits, dim=1)).sum(1)
    return losses[kept].mean()


def triplet_loss(
    image_features: Tensor, text_features: Tensor, positives: Tensor | None = None, margin: float = 0.2
) -> Tensor:
    """The paper's sum-hinge over all in-batch negatives (stage 2), with true positives left out of them.

    L = sum over positive pairs (i, j) of sum over k not positive of
    [margin + S_ik - S_ij]_+ + [margin + S_kj - S_ij]_+, divided by the number of images so that the value does
    not depend on the batch size more than the number of negatives does.

    Shapes as in `clip_loss`; S is the cosine similarity.
    """
    if positives is None:
        if len(image_features) != len(text_features):
            raise ValueError("Without `positives`, as many images as texts are needed")
        positives = torch.eye(len(image_features), dtype=torch.bool, device=image_features.device)
    similarity = image_features @ text_features.T
    rows, columns = positives.nonzero(as_tuple=True)
    positive = similarity[rows, columns, None]
    image_to_text = (margin + similarity[rows] - positive).clamp(min=0)
    text_to_image = (margin + similarity[:, columns].T - positive).clamp(min=0)
    hinge = image_to_text.masked_fill(positives[rows], 0).sum()
    hinge = hinge + text_to_image.masked_fill(positives[:, columns].T, 0).sum()
    return hinge / len(image_features)
