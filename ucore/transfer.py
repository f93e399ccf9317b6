"""Losses between a source and a target domain: pure functions of features, of a discriminator's logits and of weights.

Weights, everywhere: float (N,), one a row, that sum to 1 (`normalised`): a weighted mean is then a sum, whatever the
batch's size, and no second mean shrinks it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised(weights: Tensor) -> Tensor:
    """Weights, float (N,), at least 0, that sum to 1; even ones where all are 0."""
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


def adversarial_loss(
    source_logits: Tensor,
    target_logits: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """What the discriminator minimises and, through `adversary.reverse_gradient`, the encoder maximises.

    L = -sum_i w_i log sigmoid(D(source_i)) - sum_j v_j log(1 - sigmoid(D(target_j))): UrbanCross's weighted loss with
    one logit a row (float (N,), (M,)) and weights that are normalised once; None: even ones. It equals DANN's domain
    loss (Ganin et al. 2016) times two then, the halves of both domains counting alike.
    """

    def half(logits: Tensor, label: float, weights: Tensor | None) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
        return losses.mean() if weights is None else (weights * losses).sum()

    return half(source_logits, 1.0, source_weights) + half(target_logits, 0.0, target_weights)


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the covariances of features (N, D) and (M, D), over 4 D^2 (Sun & Saenko 2016, Deep CORAL)."""
    difference = torch.cov(source.T) - torch.cov(target.T)
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def mmd_loss(source: Tensor, target: Tensor, kernels: int = 5, factor: float = 2.0) -> Tensor:
    """Squared maximum mean discrepancy of features (N, D) and (M, D) by a mean of Gaussian kernels (Long et al. 2015).

    The middle kernel's bandwidth is the mean squared distance of two different rows, held fixed; the others' are
    `factor` apart. The biased estimate, which is never negative.
    """
    both = torch.cat([source, target])
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    middle = distances.detach().sum() / (len(both) * (len(both) - 1))
    scales = [factor ** (number - kernels // 2) for number in range(kernels)]
    kernel = torch.stack([torch.exp(-distances / (middle * scale + 1e-12)) for scale in scales]).mean(0)
    n = len(source)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def conditional_features(features: Tensor, memberships: Tensor, maps: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Features (N, D) beside soft memberships (N, K): what CDAN's discriminator sees (Long et al. 2018), so that
    domains are aligned within what is shown and not only over all.

    Their outer product (N, D * K), or, with `maps` float (D, R) and (K, R), the randomised multilinear map (N, R) which
    stands for it where it is wide: its inner products are those of the outer products in expectation.
    """
    if maps is None:
        return (memberships[:, :, None] * features[:, None, :]).flatten(1)
    return (features @ maps[0]) * (memberships @ maps[1]) / math.sqrt(maps[0].shape[1])


def random_maps(features: int, memberships: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Maps float32 (features, width), (memberships, width) for `conditional_features`: standard normal, by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(features, width, generator=generator), torch.randn(memberships, width, generator=generator)


def domain_triplet_loss(
    image_features: Tensor,
    text_features: Tensor,
    positives: Tensor,
    margin: float,
    weights: Tensor | None = None,
) -> Tensor:
    """UrbanCross's weighted triplet: Euclidean distances, anchor an image, positive its text, negative the hardest.

    L = sum_i w_i [margin + |a_i - p_i| - min over others' texts |a_i - n|]_+ of one domain's pairs, features float
    (N, D), positives bool (N, N), the own texts on the diagonal. The published code took negatives from the *other*
    domain, which pushes the domains apart; here they are of the same. Rows without any negative count nothing.
    """
    distances = torch.cdist(image_features, text_features, compute_mode="donot_use_mm_for_euclid_dist")
    hardest = distances.masked_fill(positives, torch.inf).min(dim=1).values
    losses = (margin + distances.diagonal() - hardest).clamp(min=0)
    return losses.mean() if weights is None else (weights * losses).sum()


def matched_loss(similarity: Tensor, logit_scale: Tensor, of_texts: Tensor, of_images: Tensor) -> Tensor:
    """InfoNCE towards chances instead of known pairs, both ways.

    similarity: float (B, T), cosines; logit_scale: natural log of the inverse temperature; of_texts: float (B, T), the
    chance that a text is the image's; of_images: that an image is the text's. Over all texts, or all images, they sum
    to 1; the batch holds some, and a row or column counts by what of it lies in the batch: a text whose likely image is
    elsewhere asks for nothing. With certain pairs it is CLIP's loss.
    """
    logits = logit_scale.exp() * similarity

    def one_way(logits: Tensor, chances: Tensor) -> Tensor:
        inside = chances.sum().clamp(min=1e-12)
        return -(chances * F.log_softmax(logits, dim=1)).sum() / inside

    return (one_way(logits, of_texts) + one_way(logits.T, of_images.T)) / 2
