"""The discriminator that tells the domains apart, the gradient that makes the encoder stop it, and who asks anew."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ucore import distributed
from ucore.gradients import share_gradients

JUDGING_RATE = 1e-3  # of the discriminators' Adam


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
    """Features (N, width) of a length near 1 or less -> one logit a row (N,): above 0 says source. A small MLP.

    It sees features times sqrt(width): unit vectors have elements near 1 / sqrt(width), too small for layers that were
    made for elements near 1, and a discriminator that learns slowly teaches nothing.
    """

    def __init__(self, width: int, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Features float (N, width) to logits (N,), above 0 for the source."""
        return self.layers(self.scale * features)[:, 0]


class Judges:
    """A discriminator for each of `sides`, of features (N, width), and the optimiser that they learn by.

    They learn before a step of the encoder. If that step is not completed, they are in the state of before: `state`
    gives that one, and `learn` begins with it when the step is made again.
    """

    def __init__(self, sides: Sequence[str], width: int, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminators = nn.ModuleDict({side: DomainDiscriminator(width) for side in sides})
        self.discriminators.to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=JUDGING_RATE, betas=(0.5, 0.9), fused=True
        )
        self._before: tuple[int, dict[str, Any]] | None = None  # the step they last learned in, and they before it

    def learn(self, step: int, loss: Callable[[], Tensor], steps: int, lr_factor: float = 1.0) -> None:
        """Descend `loss`, `steps` times, before step number `step` of the encoder."""
        if self._before is not None and self._before[0] == step:
            self._load(self._before[1])
        self._before = step, copy.deepcopy(self._now())
        for group in self.optimizer.param_groups:
            group["lr"] = JUDGING_RATE * lr_factor
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss().backward(inputs=list(self.discriminators.parameters()))
            share_gradients(list(self.discriminators.parameters()))
            distributed.sum_gradients(self.discriminators.parameters())
            self.optimizer.step()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Within, they get no gradients: the features alone move."""
        self.discriminators.requires_grad_(False)
        try:
            yield
        finally:
            self.discriminators.requires_grad_(True)

    def state(self, step: int) -> dict[str, Any]:
        """What a run resumes from that goes on with step number `step`."""
        return self._before[1] if self._before is not None and self._before[0] == step else self._now()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._before = None
        self._load(state)

    def _now(self) -> dict[str, Any]:
        return {"discriminators": self.discriminators.state_dict(), "judging": self.optimizer.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        self.discriminators.load_state_dict(state["discriminators"])
        self.optimizer.load_state_dict(copy.deepcopy(state["judging"]))


def gradient_penalty(logits: Tensor, features: Tensor, of_source: int) -> Tensor:
    """Half the mean square of the gradient of logits (N,) by what the discriminator saw, summed over the domains.

    features: (N, D), which require a gradient; the first `of_source` rows are the source's, the others the target's. R1
    (Mescheder et al. 2018, arXiv 1801.04406) at both sides: without it the two players circle around each other, and
    features are driven past the other domain instead of towards it.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), features, create_graph=True)
    steepness = gradient.square().sum(dim=1) / 2
    return steepness[:of_source].mean() + steepness[of_source:].mean()


def balanced_accuracy(source_logits: Tensor, target_logits: Tensor) -> float:
    """Percent of rows whose domain is told, both domains counting alike: 50 is a guess."""
    return 50 * float((source_logits > 0).double().mean() + (target_logits <= 0).double().mean())


def fresh_accuracy(source: np.ndarray, target: np.ndarray, penalty: float = 0.1) -> float:
    """Percent of features, float (N, D) and (M, D), whose domain a new linear classifier tells; 50 is a guess.

    It sees half of both domains and is asked about the other half, twice; both domains count alike. A ridge regression
    (its penalty is relative to the features' mean square): what an adversary's discriminator fails to tell may still be
    there to be told, and this asks anew (the proxy of the A-distance: Ben-David et al. 2010). Of fewer than two samples
    of either nothing can be learned: 50.
    """
    if min(len(source), len(target)) < 2:
        return 50.0
    halves = [np.arange(len(part)) % 2 for part in (source, target)]
    right = []
    for half in (0, 1):
        seen, asked = (
            [part[(of_part == half) == same] for part, of_part in zip((source, target), halves, strict=True)]
            for same in (False, True)
        )
        middle = (seen[0].mean(axis=0) + seen[1].mean(axis=0)) / 2
        rows = np.concatenate([(part - middle) / np.sqrt(2 * len(part)) for part in seen])  # rows.T @ rows: the spread
        ridge, apart = max(penalty * np.square(rows).sum(), 1e-9), seen[0].mean(axis=0) - seen[1].mean(axis=0)
        if len(rows) < rows.shape[1]:  # the same direction, up to its length, from the smaller matrix (Woodbury)
            inner = np.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), rows @ apart)
            direction = apart - rows.T @ inner
        else:
            direction = np.linalg.solve(rows.T @ rows + ridge * np.eye(rows.shape[1]), apart)
        logits = [torch.from_numpy((part - middle) @ direction) for part in asked]
        right.append(balanced_accuracy(*logits))
    return float(np.mean(right))
