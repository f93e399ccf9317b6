"""Adaptation from a source to a target domain, on the same loop as training: steppable, resumable, seeded.

    adapter = Adapter(encoder, source, finetune, val, AdaptConfig.of("ucore"), out="runs/rsicd-nepal")
    adapter.fit()

Every method is a set of values of `AdaptConfig`, and sees the same batches: pairs of the source, and images and texts
of the target's part "finetune"; `ucore` besides matches that whole part every epoch, by the source's pairs as well, and
compares a batch of its images with eight times as many texts (`adapt_phase.TEXTS_AN_IMAGE`). Weights are chosen without
any pair of the target: the last ones, or those with the highest `pseudo.return_probability` of its validation images
and texts. The mR there is measured beside: an oracle's.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.adapt_config import AdaptConfig
from ucore.adapt_phase import CLUSTERS, AdaptPhase, shared_text_features
from ucore.curriculum import CurriculumSampler, share_of
from ucore.data import caption_groups
from ucore.errors import ConfigError
from ucore.evaluate import similarity_matrix
from ucore.features import text_tower_features
from ucore.files import content_hash
from ucore.losses import contrastive_loss, sigmoid_loss
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.progress import Metrics
from ucore.pseudo import return_probability
from ucore.segment_store import SegmentStore
from ucore.train import Trainer
from ucore.transfer import coral_loss, domain_triplet_loss, matched_loss, mmd_loss

MOST_CHANCES = 2 * 10**8  # entries of a matching: 1.6 GB as float64


class Adapter(Trainer):
    """Adapts the heads of `encoder` in place, from the source's pairs to the target.

    source: its training images and captions. finetune, val: the target's; `val` chooses the weights. The target's test
    part is not seen. out, cache: as of `Trainer`. segments, target_segments: of the images of either, where the
    configuration uses any; one store may have both. An encoder that was trained with segments keeps its branch,
    another gets one that starts from its image head.
    """

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
        segments: SegmentStore | None = None,
        target_segments: SegmentStore | None = None,
    ) -> None:
        require_both_sides(finetune, val)
        super().__init__(encoder, source, val, config, out, cache, progress, segments)
        self.finetune = finetune
        target_segments = segments if target_segments is None else target_segments
        self._segmented |= {"finetune": (finetune, target_segments), "val": (val, target_segments)}
        self.store = target_segments
        if target_segments is not None and encoder.segments is not None:
            self.start["segments of the target"] = content_hash(target_segments.parts.settings)
        self.criterion = config.choose_by
        self.target_texts, self.target_owner = finetune.texts
        if config.pseudo_weight and len(finetune) * len(self.target_texts) > MOST_CHANCES:
            raise ConfigError(
                f"Matching {len(finetune):,} images with {len(self.target_texts):,} texts takes too much memory; give "
                "a smaller target, or -s pseudo_weight=0"
            )
        own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("clip.")}
        heads = [part.detach().cpu().numpy().tobytes() for part in (*own.values(), encoder.logit_scale)]
        self.start["heads"] = content_hash(*heads)
        self.start["samples of the target"] = content_hash(list(finetune.frame["sample_id"]), self.target_texts)
        common: dict[str, Any] = {"cache": self.cache, "progress": self.progress}
        raw = [text_tower_features(encoder, texts, **common) for texts in (self.texts, self.target_texts)]
        self.target_text = torch.from_numpy(raw[1])
        frozen = [
            shared_text_features(encoder, torch.from_numpy(part)) for part in raw
        ]  # now: resuming brings other weights
        self.sampler = CurriculumSampler(
            frozen[0], frozen[1], config.curriculum, config.curriculum_start, config.curriculum_growth
        )
        self.centres = _centres(frozen[0], config.seed) if config.adversary == "cdan" else None
        self.target_groups = caption_groups(self.target_texts)
        some = np.random.default_rng(config.seed).permutation(np.unique(self.target_owner))
        self.known = np.sort(some[: config.shots])  # images whose texts are known, in the regime "paired"
        self._kinds = [AdaptPhase]
        self._warn_of_a_short_curriculum()

    def _warn_of_a_short_curriculum(self) -> None:
        config, images = self.config, len(self.finetune)
        passes = (self.total_steps - 1) // (images // min(config.target_batch_size, images))
        share = share_of(passes, config.curriculum_start, config.curriculum_growth)
        if config.curriculum != "none" and share < 1 and config.curriculum_growth:
            warnings.warn(
                f"The curriculum ends at {share:.0%} of the source: {self.total_steps:,} steps are {passes} whole "
                f"passes through the {images:,} images to adapt to. Give more epochs, -s head_epochs=",
                stacklevel=3,
            )

    def _equip(self) -> None:
        """Keep what the checkpoint learned; refuse settings that do not go with it."""
        encoder, config = self.encoder, self.config
        if (encoder.logit_bias is not None) != (config.loss == "sigmoid"):
            trained, asked = ("with", "give it") if encoder.logit_bias is not None else ("without", "leave it out")
            raise ConfigError(f"The checkpoint was trained {trained} loss=sigmoid; {asked} here, too: -s loss")
        if encoder.segments is None and config.segments != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                encoder.add_segments(config.segments)
        if encoder.segments is not None and encoder.segments.pool.kind != config.segments:
            kind = encoder.segments.pool.kind
            raise ConfigError(f"The checkpoint pools segments by {kind}, these settings by {config.segments}: give "
                              f"-s segments={kind} and the masks, --segments")  # fmt: skip

    def losses(
        self, rows: np.ndarray, image_features: Tensor, text_features: Tensor, positives: Tensor
    ) -> dict[str, Tensor]:
        """The parts of the loss, weighted: the source's pairs, and what aligns the target with it."""
        phase: Any = self.phase
        config, parts = self.config, {}
        if config.source_weight:
            own = super().losses(rows, image_features, text_features, positives)
            parts = {name: config.source_weight * part for name, part in own.items()}
        if config.aligns:
            parts |= self._alignment(*phase.sides(rows, image_features, text_features))
        if config.triplet_weight:
            margin = min(config.triplet_margin + config.triplet_growth * phase.cycle, config.triplet_most)
            weights = phase.source_weights if config.domain_weights else None
            parts["triplet"] = config.triplet_weight * domain_triplet_loss(
                image_features, text_features, positives == 1, margin, weights
            )
        if config.regime == "paired":
            images, image, text, belonging = phase.known_pairs()
            parts["target_pairs"] = self._contrast(image @ text.T, belonging)
            if (of_segments := phase.segment_scores(images, text)) is not None:
                scores, some = of_segments
                parts["target_segments"] = config.segment_weight * self._contrast(scores, belonging[some])
        if config.pseudo_weight and (found := phase.pseudo_features()) is not None:
            images, image, text, of_texts, of_images = found
            parts["matched"] = config.pseudo_weight * self._matched(image @ text.T, of_texts, of_images)
            if (of_segments := phase.segment_scores(images, text)) is not None:
                scores, some = of_segments
                loss = self._matched(scores, of_texts[some], of_images[some])
                parts["matched_segments"] = config.pseudo_weight * config.segment_weight * loss
        return parts

    def _alignment(self, source: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> dict[str, Tensor]:
        phase: Any = self.phase
        config, parts = self.config, {}
        if config.adversary != "none":
            phase.judge(source, target)
            parts["adversarial"] = config.adversarial_weight * phase.adversarial(source, target)
        if config.coral_weight:
            parts["coral"] = config.coral_weight * torch.stack(list(map(_coral, source, target))).sum()
        if config.mmd_weight:
            parts["mmd"] = config.mmd_weight * torch.stack(list(map(mmd_loss, source, target))).sum()
        return parts

    def _contrast(self, similarity: Tensor, belonging: Tensor) -> Tensor:
        scale, bias = self.encoder.logit_scale, self.encoder.logit_bias
        if bias is not None:
            return sigmoid_loss(similarity, scale, bias, belonging)
        return contrastive_loss(similarity, scale, belonging, self.config.label_smoothing)

    def _matched(self, similarity: Tensor, of_texts: Tensor, of_images: Tensor) -> Tensor:
        scale, bias = self.encoder.logit_scale, self.encoder.logit_bias
        if bias is not None:  # a text has one image: the chance that a pair belongs together
            return sigmoid_loss(similarity, scale, bias, of_images)
        return matched_loss(similarity, scale, of_texts, of_images)

    def _validate(self) -> Metrics:
        metrics = super()._validate()  # by the target's pairs: to be looked at, not to choose by
        similarity = self.validated.get("similarity")  # where segments are part of it
        if similarity is None:
            similarity = similarity_matrix(self.validated["image"], self.validated["text"])
        metrics["return_probability"] = return_probability(similarity)
        metrics["last"] = float(self.phase.epoch)
        phase: Any = self.phase
        return metrics | phase.watched()


def require_both_sides(finetune: Manifest, val: Manifest) -> None:
    """Raise ConfigError where one of the target's parts lacks what adaptation takes of it."""
    for part, name, least, what in (
        (finetune, "finetune", 2, "adaptation needs at least 2 of each"),
        (val, "val", 1, "what is adapted is looked at with its pairs, whichever weights are kept"),
    ):
        images, texts = len(part), len(part.texts[0])
        if min(images, texts) < least:
            raise ConfigError(
                f"The target's part {name} has {images} image(s) and {texts} text(s); {what}. Take a larger target, or "
                "leave adaptation out"
            )


def _coral(source: Tensor, target: Tensor) -> Tensor:
    """Of unit vectors, whose covariances are 1 / D in all, so times D^2. It stays small beside a contrastive loss;
    30 times as heavy it costs recall where hubs are not corrected, and earns a point where they are (LOG)."""
    return source.shape[1] ** 2 * coral_loss(source, target)


def _centres(features: np.ndarray, seed: int) -> Tensor:
    """Centres float32 (CLUSTERS, D) of k-means, L2-normalised; of fewer distinct features, these, again and again."""
    from scipy.cluster.vq import kmeans2

    distinct = np.unique(features.round(4), axis=0)
    if len(distinct) <= CLUSTERS:
        return F.normalize(torch.from_numpy(np.resize(distinct, (CLUSTERS, features.shape[1]))).float(), dim=1)
    centres = kmeans2(features.astype(np.float64), CLUSTERS, minit="++", rng=seed)[0]
    return F.normalize(torch.from_numpy(centres).float(), dim=1)
