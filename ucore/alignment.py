"""Images as sets of segments: how well a set fits a text, whatever the number of segments.

    scores = SegmentPool("late")(segments, present, text_features)   # (N, M)

segments: float (N, K, D), L2-normalised where `present`, bool (N, K); the rest is padding and counts nowhere. An image
without segments has the score 0 with every text, and `has_segments` tells it from others.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ucore.errors import ConfigError
from ucore.heads import Head

Pooling = Literal["mean", "attention", "late"]  # of config.Segments, those that are any
SCORES_AT_ONCE = 2**26  # of single segments with texts: 256 MB


def present_of(counts: Tensor, most: int) -> Tensor:
    """bool (N, most): which of an image's places hold one of its `counts`, int (N,), segments."""
    return torch.arange(most, device=counts.device) < counts[:, None]


def has_segments(present: Tensor) -> Tensor:
    """Which images have any, bool (N,), of `present` bool (N, K)."""
    return present.any(dim=1)


@dataclass(frozen=True)
class SegmentSets:
    """Tower features of the segments of N images: features float16 (N, K, W); present bool (N, K)."""

    features: Tensor
    present: Tensor

    def take(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Features and presence of some images, on `device`."""
        return self.features[rows].to(device), self.present[rows].to(device)

    def flat(self) -> Tensor:
        """Features (P, W) of all segments there are."""
        return self.features[self.present]


class SegmentPool(nn.Module):
    """Cosine-like scores float32 (N, M) of N sets of segments with M texts.

    "mean": the text's cosine with the mean of the segments (UrbanCross, arXiv 2404.14241, stage 2). "attention": with a
    mean whose weights are learned from each segment's own features. "late": every segment's cosine with the text,
    weighted by a softmax of the same cosines at a learned temperature: near 0 that is the best segment's cosine alone
    (MaxSim, Khattab and Zaharia 2020), far above it the mean of all.
    """

    def __init__(self, kind: Pooling = "mean", width: int = 0, temperature: float = 0.1) -> None:
        super().__init__()
        if kind not in get_args(Pooling):
            raise ConfigError(f"segment_pooling is {kind!r}; choose one of {', '.join(get_args(Pooling))}")
        self.kind: Pooling = kind
        if kind == "attention":
            first, last = nn.Linear(width, 64), nn.Linear(64, 1)
            nn.init.normal_(
                first.weight
            )  # of features of length 1: else tanh gives nearly 0, and little is learned from it
            nn.init.zeros_(last.weight)  # it starts as the mean
            self.attend = nn.Sequential(first, nn.Tanh(), last)
        if kind == "late":
            self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    def pool(self, segments: Tensor, present: Tensor) -> Tensor:
        """One vector for each set, float32 (N, D), L2-normalised or 0; not for "late", which needs a text."""
        return F.normalize(torch.einsum("nk,nkd->nd", self._weights(segments, present), segments), dim=1)

    def forward(self, segments: Tensor, present: Tensor, text_features: Tensor) -> Tensor:
        """text_features: float (M, D), L2-normalised."""
        segments = torch.where(present[..., None], segments, 0.0)  # whatever padding holds, NaN too
        if self.kind != "late":
            return self.pool(segments, present) @ text_features.T
        at_once = max(1, SCORES_AT_ONCE // max(segments.shape[0] * segments.shape[1], 1))
        parts = [
            (self.attention(segments, present, some) * (segments @ some.T)).sum(dim=1)
            for some in text_features.split(at_once)
        ]
        return torch.cat(parts, dim=1)

    def attention(self, segments: Tensor, present: Tensor, text_features: Tensor) -> Tensor:
        """What share each segment has in the score with each text, float32 (N, K, M); adds up to 1 or, for none, 0."""
        if self.kind == "late":
            return _softmax(segments @ text_features.T / self.log_temperature.exp(), present[..., None])
        return self._weights(segments, present)[..., None].expand(-1, -1, len(text_features))

    def _weights(self, segments: Tensor, present: Tensor) -> Tensor:
        if self.kind == "attention":
            return _softmax(self.attend(segments)[..., 0], present)
        return (present / present.sum(dim=1, keepdim=True).clamp(min=1)).to(segments.dtype)


def _softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Over the second axis, among what is present; 0 elsewhere, and everywhere for an image without segments."""
    logits = logits.masked_fill(~present, -torch.inf)
    return torch.where(present.any(dim=1, keepdim=True), logits, 0.0).softmax(dim=1) * present


class SegmentBranch(nn.Module):
    """What an encoder needs for segments: a frozen copy of its image tower, a head of their own, and a `SegmentPool`.

    The tower stays as it was copied and in evaluation mode, whatever is done to the encoder, so that features of
    segments are computed once (UrbanCross, stage 2).
    """

    def __init__(self, tower: nn.Module, head: Head, pool: SegmentPool) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.head: Head = head
        self.pool: SegmentPool = pool

    def train(self, mode: bool = True) -> "SegmentBranch":
        """Head and pool in the mode asked for; the tower stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    def standardise(self, sets: SegmentSets) -> None:
        """Give the head mean and deviation of the features of the training images' segments."""
        known = sets.flat()
        if len(known) < 2:
            raise ConfigError(
                f"The training images have {len(known)} segments in all, and learning from segments needs at least 2. "
                "Segment them with another generator or lower thresholds, or train without --segments"
            )
        self.head.standardise(known)

    @property
    def learned(self) -> list[nn.Parameter]:
        """Parameters of head and pool."""
        return [*self.head.parameters(), *self.pool.parameters()]

    def features(self, tower_features: Tensor, present: Tensor) -> Tensor:
        """From tower features float (N, K, W) to L2-normalised features float32 (N, K, D); 0 where none is present."""
        known = torch.where(present[..., None], tower_features.float(), 0.0)
        return F.normalize(self.head(known.flatten(0, 1)).unflatten(0, present.shape), dim=2) * present[..., None]
