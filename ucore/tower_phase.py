"""The second phase of training: heads and towers on augmented pixels."""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from ucore import bundled, distributed
from ucore.config import Augmentation, TrainConfig
from ucore.errors import ConfigError
from ucore.features import embed_images, embed_texts, image_tower_features, pixel_batches, text_tower_features
from ucore.gradients import Losses, Parts, chunked_backward
from ucore.manifest import subset
from ucore.model import DualEncoder, dihedral
from ucore.phases import Phase

if TYPE_CHECKING:
    from ucore.train import Trainer


class TowerPhase(Phase):
    """Heads and towers on augmented pixels, each with its own rate; the earliest stages stay frozen."""

    name = "towers"

    def __init__(self, trainer: "Trainer") -> None:
        encoder, config = trainer.encoder, trainer.config
        least = min(config.tune_batch_size, len(trainer.train))
        if least < distributed.size():
            raise ConfigError(
                f"A batch of {least} images cannot be shared by {distributed.size()} processes: start fewer"
                + (", or raise tune_batch_size" if least < len(trainer.train) else "")
            )
        self._frozen = image_stages(encoder)[: config.frozen_image_stages + 1] if config.frozen_image_stages else []
        frozen = {p for stage in self._frozen for p in stage.parameters()}
        frozen |= set(encoder.token_embedding().parameters())  # rare words keep the meaning they came with
        own = {id(p) for p in encoder.joining} | {id(encoder.clip.logit_scale)}
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
                encoder.segments.standardise(trainer.segment_sets("train"))
        if config.compile:
            encoder.clip.visual.compile()
        self.tokens = encoder.tokenize(trainer.texts)
        self._pixels: Iterator[Tensor] | None = None
        self._pixels_of = 0  # the step whose batch comes next in that stream
        super().__init__(
            trainer,
            {
                "heads": (encoder.joining, config.tune_head_lr),
                "image": (visual, config.image_lr),
                "text": (text, config.text_lr),
            },
        )
        if (config.chunk or distributed.size() > 1) and any(
            module.training and isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.clip.modules()
        ):
            raise ConfigError(
                f"{encoder.name} normalises over the batch, which parts would change: leave out -s chunk and torchrun, "
                "or freeze all stages of its vision tower by -s frozen_image_stages=N"
            )

    @classmethod
    def epochs_of(cls, config: TrainConfig) -> int:
        """`tune_epochs` of the settings."""
        return config.tune_epochs

    @classmethod
    def batch_size_of(cls, config: TrainConfig) -> int:
        """`tune_batch_size` of the settings."""
        return config.tune_batch_size

    def _set_modes(self) -> None:
        self.encoder.train()
        for stage in self._frozen:  # a BatchNorm that counts on would change them, too
            stage.eval()

    def forward(self, rows: np.ndarray, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features of the batch from augmented pixels, which come from the epoch's stream: once a step."""
        return self._encode(self._next_pixels(), texts)

    def backward(self, rows: np.ndarray, texts: np.ndarray, losses: Losses) -> Parts:
        """Gradients of the whole batch, in chunks or over processes where it is split (`gradients`)."""
        chunks = self.chunks
        if len(chunks) == 1 and distributed.size() == 1:
            return super().backward(rows, texts, losses)
        own = range(distributed.rank(), len(chunks), distributed.size())
        split = self._next_pixels().split([len(rows[chunks[number]]) for number in own])
        pixels = dict(zip(own, split, strict=True))

        def encode(number: int) -> tuple[Tensor, Tensor]:
            torch.manual_seed(self.dropout_seed(number))
            return self._encode(pixels[number], texts[chunks[number]])

        width, device = self.encoder.embed_dim, self.encoder.device
        return chunked_backward(encode, chunks, losses, self.parameters, width, device)

    @property
    def chunks(self) -> list[slice]:
        """Rows of a batch that are encoded at once, by one process; at least one chunk for each of them."""
        batch, processes = self.batch_size, distributed.size()
        size = self.config.chunk or math.ceil(batch / processes)
        if math.ceil(batch / size) >= processes:
            return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]
        return [slice(batch * n // processes, batch * (n + 1) // processes) for n in range(processes)]

    def _encode(self, pixels: Tensor, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.encoder.encode_image(pixels), self.encoder.encode_text(self.encoder.trim(self.tokens[texts]))

    def _next_pixels(self) -> Tensor:
        if self._pixels is None or self.step_count % self.batches_per_epoch == 0 or self._pixels_of != self.step_count:
            self._pixels = self._epoch_pixels()  # at an epoch's start, and after a step that was not completed
        self._pixels_of = self.step_count + 1
        return next(self._pixels)

    def _epoch_pixels(self) -> Iterator[Tensor]:
        """Augmented pixels of this process's share of the epoch's remaining batches, decoded ahead."""
        order, _ = self.epoch_draw()
        first, size = self.step_count % self.batches_per_epoch, self.batch_size
        own = self.chunks[distributed.rank() :: distributed.size()]
        whole = [order[i * size : (i + 1) * size] for i in range(first, self.batches_per_epoch)]
        batches = [[row for part in own for row in batch[part].tolist()] for batch in whole]
        seed = self.seed_of(self.epoch, salt=3)

        def augmented(image: Tensor, position: int) -> Tensor:
            return augment(
                image, np.random.default_rng([seed, position]), self.config.min_crop, self.config.augmentation
            )

        return pixel_batches(self.encoder, self.trainer.train.image_paths, batches, augmented)

    def validation_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Both float32 and L2-normalised, the validation set embedded anew."""
        image = embed_images(self.encoder, self.trainer.val, progress=False)
        return image, embed_texts(self.encoder, self.trainer.val.texts[0], progress=False)

    def close(self) -> None:
        """End the stream of pixels."""
        self._pixels = None


def image_stages(encoder: DualEncoder) -> list[nn.Module]:
    """The vision tower's stages from input to output, for freezing: a stem and the stages after it.

    Of the bundled tower and of open_clip's transformers, ResNets and timm trunks; ConfigError where they are not known.
    """
    visual = encoder.clip.visual
    trunk = getattr(visual, "trunk", visual)
    blocks = [
        getattr(getattr(trunk, "transformer", None), "resblocks", None),
        getattr(trunk, "blocks", None),
        getattr(trunk, "stages", None),
        getattr(trunk, "layers", None),
        [module for name, module in trunk.named_children() if re.fullmatch(r"layer\d", name)],
    ]
    stages = next((list(of) for of in blocks if of), None)
    if stages is None:
        raise ConfigError(f"The stages of {encoder.name} are not known; set frozen_image_stages=0 to tune all of it")
    last = [trunk.conv_head] if encoder.name == bundled.NAME else []
    return [_stem(trunk, stages[0]), *stages, *last]


def _stem(trunk: nn.Module, first: nn.Module) -> nn.Module:
    """What a trunk has before the first of its stages, its positions and extra tokens included."""
    stem = nn.ModuleList()
    for child in trunk.children():  # built in the order in which data pass through them
        if any(module is first for module in child.modules()):
            break
        stem.append(child)
    for name, table in trunk.named_parameters(recurse=False):
        if name.startswith(("cls_", "reg_", "class_", "pos")):
            stem.register_parameter(name, table)
    return stem


def augment(image: Tensor, rng: np.random.Generator, min_crop: float, kind: Augmentation = "dihedral") -> Tensor:
    """A random dihedral view (of all eight, or of two) of a random crop, resized back; uint8 (3, H, W) to the same.

    Nothing is rotated by other angles or padded, so no black corner ever appears.
    min_crop: smallest share of the area kept; 1 means no crop. The crop keeps the image's aspect within 3/4..4/3.
    kind: "flip" leaves the rotations out, so that an image is flipped, left to right, or not.
    """
    if min_crop < 1:
        height, width = image.shape[-2:]
        share, aspect = rng.uniform(min_crop, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h = min(height, max(1, round(height * math.sqrt(share / aspect))))
        w = min(width, max(1, round(width * math.sqrt(share * aspect))))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        image = TF.resized_crop(image, top, left, h, w, [height, width], antialias=True)
    view = int(rng.integers(0, 8))
    return dihedral(image, view if kind == "dihedral" else view // 4 * 4).contiguous()
