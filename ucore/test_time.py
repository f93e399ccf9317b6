"""Adaptation while one searches: the head of the queries learns from the queries themselves, without a pair.

A baseline after TCR (Li et al., ICLR 2025, https://arxiv.org/abs/2410.15624), for a gallery that stays as it is. Each
batch of queries is answered by its nearest gallery items alone; three losses on them move the queries' side a little:

    entropy      of the softmax over those candidates; queries surer than the trusted ones count, the surest most
    uniformity   mean exp(-|q - mean q| / 10): queries are spread
    gap          (|mean q - mean candidate| - gap of the trusted pairs)^2: the distance of the modalities is kept

The trusted pairs are the share of the first batch whose candidates lie close beside how spread the batch is. TCR moves
the gains and shifts of the query encoder's normalisation layers; a head here has none, so it gets a gain and a shift
for each tower feature, after its standardisation. This is our reading, not its authors' code.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ucore.heads import Head

TRUSTED = 0.3  # share of the first batch
SPREAD = 0.1  # of the uniformity loss


class _Moved(nn.Module):
    """A frozen head behind a gain and a shift for each of its standardised features."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = copy.deepcopy(head).eval().requires_grad_(False)
        self.gain = nn.Parameter(torch.ones_like(head.mean))
        self.shift = nn.Parameter(torch.zeros_like(head.mean))

    def forward(self, features: Tensor) -> Tensor:
        standard = (features.float() - self.head.mean) * self.head.scale
        moved = (standard * self.gain + self.shift) / self.head.scale + self.head.mean
        return F.normalize(self.head(moved), dim=1)


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax of every row, float (N,)."""
    logs = F.log_softmax(logits, dim=1)
    return -(logs.exp() * logs).sum(1)


def adapt_queries(
    head: Head,
    queries: Tensor,
    gallery: np.ndarray,
    temperature: float,
    batch_size: int = 64,
    steps: int = 3,
    lr: float = 1e-3,
    seed: int = 0,
) -> np.ndarray:
    """Features float32 (Q, D), L2-normalised, of queries that come in batches; each moves the head, then is answered.

    head: of the queries' side, left as it is; queries: its tower's features, float (Q, W); gallery: features of the
    other side, float32 (G, D), L2-normalised; temperature: of the softmax; steps: of Adam with rate `lr` a batch. The
    order is drawn from `seed`.
    """
    moved, fixed = _Moved(head).to(queries.device), torch.from_numpy(gallery).to(queries.device)
    optimizer = torch.optim.Adam([moved.gain, moved.shift], lr=lr)
    order = np.random.default_rng(seed).permutation(len(queries))
    found = np.empty((len(queries), gallery.shape[1]), np.float32)
    trusted: tuple[Tensor, Tensor] | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        raw = queries[rows]
        if len(rows) > 1:
            for _ in range(steps):
                query = moved(raw)
                candidates = fixed[(query.detach() @ fixed.T).argmax(1)]
                if trusted is None:
                    trusted = _trusted(query.detach(), candidates, temperature)
                optimizer.zero_grad()
                _loss(query, candidates, temperature, *trusted).backward()
                optimizer.step()
        with torch.no_grad():
            found[rows] = moved(raw).cpu().numpy()
    return found


def _trusted(query: Tensor, candidates: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Greatest entropy of the trusted pairs, and the distance of their modalities; both float ()."""
    spread = (query - query.mean(0)).norm(dim=1) + (candidates - candidates.mean(0)).norm(dim=1)
    doubt = 2 * (query - candidates).norm(dim=1) - spread
    chosen = doubt.argsort(stable=True)[: max(2, round(TRUSTED * len(query)))]
    unsure = entropies(query @ candidates.T / temperature)[chosen].max()
    return unsure, (query[chosen].mean(0) - candidates[chosen].mean(0)).norm()


def _loss(query: Tensor, candidates: Tensor, temperature: float, most: Tensor, gap: Tensor) -> Tensor:
    unsure = entropies(query @ candidates.T / temperature)
    weights = (1 - unsure.detach() / (most + 1e-3)).clamp(min=0)
    entropy = (weights * unsure).sum() / max(1, int((weights > 0).sum()))
    uniformity = torch.exp(-SPREAD * (query - query.mean(0)).norm(dim=1)).mean()
    distance = (query.mean(0) - candidates.mean(0)).norm()
    return entropy + uniformity + (distance - gap).square()
