"""What is trained first, on cached features: the head that brings a tower's features into the shared space."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Head(nn.Module):
    """Tower features (N, width), any float dtype -> float32 (N, embed_dim), not normalised: skip plus MLP.

    With `residual=True` (width and embed_dim equal) the skip is the identity and the MLP starts at zero, so
    that the head starts as x -> x. Otherwise the skip is a linear layer. The trained layers see every feature
    with the mean 0 and the deviation 1 that it has over the training set, once `standardise` was called.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, embed_dim: int, hidden: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.drop_in = nn.Dropout(dropout)
        self.skip = nn.Identity() if residual else nn.Linear(width, embed_dim)
        self.residual = residual
        self.expand = nn.Linear(width, hidden)
        self.drop = nn.Dropout(dropout)
        self.contract = nn.Linear(hidden, embed_dim)
        if residual:
            nn.init.zeros_(self.contract.weight)
            nn.init.zeros_(self.contract.bias)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation of each feature from `features`, float (N, width)."""
        deviation, mean = torch.std_mean(features.double(), dim=0)
        self.mean.copy_(mean)
        self.scale.copy_(1 / deviation.clamp(min=1e-4))

    def forward(self, features: Tensor) -> Tensor:
        """Tower features float (N, width) to float32 (N, embed_dim), not normalised."""
        features = features.float()
        standard = (features - self.mean) * self.scale
        update = self.contract(self.drop(F.gelu(self.expand(self.drop_in(standard)))))
        return self.skip(features if self.residual else standard) + update
