"""What a step of adaptation sees of both domains: the source's batch, the target's samples, and what aligns them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.adversary import (
    Judges,
    balanced_accuracy,
    fresh_accuracy,
    gradient_penalty,
    reversal_strength,
    reverse_gradient,
)
from ucore.alignment import has_segments
from ucore.curriculum import Taken
from ucore.features import image_tower_features
from ucore.fusion import with_segments
from ucore.model import DualEncoder
from ucore.phases import HeadPhase
from ucore.progress import Metrics
from ucore.pseudo import balanced_matching, bridged_similarity
from ucore.transfer import adversarial_loss, conditional_features, random_maps

if TYPE_CHECKING:
    from ucore.adapt import Adapter

SIDES = ("image", "text", "segment")  # what is aligned; the last, where an encoder has segments
CLUSTERS = 16  # of the source's texts, which CDAN conditions on
SHARPNESS = 0.1  # temperature of the memberships
WIDEST = 4096  # of the outer products that CDAN's discriminators see; wider ones are mapped to MAP_WIDTH, as published
MAP_WIDTH = 1024
TEXTS_AN_IMAGE = 8  # of the target's texts that a batch of its images is matched with, at most


class AdaptPhase(HeadPhase):
    """Heads on cached features of frozen towers, of both domains."""

    name = "adaptation"
    trainer: "Adapter"

    def __init__(self, trainer: "Adapter") -> None:
        encoder, config = trainer.encoder, trainer.config
        common: dict[str, Any] = {"cache": trainer.cache, "progress": trainer.progress}
        self.target_image = torch.from_numpy(
            image_tower_features(encoder, trainer.finetune, config.train_views, **common)
        )
        self._maps, width = None, encoder.embed_dim * (CLUSTERS if config.adversary == "cdan" else 1)
        if config.adversary == "cdan" and width > WIDEST:  # a seed that the discriminators' first weights are not of
            maps, width = random_maps(encoder.embed_dim, CLUSTERS, MAP_WIDTH, config.seed + 1), MAP_WIDTH
            self._maps = maps[0].to(encoder.device), maps[1].to(encoder.device)
        self.judges = Judges(SIDES[: 2 if encoder.segments is None else 3], width, config.seed, encoder.device)
        self._accuracy: dict[str, float] = {}  # of the discriminators, percent, on the last step's batch
        self.source_weights = self.target_weights = torch.zeros(0)
        self._drawn: tuple[np.ndarray, np.ndarray] = (np.zeros(0, int), np.zeros(0, int))
        self._bridge: np.ndarray | None = None  # see `_bridged`
        self.taken: Taken | None = None  # by the curriculum, for the last batch: to be looked at
        self._matching: tuple[int, Tensor] | None = None  # of the epoch, chances float (images, texts)
        super().__init__(trainer)

    def _standardise(self) -> None:
        """The heads keep the mean and deviation that they learned with."""

    @classmethod
    def batches_of(cls, config: Any, n: int) -> int:
        """Steps of an epoch: those through the source, but not more than the setting says."""
        return min(super().batches_of(config, n), config.epoch_steps)

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
        """Positions of the source images that the curriculum keeps and of their texts: int64 (B,), (B,).

        Draws the target's samples, and weighs both sides, for the losses of the same step.
        """
        rows, texts = super().next_batch()
        config, sampler, device = self.trainer.config, self.trainer.sampler, self.encoder.device
        self._drawn = self._draw_target()
        if config.pseudo_weight and self.epoch >= config.pseudo_start * self.epochs:
            self._match()  # now, as the averaged weights are put in the place of the trained ones for it
        kept, weights = sampler.keep(texts, self._drawn[1], self.cycle)
        weights = weights if config.domain_weights else np.full(len(kept), 1 / len(kept))
        self.taken = Taken(self.cycle, rows, rows[kept], weights)
        self.source_weights = torch.from_numpy(weights).float().to(device)
        weights = sampler.target_weights(texts[kept], self._drawn[1])
        self.target_weights = torch.from_numpy(weights).float().to(device)
        return rows[kept], texts[kept]

    def _draw_target(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and texts of the target for this step, int64 (B,) each, drawn apart."""
        trainer, size = self.trainer, self.target_batch
        place = self.step_count % (len(trainer.finetune) // size)
        rng = np.random.default_rng(self.seed_of(self.cycle, salt=5))
        images = rng.permutation(len(trainer.finetune))[place * size : (place + 1) * size]
        count = min(size, len(trainer.target_texts))
        places = (place * size + np.arange(count)) % len(trainer.target_texts)
        return images, rng.permutation(len(trainer.target_texts))[places]

    def _draw_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Images of the target whose texts are known, at most a batch, and a text of each, int64 (P,) both."""
        known, owner = self.trainer.known, self.trainer.target_owner
        rng = np.random.default_rng(self.seed_of(self.step_count, salt=9))
        images = rng.permutation(known)[: self.target_batch]
        order = rng.permutation(len(owner))
        owners, first = np.unique(owner[order], return_index=True)
        return images, order[first][np.searchsorted(owners, images)]

    def sides(self, rows: np.ndarray, image_features: Tensor, text_features: Tensor) -> tuple[Any, Any]:
        """What is aligned, of the source's batch and of the step's target: features float32 (B, D) of each of `SIDES`.

        rows: int64 (B,), the batch's images.
        """
        source, target = (image_features, text_features), self.target_features()
        if self.encoder.segments is None:
            return source, target
        ours = self._segment_means("train", rows, image_features)
        return (*source, ours), (*target, self._segment_means("finetune", self._drawn[0], target[0]))

    def _segment_means(self, split: str, rows: np.ndarray, image_features: Tensor) -> Tensor:
        """Means of images' segments, float32 (B, D), L2-normalised; an image without any has its own feature."""
        assert self.encoder.segments is not None
        tower, present = self.trainer.segment_sets(split).take(rows, self.encoder.device)
        means = F.normalize(self.encoder.segments.features(tower, present).sum(dim=1), dim=1)
        return torch.where(has_segments(present)[:, None], means, image_features)

    def segment_scores(self, images: np.ndarray, text: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scores float32 (S, T) of the segments of target images (B,) with text features (T, D), and which of the
        images have any, bool (B,); None where none has, or the encoder knows no segments."""
        branch = self.encoder.segments
        if branch is None:
            return None
        tower, present = self.trainer.segment_sets("finetune").take(images, self.encoder.device)
        some = has_segments(present)
        if not some.any():
            return None
        return branch.pool(branch.features(tower[some], present[some]), present[some], text), some

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

    def known_pairs(self) -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
        """Target images int64 (P,), features float32 (P, D) of them and of texts that are known to belong to them, row
        by row, and bool (P, P): which text belongs to which image."""
        images, texts = self._draw_pairs()
        groups, owner = self.trainer.target_groups, self.trainer.target_owner
        own = [set(groups[owner == image].tolist()) for image in images]
        belonging = [[int(groups[text]) in of_image for text in texts] for of_image in own]
        image, text = self._of_target(images, texts, salt=10)
        return images, image, text, torch.tensor(belonging, device=self.encoder.device)

    # --- what aligns ------------------------------------------------------------------------------------------

    def adversarial(self, source: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """The discriminators' loss, the mean of what there is of `SIDES`, with the gradient towards the features
        reversed. The discriminators have learned before, from the same features: `judge`."""
        strength = reversal_strength(self.step_count / max(1, self.epochs * self.batches_per_epoch))
        with self.judges.still():
            losses = [self._told_apart(side, self._seen(reverse_gradient(torch.cat(parts), strength)), len(parts[0]))[0]
                      for side, *parts in zip(SIDES[: len(source)], source, target, strict=True)]  # fmt: skip
        return torch.stack(losses).mean()

    def judge(self, source: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> None:
        """A few steps of the discriminators on the features of this step, which stand still."""
        config, count = self.trainer.config, len(source[0])
        fixed = {side: self._seen(torch.cat(parts).detach()).requires_grad_()
                 for side, *parts in zip(SIDES[: len(source)], source, target, strict=True)}  # fmt: skip

        def loss() -> Tensor:
            total = fixed["image"].new_zeros(())
            for side, both in fixed.items():
                part, logits = self._told_apart(side, both, count)
                total = total + part
                if config.gradient_penalty:
                    total = total + config.gradient_penalty * gradient_penalty(logits, both, count)
            return total

        self.judges.learn(self.step_count, loss, config.adversary_steps, self.trainer.lr_factor)
        with torch.no_grad():
            said = {side: self.discriminators[side](both) for side, both in fixed.items()}
            self._accuracy = {side: balanced_accuracy(logits[:count], logits[count:]) for side, logits in said.items()}

    @property
    def discriminators(self) -> torch.nn.ModuleDict:
        """One of each of `SIDES` that there is."""
        return self.judges.discriminators

    def _told_apart(self, side: str, both: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`transfer.adversarial_loss` of one of `SIDES`, and its logits (N,). both: what the discriminator sees of both
        domains, (N, D), the first `count` of the source."""
        of_target = self.target_weights if side == "text" else None  # they are the texts'; images are drawn apart
        weights = (self.source_weights, of_target) if self.trainer.config.domain_weights else (None, None)
        logits = self.discriminators[side](both)
        return adversarial_loss(logits[:count], logits[count:], *weights), logits

    def logits(self, side: str, features: Tensor) -> Tensor:
        """What the discriminator of one of `SIDES` says of features (N, D): (N,), above 0 source."""
        return self.discriminators[side](self._seen(features))

    def _seen(self, features: Tensor) -> Tensor:
        centres = self.trainer.centres
        if centres is None:
            return features
        memberships = torch.softmax(features.detach() @ centres.to(features.device).T / SHARPNESS, dim=1)
        return conditional_features(features, memberships, self._maps)

    @torch.no_grad()
    def _match(self) -> None:
        """Which text of the target is likely which image's, with the averaged weights of the epoch's start."""
        if self._matching is not None and self._matching[0] == self.epoch:
            return
        with self.averaged_weights():
            device = self.encoder.device
            image = F.normalize(self.encoder.image_head(self.target_image[:, 0].to(device)), dim=1).cpu().numpy()
            text = shared_text_features(self.encoder, self.trainer.target_text)
            cosines = image @ text.T
            if self.encoder.segments is not None:
                sets, share = self.trainer.segment_sets("finetune"), self.trainer.config.segment_share
                cosines = with_segments(self.encoder, cosines, sets, text, share)
            cosines = self._with_known(self._bridged(cosines))
            chances = balanced_matching(cosines, float(torch.exp(-self.encoder.logit_scale)))
        self._matching = self.epoch, torch.from_numpy(chances).float()

    def _bridged(self, cosines: np.ndarray) -> np.ndarray:
        """The model's cosines (N, T) joined with what is said of alike source images, spread as before."""
        weight, pairs = self.trainer.config.bridge_weight, self.trainer.pairs
        if not weight:
            return cosines
        if self._bridge is None:
            captions = int(pairs.first[-1])
            owner = np.repeat(np.arange(len(self.image)), np.diff(pairs.first))
            target, source = (
                (self.target_image[:, 0], self.trainer.target_text),
                (self.image[:, 0], self.text[:captions]),
            )
            images, texts, known_images, known_texts = (part.float().numpy() for part in (*target, *source))
            self._bridge = bridged_similarity(images, texts, known_images, known_texts, owner)
        spread, bridge = cosines.std(), self._bridge
        return spread / np.sqrt(1 + weight**2) * (cosines / spread + weight * bridge / bridge.std().clip(1e-6))

    def _with_known(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines (N, T); where pairs are known 1 for them, and -1 for what else their images or texts could be."""
        if self.trainer.config.regime == "unpaired":
            return cosines
        own = self.trainer.target_owner[None, :] == np.arange(len(cosines))[:, None]
        known = np.isin(np.arange(len(cosines)), self.trainer.known)
        told = known[:, None] | known[self.trainer.target_owner][None, :]
        return np.where(told, np.where(own, 1.0, -1.0), cosines)

    def pseudo_features(self) -> tuple[np.ndarray, Tensor, Tensor, Tensor, Tensor] | None:
        """Target images int64 (B,), features of them (B, D) and of texts (T, D), and the chances float (B, T) that a
        text is an image's and that an image is a text's; None before the first matching."""
        if self._matching is None:
            return None
        rng = np.random.default_rng(self.seed_of(self.step_count, salt=7))
        images = rng.permutation(len(self.trainer.finetune))[: self.target_batch]
        texts = rng.permutation(len(self.trainer.target_texts))[: TEXTS_AN_IMAGE * self.target_batch]
        image, text = self._of_target(images, texts, salt=8)
        chances = self._matching[1]
        of_images = chances / chances.sum(dim=0).clamp(min=1e-12)
        inside = [part[images][:, texts].to(image.device) for part in (chances, of_images)]
        return images, image, text, inside[0], inside[1]

    @torch.no_grad()
    def watched(self) -> Metrics:
        """Percent: images_told_apart, of those that were adapted to and up to 1,000 of the source, whose domain new
        classifiers know (`adversary.fresh_accuracy`), and, with an adversary, texts_told_apart likewise;
        discriminator_accuracy, of the last batch's images those that the adversary knew, which had just learned from
        them, and text_discriminator_accuracy; matching_precision, of the target's images those whose likeliest text is
        theirs."""
        trainer, head = self.trainer, self.encoder.image_head
        result: Metrics = {"images_told_apart": self._known_anew(head, self.image[:, 0], self.target_image[:, 0])}
        if self._accuracy:
            result["discriminator_accuracy"] = self._accuracy["image"]
            result["text_discriminator_accuracy"] = self._accuracy["text"]
            result["texts_told_apart"] = self._known_anew(self.encoder.text_head, self.text, trainer.target_text)
        if self._matching is not None:
            chosen = self._matching[1].argmax(dim=1).numpy()
            groups, owner = trainer.target_groups, trainer.target_owner
            right = [groups[text] in groups[owner == image] for image, text in enumerate(chosen)]
            result["matching_precision"] = 100 * float(np.mean(right))  # by the true pairs: to be looked at alone
        return result

    def _known_anew(self, head: torch.nn.Module, source: Tensor, target: Tensor) -> float:
        """Percent of up to 1,000 samples a domain, evenly spread, of tower features (N, W) and (M, W), whose domain new
        classifiers of what `head` makes of them know."""
        features = []
        for part in (source, target):
            rows = np.linspace(0, len(part) - 1, min(len(part), 1000)).round().astype(int)
            features.append(F.normalize(head(part[rows].to(self.encoder.device)), dim=1).cpu().numpy())
        return fresh_accuracy(*features)

    def state(self) -> dict[str, Any]:
        """What a run resumes from: also the discriminators, and the pairs that were matched."""
        return {**super().state(), **self.judges.state(self.step_count), "matching": self._matching}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(state)
        self.judges.restore(state)
        self._matching = state["matching"]


@torch.no_grad()
def shared_text_features(encoder: DualEncoder, text: Tensor) -> np.ndarray:
    """Text features float32 (T, D) in the shared space, L2-normalised, from the tower's."""
    return F.normalize(encoder.text_head(text.to(encoder.device)), dim=1).cpu().numpy()
