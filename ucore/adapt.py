"""Adaptation from a source to a target domain, on the same loop as training: steppable, resumable, seeded.

    adapter = Adapter(encoder, source, finetune, val, AdaptConfig.of("ucore"), out="runs/rsicd-nepal")
    adapter.fit()

Every method is a set of values of `AdaptConfig`, and sees the same batches: pairs of the source, and images and texts
of the target's part "finetune". Weights are chosen without any pair of the target, by `pseudo.return_probability` of
its validation images and texts; the mR there is measured beside, as what an oracle would have chosen by.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.adapt_config import AdaptConfig
from ucore.adversary import DomainDiscriminator, balanced_accuracy, reversal_strength, reverse_gradient
from ucore.curriculum import CurriculumSampler
from ucore.data import caption_groups
from ucore.errors import ConfigError
from ucore.evaluate import similarity_matrix
from ucore.features import image_tower_features, text_tower_features
from ucore.files import content_hash
from ucore.losses import clip_loss
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.phases import Groups, HeadPhase
from ucore.progress import Metrics
from ucore.pseudo import balanced_matching, return_probability
from ucore.train import Trainer
from ucore.transfer import (
    adversarial_loss,
    conditional_features,
    coral_loss,
    domain_triplet_loss,
    matched_loss,
    mmd_loss,
)

CLUSTERS = 16  # of the source's texts, which CDAN conditions on
MOST_CHANCES = 2 * 10**8  # entries of a matching: 1.6 GB as float64
SHARPNESS = 0.1  # temperature of the memberships
TEXTS_AN_IMAGE = 8  # of the target's texts that a batch of its images is matched with, at most


class Adapter(Trainer):
    """Adapts the heads of `encoder` in place, from the source's pairs to the target.

    source: its training images and captions. finetune, val: the target's; `val` chooses the weights. The target's test
    part is not seen. out, cache: as of `Trainer`.
    """

    criterion = "return_probability"
    config: AdaptConfig

    def __init__(
        self,
        encoder: DualEncoder,
        source: Manifest,
        finetune: Manifest,
        val: Manifest,
        config: AdaptConfig,
        out: str | Path | None = None,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(encoder, source, val, config, out, cache, progress)
        self.finetune = finetune
        self.target_texts, self.target_owner = finetune.texts
        if len(finetune) < 2 or len(self.target_texts) < 2:
            raise ConfigError(
                f"The target's part finetune has {len(finetune)} image(s) and {len(self.target_texts)} text(s); "
                "adaptation needs at least 2 of each. Take a larger target, or leave adaptation out"
            )
        if config.pseudo_weight and len(finetune) * len(self.target_texts) > MOST_CHANCES:
            raise ConfigError(
                f"Matching {len(finetune):,} images with {len(self.target_texts):,} texts takes too much memory; give "
                "a smaller target, or -s pseudo_weight=0"
            )
        own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("clip.")}
        heads = [part.detach().cpu().numpy().tobytes() for part in (*own.values(), encoder.logit_scale)]
        self.start += [content_hash(*heads), content_hash(list(finetune.frame["sample_id"]), self.target_texts)]
        common: dict[str, Any] = {"cache": self.cache, "progress": self.progress}
        raw = [text_tower_features(encoder, texts, **common) for texts in (self.texts, self.target_texts)]
        self.target_text = torch.from_numpy(raw[1])
        frozen = [_shared(encoder, torch.from_numpy(part)) for part in raw]  # now: resuming brings other weights
        self.sampler = CurriculumSampler(
            frozen[0], frozen[1], config.curriculum, config.curriculum_start, config.curriculum_growth
        )
        self.centres = _centres(frozen[0], config.seed) if config.adversary == "cdan" else None
        self.target_groups = caption_groups(self.target_texts)
        self._kinds = [AdaptPhase]

    def losses(
        self, rows: np.ndarray, image_features: Tensor, text_features: Tensor, positives: Tensor
    ) -> dict[str, Tensor]:
        """The parts of the loss, weighted: the source's pairs, and what aligns the target with it."""
        phase: Any = self.phase
        config, parts = self.config, {}
        if config.source_weight:
            own = super().losses(rows, image_features, text_features, positives)
            parts = {name: config.source_weight * part for name, part in own.items()}
        source, target = (image_features, text_features), phase.target_features()
        if config.adversary != "none":
            parts["adversarial"] = config.adversarial_weight * phase.adversarial(source, target)
        if config.coral_weight:
            parts["coral"] = config.coral_weight * torch.stack(list(map(_coral, source, target))).sum()
        if config.mmd_weight:
            parts["mmd"] = config.mmd_weight * torch.stack(list(map(mmd_loss, source, target))).sum()
        if config.triplet_weight:
            margin = min(config.triplet_margin + config.triplet_growth * phase.cycle, config.triplet_most)
            weights = phase.source_weights if config.domain_weights else None
            parts["triplet"] = config.triplet_weight * domain_triplet_loss(*source, positives > 0, margin, weights)
        if config.regime == "paired":
            parts["target_pairs"] = self._contrast(*target, *phase.target_pair_positives())
        if config.pseudo_weight and (found := phase.pseudo_features()) is not None:
            image, text, of_texts, of_images = found
            loss = matched_loss(image @ text.T, self.encoder.logit_scale, of_texts, of_images)
            parts["matched"] = config.pseudo_weight * loss
        return parts

    def _contrast(self, images: Tensor, texts: Tensor, positives: Tensor) -> Tensor:
        return clip_loss(images, texts, self.encoder.logit_scale, positives, self.config.label_smoothing)

    def _validate(self) -> Metrics:
        metrics = super()._validate()  # by the target's pairs: to be looked at, not to choose by
        similarity = similarity_matrix(self.validated["image"], self.validated["text"])
        metrics["return_probability"] = return_probability(similarity)
        phase: Any = self.phase
        return metrics | phase.watched()


class AdaptPhase(HeadPhase):
    """Heads on cached features of frozen towers, of both domains."""

    name = "adaptation"
    trainer: Adapter

    def __init__(self, trainer: Adapter) -> None:
        encoder, config = trainer.encoder, trainer.config
        common: dict[str, Any] = {"cache": trainer.cache, "progress": trainer.progress}
        self.target_image = torch.from_numpy(
            image_tower_features(encoder, trainer.finetune, config.train_views, **common)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            width = encoder.embed_dim * (CLUSTERS if config.adversary == "cdan" else 1)
            self.discriminators = torch.nn.ModuleDict({side: DomainDiscriminator(width) for side in ("image", "text")})
        self.discriminators.to(encoder.device)
        self.source_weights = self.target_weights = torch.zeros(0)
        self._drawn: tuple[np.ndarray, np.ndarray] = (np.zeros(0, int), np.zeros(0, int))
        self._matching: tuple[int, Tensor] | None = None  # of the epoch, chances float (images, texts)
        super().__init__(trainer)

    def _standardise(self) -> None:
        """The heads keep the mean and deviation that they learned with."""

    def _groups(self) -> Groups:
        groups = super()._groups()
        if self.trainer.config.adversary != "none":
            groups["discriminator"] = (list(self.discriminators.parameters()), 1e-3)
        return groups

    # --- batches ----------------------------------------------------------------------------------------------

    @property
    def target_batch(self) -> int:
        """Images, and texts, of the target a step."""
        return min(self.trainer.config.target_batch_size, len(self.trainer.finetune))

    @property
    def cycle(self) -> int:
        """Complete passes through the target's images."""
        return self.step_count // (len(self.trainer.finetune) // self.target_batch)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        rows, texts = super().next_batch()
        config, sampler, device = self.trainer.config, self.trainer.sampler, self.encoder.device
        self._drawn = self._draw_target()
        if config.pseudo_weight and self.epoch >= config.pseudo_start * self.epochs:
            self._match()  # now, as the averaged weights are put in the place of the trained ones for it
        kept, weights = sampler.keep(texts, self._drawn[1], self.cycle)
        self.source_weights = torch.from_numpy(weights).float().to(device)
        weights = sampler.target_weights(texts[kept], self._drawn[1])
        self.target_weights = torch.from_numpy(weights).float().to(device)
        return rows[kept], texts[kept]

    def _draw_target(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and texts of the target for this step, int64 (B,) each: drawn apart, or the images' own texts."""
        trainer, size = self.trainer, self.target_batch
        place = self.step_count % (len(trainer.finetune) // size)
        rng = np.random.default_rng(self.seed_of(self.cycle, salt=5))
        images = rng.permutation(len(trainer.finetune))[place * size : (place + 1) * size]
        if trainer.config.regime == "paired":
            order = rng.permutation(len(trainer.target_texts))
            owners, first = np.unique(trainer.target_owner[order], return_index=True)
            return images, order[first][np.searchsorted(owners, images)]
        count = min(size, len(trainer.target_texts))
        places = (place * size + np.arange(count)) % len(trainer.target_texts)
        return images, rng.permutation(len(trainer.target_texts))[places]

    def target_features(self) -> tuple[Tensor, Tensor]:
        """Features of the step's target images and texts, float32 (B, D) each, L2-normalised, with gradients."""
        images, texts = self._drawn
        return self._of_target(images, texts, salt=6)

    def _of_target(self, images: np.ndarray, texts: np.ndarray, salt: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(self.seed_of(self.step_count, salt=salt))
        views = rng.integers(0, self.target_image.shape[1], len(images))
        device, encoder = self.encoder.device, self.encoder
        image = encoder.image_head(self.target_image[images, views].to(device))
        text = encoder.text_head(self.trainer.target_text[texts].to(device))
        return F.normalize(image, dim=1), F.normalize(text, dim=1)

    def target_pair_positives(self) -> tuple[Tensor]:
        """bool (B, B): which of the step's target texts belong to which image, where pairs are known."""
        images, texts = self._drawn
        groups, owner = self.trainer.target_groups, self.trainer.target_owner
        own = [set(groups[owner == image].tolist()) for image in images]
        belonging = [[int(groups[text]) in of_image for text in texts] for of_image in own]
        return (torch.tensor(belonging, device=self.encoder.device),)

    # --- what aligns ------------------------------------------------------------------------------------------

    def adversarial(self, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """The discriminators' loss on images and on texts, with the gradient towards the features reversed."""
        strength = reversal_strength(self.step_count / max(1, self.epochs * self.batches_per_epoch))
        config, total = self.trainer.config, source[0].new_zeros(())
        even = torch.full_like(self.target_weights, 1 / max(1, len(self.target_weights)))
        for side, ours, others in zip(("image", "text"), source, target, strict=True):
            logits = [
                self.discriminators[side](self._seen(reverse_gradient(part, strength))) for part in (ours, others)
            ]
            # The weights are those of the target's texts: where images were drawn apart, theirs are even.
            of_target = self.target_weights if side == "text" or config.regime == "paired" else even
            weights = (self.source_weights, of_target) if config.domain_weights else (None, None)
            total = total + adversarial_loss(logits[0], logits[1], *weights)
        return total / 2

    def _seen(self, features: Tensor) -> Tensor:
        centres = self.trainer.centres
        if centres is None:
            return features
        memberships = torch.softmax(features.detach() @ centres.to(features.device).T / SHARPNESS, dim=1)
        return conditional_features(features, memberships)

    @torch.no_grad()
    def _match(self) -> None:
        """Which text of the target is likely which image's, with the averaged weights of the epoch's start."""
        if self._matching is not None and self._matching[0] == self.epoch:
            return
        with self.averaged_weights():
            device = self.encoder.device
            image = F.normalize(self.encoder.image_head(self.target_image[:, 0].to(device)), dim=1).cpu().numpy()
            text = _shared(self.encoder, self.trainer.target_text)
            chances = balanced_matching(image @ text.T, float(torch.exp(-self.encoder.logit_scale)))
        self._matching = self.epoch, torch.from_numpy(chances).float()

    def pseudo_features(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Features of target images (B, D) and texts (T, D), and the chances float (B, T) that a text is an image's and
        that an image is a text's; None before the first matching."""
        if self._matching is None:
            return None
        rng = np.random.default_rng(self.seed_of(self.step_count, salt=7))
        images = rng.permutation(len(self.trainer.finetune))[: self.target_batch]
        texts = rng.permutation(len(self.trainer.target_texts))[: TEXTS_AN_IMAGE * self.target_batch]
        image, text = self._of_target(images, texts, salt=8)
        chances = self._matching[1]
        of_images = chances / chances.sum(dim=0).clamp(min=1e-12)
        inside = [part[images][:, texts].to(image.device) for part in (chances, of_images)]
        return image, text, inside[0], inside[1]

    @torch.no_grad()
    def watched(self) -> Metrics:
        """discriminator_accuracy, percent, on all of the target and up to 1,000 images of the source; and
        matching_precision, percent of the target's images whose likeliest text is theirs."""
        result: Metrics = {}
        encoder, device, trainer = self.encoder, self.encoder.device, self.trainer
        if trainer.config.adversary != "none":
            rows = np.linspace(0, len(self.image) - 1, min(len(self.image), 1000)).round().astype(int)
            source, target = (
                F.normalize(encoder.image_head(part.to(device)), dim=1)
                for part in (self.image[rows, 0], self.target_image[:, 0])
            )
            self.discriminators.eval()
            logits = [self.discriminators["image"](self._seen(part)) for part in (source, target)]
            self.discriminators.train()
            result["discriminator_accuracy"] = balanced_accuracy(*logits)
        if self._matching is not None:
            chosen = self._matching[1].argmax(dim=1).numpy()
            groups, owner = trainer.target_groups, trainer.target_owner
            right = [groups[text] in groups[owner == image] for image, text in enumerate(chosen)]
            result["matching_precision"] = 100 * float(np.mean(right))  # by the true pairs: to be looked at alone
        return result

    def state(self) -> dict[str, Any]:
        return {**super().state(), "discriminators": self.discriminators.state_dict(), "matching": self._matching}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.discriminators.load_state_dict(state["discriminators"])
        self._matching = state["matching"]


def _coral(source: Tensor, target: Tensor) -> Tensor:
    """Of unit vectors, whose covariances are 1 / D in all: times D^2 the loss is of order 1, as for wide layers."""
    return source.shape[1] ** 2 * coral_loss(source, target)


@torch.no_grad()
def _shared(encoder: DualEncoder, text: Tensor) -> np.ndarray:
    """Text features float32 (T, D) in the shared space, L2-normalised, from the tower's."""
    return F.normalize(encoder.text_head(text.to(encoder.device)), dim=1).cpu().numpy()


def _centres(features: np.ndarray, seed: int) -> Tensor:
    """Centres float32 (CLUSTERS, D) of k-means, L2-normalised."""
    from scipy.cluster.vq import kmeans2

    centres = kmeans2(features.astype(np.float64), CLUSTERS, minit="++", rng=seed)[0]
    return F.normalize(torch.from_numpy(centres).float(), dim=1)
