"""A phase of training: what a batch is, which parameters move, how the weights are averaged. The first phase: heads."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ucore import distributed
from ucore.config import TrainConfig
from ucore.errors import ConfigError
from ucore.features import image_tower_features, text_tower_features
from ucore.files import content_hash
from ucore.gradients import Losses, Parts, share_gradients, total
from ucore.neighbours import HardBatches

if TYPE_CHECKING:
    from ucore.train import Trainer


# Parameters that share a peak learning rate.
Groups = dict[str, tuple[Sequence[nn.Parameter], float]]


def _tell_changed(parameters: Sequence[nn.Parameter], *_: Any) -> None:
    """The fused step changes weights without saying so, which whoever keeps features of them looks for."""
    torch.autograd.graph.increment_version([p for p in parameters if p.grad is not None])


class Phase:
    """Base of both phases (`HeadPhase`, `tower_phase.TowerPhase`): sampling, schedule, optimiser, averaged weights."""

    name: ClassVar[str]

    def __init__(self, trainer: "Trainer", groups: Groups) -> None:
        self.trainer, self.config, self.encoder = trainer, trainer.config, trainer.encoder
        self.epochs = self.epochs_of(self.config)
        self.batch_size = min(self.batch_size_of(self.config), len(trainer.train))
        self.batches_per_epoch = self.batches_of(self.config, len(trainer.train))
        self.step_count, self.stale_epochs = 0, 0
        self._of_epoch: tuple[int, np.ndarray, np.ndarray] | None = None  # the epoch, its order and texts
        self.parameters = [p for parameters, _ in groups.values() for p in parameters]
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self._optimizer_groups(groups), fused=True)  # one pass through the memory
        self.optimizer.register_step_post_hook(partial(_tell_changed, self.parameters))  # not self: a ring lives on
        self.average = [p.detach().clone() for p in self.parameters] if self.config.ema else []
        self._set_modes()

    @classmethod
    def epochs_of(cls, config: TrainConfig) -> int:
        """The most epochs of this phase; 0 skips it."""
        raise NotImplementedError

    @classmethod
    def batch_size_of(cls, config: TrainConfig) -> int:
        """Images a batch, as it is set; a smaller training set makes it smaller."""
        raise NotImplementedError

    @classmethod
    def batches_of(cls, config: TrainConfig, n: int) -> int:
        """Full batches in an epoch of `n` images; one short batch where the set is smaller than a batch."""
        return max(n // cls.batch_size_of(config), 1)

    def _optimizer_groups(self, groups: Groups) -> list[dict[str, Any]]:
        result = []
        for parameters, rate in groups.values():
            # Gains, biases and the temperature are not decayed, as is usual.
            for decay, chosen in (
                (self.config.weight_decay, [p for p in parameters if p.ndim > 1]),
                (0.0, [p for p in parameters if p.ndim <= 1]),
            ):
                result.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
        return result

    def _set_modes(self) -> None:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """From 0, the one that the next step belongs to."""
        return self.step_count // self.batches_per_epoch

    def seed_of(self, *numbers: int, salt: int = 0) -> int:
        """A seed that depends on the run's seed, this phase and `numbers` alone."""
        return int(content_hash(self.config.seed, self.name, salt, list(numbers)), 16) % 2**63

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the next images and, for each, of one of its texts: int64 (B,), (B,)."""
        place = self.step_count % self.batches_per_epoch
        order, chosen = self.epoch_draw()
        rows = order[place * self.batch_size : (place + 1) * self.batch_size]
        return rows, chosen[rows]

    def epoch_draw(self) -> tuple[np.ndarray, np.ndarray]:
        """The current epoch's images in their order, int64 (N,), and a text for each of all images, int64 (N,)."""
        if self._of_epoch is None or self._of_epoch[0] != self.epoch:
            rng = np.random.default_rng(self.seed_of(self.epoch))
            order = self.composed(rng.permutation(len(self.trainer.train)))
            self._of_epoch = self.epoch, order, self.trainer.pairs.draw(rng, self.config.description_share)
        return self._of_epoch[1:]

    def composed(self, order: np.ndarray) -> np.ndarray:
        """The epoch's images, int64 (N,), in batches; from `order`, its shuffled ones."""
        return order

    def set_learning_rates(self) -> float:
        """Linear warm-up, then cosine to zero over the phase, times the trainer's factor; returns the first's rate."""
        total = self.epochs * self.batches_per_epoch
        warmup = max(1, round(self.config.warmup * total))
        done = self.step_count
        factor = (
            (done + 1) / warmup
            if done < warmup
            else 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(total - warmup, 1)))
        )
        if not 0 < self.trainer.lr_factor < math.inf:
            raise ConfigError(f"lr_factor is {self.trainer.lr_factor}; give a number above 0, such as 1")
        self.trainer.lr_factor = float(self.trainer.lr_factor)  # a state with a number of numpy's cannot be read back
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor * self.trainer.lr_factor
        return self.optimizer.param_groups[0]["lr"]

    def forward(self, rows: np.ndarray, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features of the batch, both float32 (B, D), L2-normalised, with gradients."""
        raise NotImplementedError

    def backward(self, rows: np.ndarray, texts: np.ndarray, losses: Losses) -> Parts:
        """Compute the gradients of the batch; returns the parts of its loss. Here every process does all of it."""
        torch.manual_seed(self.dropout_seed(0))
        features = self.forward(rows, texts)
        parts = losses(*features)
        total(parts).backward()
        share_gradients(self.parameters)
        distributed.sum_gradients(self.parameters)
        return {name: part.detach() for name, part in parts.items()}

    def dropout_seed(self, chunk: int) -> int:
        """Dropout belongs to a part of a step's batch, whichever process encodes it, however often."""
        return (self.seed_of(self.step_count, salt=1) + chunk) % 2**63

    def validation_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Image features (N, D) and text features (T, D) of the whole validation gallery."""
        raise NotImplementedError

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average of the weights, its start corrected so that early epochs count."""
        decay = min(self.config.ema, (1 + self.step_count) / (10 + self.step_count))
        for average, parameter in zip(self.average, self.parameters, strict=False):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within: the averaged weights in place of the trained ones, and eval mode."""
        trained = [p.detach().clone() for p in self.parameters] if self.average else []
        try:  # from the first copy on: Ctrl-C may come at any moment
            with torch.no_grad():
                for average, parameter in zip(self.average, self.parameters, strict=False):
                    parameter.copy_(average)
            self.encoder.eval()
            yield
        finally:
            with torch.no_grad():
                for value, parameter in zip(trained, self.parameters, strict=False):
                    parameter.copy_(value)
            self._set_modes()

    def state(self) -> dict[str, Any]:
        """What a run resumes from: counters, the optimiser's state and the averaged weights."""
        return {
            "step_count": self.step_count,
            "stale_epochs": self.stale_epochs,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; the encoder's own weights are not part of it."""
        self.step_count, self.stale_epochs = state["step_count"], state["stale_epochs"]
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, stored in zip(self.average, state["average"], strict=True):
            mine.copy_(stored)

    def close(self) -> None:
        """Free what only this phase needs."""


class HeadPhase(Phase):
    """Heads on cached features of frozen towers: no pixel is touched, an epoch takes seconds."""

    name = "heads"

    def __init__(self, trainer: "Trainer") -> None:
        encoder, config = trainer.encoder, trainer.config
        encoder.eval()
        common: dict[str, Any] = {"cache": trainer.cache, "progress": trainer.progress}
        self.image = torch.from_numpy(image_tower_features(encoder, trainer.train, config.train_views, **common))
        self.text = torch.from_numpy(text_tower_features(encoder, trainer.texts, **common))
        self.val_image = torch.from_numpy(image_tower_features(encoder, trainer.val, 1, **common)[:, 0])
        self.val_text = torch.from_numpy(text_tower_features(encoder, trainer.val.texts[0], **common))
        self.trainer, self.encoder = trainer, encoder
        self._standardise()
        self._hard = HardBatches(self.image[:, 0].numpy(), config.hard_share) if config.hard_share else None
        super().__init__(trainer, self._groups())

    def _standardise(self) -> None:
        """Give the heads the mean and deviation that their features have."""
        encoder = self.encoder
        encoder.image_head.standardise(self.image.flatten(0, 1))
        encoder.text_head.standardise(self.text)
        if encoder.segments is not None:
            encoder.segments.standardise(self.trainer.segment_sets("train"))

    def _groups(self) -> Groups:
        return {"heads": (self.encoder.joining, self.trainer.config.head_lr)}

    @classmethod
    def epochs_of(cls, config: TrainConfig) -> int:
        """`head_epochs` of the settings."""
        return config.head_epochs

    @classmethod
    def batch_size_of(cls, config: TrainConfig) -> int:
        """`head_batch_size` of the settings."""
        return config.head_batch_size

    def composed(self, order: np.ndarray) -> np.ndarray:
        """With `hard_share`, images that look alike share batches."""
        return order if self._hard is None else self._hard(order, self.batch_size)

    def _set_modes(self) -> None:
        self.encoder.eval()
        self.encoder.image_head.train()
        self.encoder.text_head.train()
        if self.encoder.segments is not None:
            self.encoder.segments.train()

    def forward(self, rows: np.ndarray, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features of the batch from cached tower features, of one view of each image at random."""
        rng = np.random.default_rng(self.seed_of(self.step_count, salt=2))
        views = rng.integers(0, self.image.shape[1], len(rows))
        device = self.encoder.device
        image = self.encoder.image_head(self.image[rows, views].to(device))
        text = self.encoder.text_head(self.text[texts].to(device))
        return F.normalize(image, dim=1), F.normalize(text, dim=1)

    @torch.inference_mode()
    def validation_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Both float32 and L2-normalised, from the cached tower features of one view."""
        encoder = self.encoder
        image = encoder.image_head(self.val_image.to(encoder.device))
        text = encoder.text_head(self.val_text.to(encoder.device))
        return F.normalize(image, dim=1).cpu().numpy(), F.normalize(text, dim=1).cpu().numpy()
