"""The two sides of a border, and what a model finds beyond it.

home, away = two_sides("DATA", source_domain="finland", target_domain="spain")
found = target_ranks(encoder, away.split("test"), away.split("finetune"), "runs/features", "adapted")
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.errors import ConfigError, DataError
from ucore.evaluate import Ranks, retrieval_ranks
from ucore.features import image_tower_features, text_tower_features
from ucore.fusion import fused_biases, heads_similarity, segment_sets, segment_vectors, with_segments
from ucore.hubness import Bank, correct_hubs
from ucore.manifest import OF_SOURCE, OF_TARGET, Manifest, few
from ucore.model import DualEncoder
from ucore.segment_store import SegmentStore


def two_sides(
    folder: str | Path,
    source_domain: str | None = None,
    target: str | Path = "",
    target_domain: str | None = None,
    skip_bad: bool = False,
) -> tuple[Manifest, Manifest]:
    """The source's parts train and val, and all of the target.

    folder, target: dataset folders; without a target, another domain of the same. Domains that are not named are the
    first ones, in alphabetical order: of those with the splits train and val, and of those with the splits of a target
    (finetune, val, test), where there are any. Raises DataError where nothing is left for the target.
    """
    home = read_dataset(folder, split=("train", "val"), skip_bad=skip_bad)
    home = home.domain(source_domain or _first(home, home.domain_splits, OF_SOURCE))
    away = read_dataset(target or folder, skip_bad=skip_bad)
    known, own = list(away.domain_splits), home.domain_splits
    others = known if target else [name for name in known if name not in own]
    if not others:
        raise DataError(
            f"{folder} has the domain {few(known)} alone; adaptation needs another. Name a second dataset (target), or "
            "take one with several domains"
        )
    return home, away.domain(target_domain or _first(away, others, OF_TARGET))


def _first(manifest: Manifest, domains: Iterable[str], splits: set[str]) -> str:
    """The first of some domains that has all of these splits, or else the first."""
    own = manifest.domain_splits
    return min(domains, key=lambda name: (not own[name] >= splits, name))


def target_ranks(
    encoder: DualEncoder,
    test: Manifest,
    finetune: Manifest,
    cache: str | Path | None,
    name: str,
    segments: SegmentStore | None = None,
    config: TrainConfig | None = None,
) -> dict[str, Ranks]:
    """Ranks of the whole gallery of `test`, one view an image: under `name` by plain cosines, and under "`name`, hubs
    corrected" by the target's unpaired images and texts of `finetune` (QB-Norm with a bank of the target).

    segments, config: of both parts, and how they count, where the encoder has a branch for them; as of `tasks.score`.
    """
    towers: list[Any] = [
        (image_tower_features(encoder, part, 1, cache, progress=False),
         text_tower_features(encoder, part.texts[0], cache, progress=False))
        for part in (test, finetune)
    ]  # fmt: skip
    similarity, text = heads_similarity(encoder, *towers[0])
    with encoder.evaluating():
        images = [
            F.normalize(encoder.image_head(torch.from_numpy(image[:, 0]).to(encoder.device)), dim=1).cpu().numpy()
            for image, _ in towers
        ]
    bank = Bank(images[1], heads_similarity(encoder, *towers[1])[1])
    temperature = float(torch.exp(-encoder.logit_scale.detach()))
    if encoder.segments is None:
        corrected = correct_hubs(similarity, images[0], text, bank, temperature)
    else:
        if segments is None or config is None:
            raise ConfigError("This model counts segments: give those of the target's images, and how they count")
        sets, known = (segment_sets(encoder, part, segments, config, False) for part in (test, finetune))
        similarity = with_segments(encoder, similarity, sets, text, config.segment_share)
        bank = Bank(bank.images, bank.texts, segment_vectors(encoder.segments, known, encoder.device))
        parts = images[0], text, sets, bank, config.segment_share, temperature
        of_images, of_texts = fused_biases(encoder, *parts)
        corrected = similarity + of_texts + of_images[:, None]
    scores = {name: similarity, f"{name}, hubs corrected": corrected}
    return {label: retrieval_ranks(one, test.texts[1]) for label, one in scores.items()}


def with_texts_of(finetune: Manifest, others: Manifest, seed: int = 0) -> Manifest:
    """A control: the images of `finetune`, each with the captions of a random image of `others`, of other places.

    No caption is there then that belongs to an image, while all else is as it was: images, their order and whatever is
    known of them. What an adaptation gains with these, it does not owe to the target's texts. Images of `others` are
    taken twice only where they are fewer.
    """
    rows = np.resize(np.random.default_rng(seed).permutation(len(others)), len(finetune))
    frame: Any = finetune.frame.copy()
    frame["captions"] = [list(others.frame["captions"].iloc[row]) for row in rows]
    return Manifest(frame, finetune.root)
