"""The discriminator that tells the domains apart, and the gradient that makes the encoder stop it."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(features: Tensor, strength: float = 1.0) -> Tensor:
    """The same features, whose gradient is multiplied by -strength on its way back (Ganin et al. 2016)."""
    return _Reverse.apply(features, strength)  # type: ignore[return-value]


def reversal_strength(done: float) -> float:
    """DANN's schedule: 0 at the start, nearly 1 in the end; done: share of the training, 0 to 1."""
    return 2 / (1 + math.exp(-10 * done)) - 1


class DomainDiscriminator(nn.Module):
    """Features (N, width) -> one logit a row (N,): above 0 says source. A small MLP, as DANN's."""

    def __init__(self, width: int, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Features float (N, width) to logits (N,), above 0 for the source."""
        return self.layers(features)[:, 0]


def balanced_accuracy(source_logits: Tensor, target_logits: Tensor) -> float:
    """Percent of rows whose domain is told, both domains counting alike: 50 is a guess."""
    return 50 * float((source_logits > 0).double().mean() + (target_logits <= 0).double().mean())
