"""The two phases of training: what a batch is, which parameters move, how the weights are averaged."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from ucore.config import TrainConfig
from ucore.device import keep_freed_memory
from ucore.errors import ConfigError
from ucore.features import embed_images, embed_texts, image_tower_features, pixel_batches, text_tower_features
from ucore.files import content_hash
from ucore.manifest import subset
from ucore.model import dihedral

if TYPE_CHECKING:
    from ucore.train import Trainer


# Parameters that share a peak learning rate.
Groups = dict[str, tuple[Sequence[nn.Parameter], float]]


class Phase:
    """Base of both phases: sampling, schedule, optimiser, averaged weights."""

    name: ClassVar[str]

    def __init__(self, trainer: "Trainer", groups: Groups) -> None:
        self.trainer, self.config, self.encoder = trainer, trainer.config, trainer.encoder
        self.epochs = self.epochs_of(self.config)
        self.batch_size = min(self.batch_size_of(self.config), len(trainer.train))
        self.batches_per_epoch = self.batches_of(self.config, len(trainer.train))
        self.step_count, self.stale_epochs = 0, 0
        self.parameters = [p for parameters, _ in groups.values() for p in parameters]
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self._optimizer_groups(groups))
        self.average = [p.detach().clone() for p in self.parameters] if self.config.ema else []
        self._set_modes()

    @classmethod
    def epochs_of(cls, config: TrainConfig) -> int:
        raise NotImplementedError

    @classmethod
    def batch_size_of(cls, config: TrainConfig) -> int:
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
        return self.step_count // self.batches_per_epoch

    def seed_of(self, *numbers: int, salt: int = 0) -> int:
        """A seed that depends on the run's seed, this phase and `numbers` alone."""
        return int(content_hash(self.config.seed, self.name, salt, list(numbers)), 16) % 2**63

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the next images and, for each, of one of its texts: int64 (B,), (B,)."""
        trainer, place = self.trainer, self.step_count % self.batches_per_epoch
        rng = np.random.default_rng(self.seed_of(self.epoch))
        order = rng.permutation(len(trainer.train))
        counts = np.diff(trainer.first_text)
        chosen = trainer.first_text[:-1] + (rng.random(len(counts)) * counts).astype(int)
        rows = order[place * self.batch_size : (place + 1) * self.batch_size]
        return rows, chosen[rows]

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
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor * self.trainer.lr_factor
        return self.optimizer.param_groups[0]["lr"]

    def forward(self, rows: np.ndarray, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features of the batch, both float32 (B, D), L2-normalised, with gradients."""
        raise NotImplementedError

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
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=False):
                parameter.copy_(average)
        self.encoder.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for value, parameter in zip(trained, self.parameters, strict=False):
                    parameter.copy_(value)
            self._set_modes()

    def state(self) -> dict[str, Any]:
        return {
            "step_count": self.step_count,
            "stale_epochs": self.stale_epochs,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def restore(self, state: dict[str, Any]) -> None:
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
        heads = [*encoder.image_head.parameters(), *encoder.text_head.parameters(), encoder.logit_scale]
        heads += encoder.segments.learned if encoder.segments is not None else []
        encoder.eval()
        common: dict[str, Any] = {"cache": trainer.cache, "progress": trainer.progress}
        self.image = torch.from_numpy(image_tower_features(encoder, trainer.train, config.train_views, **common))
        self.text = torch.from_numpy(text_tower_features(encoder, trainer.texts, **common))
        self.val_image = torch.from_numpy(image_tower_features(encoder, trainer.val, 1, **common)[:, 0])
        self.val_text = torch.from_numpy(text_tower_features(encoder, trainer.val.texts[0], **common))
        encoder.image_head.standardise(self.image.flatten(0, 1))
        encoder.text_head.standardise(self.text)
        if encoder.segments is not None:
            encoder.segments.head.standardise(trainer.segment_sets("train").flat())
        super().__init__(trainer, {"heads": (heads, config.head_lr)})

    @classmethod
    def epochs_of(cls, config: TrainConfig) -> int:
        return config.head_epochs

    @classmethod
    def batch_size_of(cls, config: TrainConfig) -> int:
        return config.head_batch_size

    def _set_modes(self) -> None:
        self.encoder.eval()
        self.encoder.image_head.train()
        self.encoder.text_head.train()
        if self.encoder.segments is not None:
            self.encoder.segments.train()

    def forward(self, rows: np.ndarray, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(self.seed_of(self.step_count, salt=2))
        views = rng.integers(0, self.image.shape[1], len(rows))
        device = self.encoder.device
        image = self.encoder.image_head(self.image[rows, views].to(device))
        text = self.encoder.text_head(self.text[texts].to(device))
        return F.normalize(image, dim=1), F.normalize(text, dim=1)

    @torch.inference_mode()
    def validation_features(self) -> tuple[np.ndarray, np.ndarray]:
        encoder = self.encoder
        image = encoder.image_head(self.val_image.to(encoder.device))
        text = encoder.text_head(self.val_text.to(encoder.device))
        return F.normalize(image, dim=1).cpu().numpy(), F.normalize(text, dim=1).cpu().numpy()


class TowerPhase(Phase):
    """Heads and towers on augmented pixels, each with its own rate; the earliest stages stay frozen."""

    name = "towers"

    def __init__(self, trainer: "Trainer") -> None:
        encoder, config = trainer.encoder, trainer.config
        heads = [*encoder.image_head.parameters(), *encoder.text_head.parameters(), encoder.logit_scale]
        heads += encoder.segments.learned if encoder.segments is not None else []
        first = encoder.image_stages()[: config.frozen_image_stages + 1] if config.frozen_image_stages else []
        frozen = {p for stage in first for p in stage.parameters()}
        frozen |= set(encoder.token_embedding().parameters())  # rare words keep the meaning they came with
        own = {id(p) for p in heads} | {id(encoder.clip.logit_scale)}
        visual = [p for p in encoder.clip.visual.parameters() if p not in frozen]
        seen = own | {id(p) for p in encoder.clip.visual.parameters()}
        text = [p for p in encoder.clip.parameters() if id(p) not in seen and p not in frozen]
        if not config.head_epochs and not trainer.step_count:  # the first phase would have done it, on all images
            sample = subset(trainer.train, 512)
            encoder.image_head.standardise(
                torch.from_numpy(image_tower_features(encoder, sample, progress=False)[:, 0])
            )
            encoder.text_head.standardise(
                torch.from_numpy(text_tower_features(encoder, sample.texts[0], progress=False))
            )
            if encoder.segments is not None:
                encoder.segments.head.standardise(trainer.segment_sets("train").flat())
        if encoder.device.type == "cpu":
            keep_freed_memory()
        self.tokens = encoder.tokenize(trainer.texts)
        self._pixels: Iterator[Tensor] | None = None
        self._pixels_of = 0  # the step whose batch comes next in that stream
        super().__init__(
            trainer,
            {
                "heads": (heads, config.tune_head_lr),
                "image": (visual, config.image_lr),
                "text": (text, config.text_lr),
            },
        )

    @classmethod
    def epochs_of(cls, config: TrainConfig) -> int:
        return config.tune_epochs

    @classmethod
    def batch_size_of(cls, config: TrainConfig) -> int:
        return config.tune_batch_size

    def _set_modes(self) -> None:
        self.encoder.train()

    def forward(self, rows: np.ndarray, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        if self._pixels is None or self.step_count % self.batches_per_epoch == 0 or self._pixels_of != self.step_count:
            self._pixels = self._epoch_pixels()  # at an epoch's start, and after a step that was not completed
        pixels, self._pixels_of = next(self._pixels), self.step_count + 1
        return self.encoder.encode_image(pixels), self.encoder.encode_text(self.encoder.trim(self.tokens[texts]))

    def _epoch_pixels(self) -> Iterator[Tensor]:
        """Augmented pixels of the epoch's remaining batches, decoded ahead."""
        rng = np.random.default_rng(self.seed_of(self.epoch))
        order = rng.permutation(len(self.trainer.train))  # the same draw as in next_batch
        first, size = self.step_count % self.batches_per_epoch, self.batch_size
        batches = [order[i * size : (i + 1) * size].tolist() for i in range(first, self.batches_per_epoch)]
        seed = self.seed_of(self.epoch, salt=3)

        def augmented(image: Tensor, position: int) -> Tensor:
            return augment(image, np.random.default_rng([seed, position]), self.config.min_crop)

        return pixel_batches(self.encoder, self.trainer.train.image_paths, batches, augmented)

    def validation_features(self) -> tuple[np.ndarray, np.ndarray]:
        image = embed_images(self.encoder, self.trainer.val, progress=False)
        return image, embed_texts(self.encoder, self.trainer.val.texts[0], progress=False)

    def close(self) -> None:
        self._pixels = None


def augment(image: Tensor, rng: np.random.Generator, min_crop: float) -> Tensor:
    """A random one of the eight dihedral views of a random crop, resized back; uint8 (3, H, W) to the same.

    Nothing is rotated by other angles or padded, so no black corner ever appears.
    min_crop: smallest share of the area kept; 1 means no crop. The crop keeps the image's aspect within 3/4..4/3.
    """
    if min_crop < 1:
        height, width = image.shape[-2:]
        share, aspect = rng.uniform(min_crop, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h = min(height, max(1, round(height * math.sqrt(share / aspect))))
        w = min(width, max(1, round(width * math.sqrt(share * aspect))))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        image = TF.resized_crop(image, top, left, h, w, [height, width], antialias=True)
    return dihedral(image, int(rng.integers(0, 8))).contiguous()
