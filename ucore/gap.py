"""How much a model loses at a border: trained in each domain, scored in all of them.

    gap = domain_gap(load_encoder(), manifest, TrainConfig.at("tiny"), "runs/gap", "runs/features")
    gap.lost          # percent of the home model's mR, source x target

Frozen-feature mode: heads alone. A source's result is kept under a key of all it depends on.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ucore.config import TrainConfig
from ucore.errors import DataError
from ucore.evaluate import CUTOFFS, Ranks, bootstrap_ci, metrics_from_ranks, retrieval_ranks
from ucore.features import image_tower_features, text_tower_features
from ucore.files import content_hash, parse_json, write_json
from ucore.fusion import heads_similarity
from ucore.manifest import Manifest, few
from ucore.model import DualEncoder
from ucore.origin import code_key
from ucore.train import Trainer


class Gap(NamedTuple):
    """domains, in the order of rows (sources) and columns (targets); ranks[source][target] on the target's test part;
    owner: for each target the image of each of its texts."""

    domains: list[str]
    ranks: list[list[Ranks]]
    owner: list[np.ndarray]

    @property
    def mean_recall(self) -> np.ndarray:
        """mR in percent, float64 (sources, targets)."""
        return np.array([[metrics_from_ranks(*ranks)["mR"] for ranks in row] for row in self.ranks])

    @property
    def chance(self) -> np.ndarray:
        """mR in percent that guessing has, about, float64 (targets,): the first k hold the one right image of n in k
        of n cases."""
        images = np.array([int(owner.max()) + 1 for owner in self.owner])
        return 100 * np.mean([np.minimum(1, k / images) for k in CUTOFFS], axis=0)

    @property
    def lost(self) -> np.ndarray:
        """Percent of the mR of the target's own model that the source's model lacks there, float64, like the above."""
        recall = self.mean_recall
        return 100 * (1 - recall / np.diag(recall))

    @property
    def mean_lost(self) -> float:
        """Mean of `lost` over all pairs of different domains."""
        return float(self.lost[~np.eye(len(self.domains), dtype=bool)].mean())


def domain_gap(
    encoder: DualEncoder,
    manifest: Manifest,
    config: TrainConfig,
    out: str | Path,
    cache: str | Path | None = None,
) -> Gap:
    """Train heads on each domain's train part, chosen on its val part, and rank every domain's whole test part.

    encoder: is not trained itself; all sources start from the same heads, of the configuration's seed. Raises DataError
    where there is one domain only, or one lacks a split.
    """
    domains = sorted(set(manifest.frame["domain"]))
    if len(domains) < 2:
        raise DataError(
            f"A gap needs two domains, and {manifest.root} has {few(domains)} alone. Choose another dataset."
        )
    trains, vals, tests = (
        [manifest.domain(name).split(split) for name in domains] for split in ("train", "val", "test")
    )
    torch.manual_seed(config.seed)
    fresh = copy.deepcopy(encoder)
    fresh.new_heads()
    ranks = []
    weights = [encoder.name, encoder.fingerprint("image"), encoder.fingerprint("text")]
    code = code_key(["from ucore.gap import domain_gap"])  # ranks of other code are not this code's
    for name, train, val in zip(domains, trains, vals, strict=True):
        keys = [part.content_key() for part in (train, val, *tests)]
        path = Path(out) / f"{content_hash(config.to_dict(), keys, weights, code)}.json"
        kept = _read(path, tests)
        if kept is None:
            own = copy.deepcopy(fresh)
            Trainer(own, train, val, config, None, cache, progress=False).fit()
            kept = [_ranks(own, test, cache) for test in tests]
            plain = [[part.tolist() for part in ranks_of_target] for ranks_of_target in kept]
            write_json(path, {"source": name, "targets": domains, "ranks": plain})
        ranks.append(kept)
    return Gap(domains, ranks, [test.texts[1] for test in tests])


def camera_share(one_camera: Gap, own_cameras: Gap) -> float:
    """Percent of the mean loss between domains, each with a camera of its own, that one camera for all does away with.

    Both sets must show the same kind of places: only a simulator can give such a pair.
    """
    return 100 * (1 - one_camera.mean_lost / own_cameras.mean_lost)


def _ranks(encoder: DualEncoder, manifest: Manifest, cache: str | Path | None) -> Ranks:
    image = image_tower_features(encoder, manifest, 1, cache, progress=False)
    text = text_tower_features(encoder, manifest.texts[0], cache, progress=False)
    return retrieval_ranks(heads_similarity(encoder, image, text)[0], manifest.texts[1])


def _read(path: Path, tests: list[Manifest]) -> list[Ranks] | None:
    """Kept ranks; None when there are none, or ones that cannot be read."""
    try:
        kept = [(np.array(one), np.array(other)) for one, other in parse_json(path.read_text("utf-8"))["ranks"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if not all(of.ndim == 1 and of.dtype.kind in "iu" and of.min(initial=0) >= 0 for pair in kept for of in pair):
        return None
    sizes = [(len(test), len(test.texts[0])) for test in tests]
    return kept if [(len(one), len(other)) for one, other in kept] == sizes else None


def gap_rows(gap: Gap, label: str = "", seed: int = 0) -> list[dict[str, Any]]:
    """Rows for a `Report`: of each source and target mR with its 95 % interval, and what is lost on average."""
    rows = []
    for source, ranks in zip(gap.domains, gap.ranks, strict=True):
        for target, one, owner in zip(gap.domains, ranks, gap.owner, strict=True):
            low, high = bootstrap_ci(*one, owner, seed=seed)["mR"]
            name = ", ".join(part for part in (f"{source} -> {target}", label) if part)
            value = metrics_from_ranks(*one)["mR"]
            rows.append({"label": name, "metric": "mR", "value": value, "low": low, "high": high, "n": len(owner)})
    name = ", ".join(part for part in ("lost at a border, percent", label) if part)
    pairs = len(gap.domains) * (len(gap.domains) - 1)
    return [*rows, {"label": name, "metric": "mR_lost", "value": gap.mean_lost, "n": pairs}]
