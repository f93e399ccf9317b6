"""Which part of an adaptation earns its keep: one setting changed at a time, as `ablations.Study` does for training.

    study = border_study(encoder, "DATA", "runs/ablations/adaptation", "runs/features", seed=0)
    rows = study.table(["curriculum=none", "adversary=none"], seeds=[0, 1, 2])

Every run starts from the same source-only model, and ranks the target's validation block: its test part is not seen.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from ucore.ablations import BASE, Study
from ucore.adapt import Adapter
from ucore.adapt_config import AdaptConfig
from ucore.cli_adapt import refuse_shared, target_parts
from ucore.config import TrainConfig
from ucore.crossing import two_sides
from ucore.files import content_hash
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.notebooks import parse_parameters
from ucore.segment_store import SegmentStore
from ucore.segments import segment_dataset
from ucore.train import Trainer

# Against the paper's method: other methods; then its sampler, weights, adversary, triplet, contrastive loss, segments.
ADAPT_ARMS = (
    *("method=source-only", "method=ucore", "curriculum=none", "curriculum=density", "domain_weights=false"),
    *("adversary=none", "triplet_weight=0", "source_weight=0", "segments=late"),
)


class AdaptStudy(Study):
    """Runs of `Adapter`, kept by content.

    encoder: the source-only model that all runs start from; each has a copy. source: pairs to train on. finetune, val:
    the target's parts. method: whose settings the base has. store: segments of all of them, which arms may use and the
    base does not. The other arguments are those of `Study`.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        source: Manifest,
        finetune: Manifest,
        val: Manifest,
        out: str | Path,
        cache: str | Path | None = None,
        scale: str = "tiny",
        progress: bool = True,
        method: str = "paper",
        store: SegmentStore | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(encoder, source, val, out, cache, store, scale, progress, **{"segments": "none", **changes})
        self.finetune, self.method = finetune, method
        heads = [value for name, value in encoder.state_dict().items() if not name.startswith("clip.")]
        own = [part.detach().cpu().numpy().tobytes() for part in (*heads, encoder.logit_scale)]
        self._key += [finetune.content_key(), content_hash(*own)]

    def config(self, arm: str, seed: int = 0) -> AdaptConfig:
        """Settings of an arm on top of the method's; "method=..." among its settings names another method."""
        own = {} if arm == BASE else parse_parameters(arm.split(","))
        method = str(own.pop("method", self.method))
        return AdaptConfig.of(method, self.scale, **{**self.changes, **own, "seed": seed})

    def _trainer(self, config: TrainConfig) -> Adapter:
        assert isinstance(config, AdaptConfig)
        encoder = copy.deepcopy(self.encoder)
        return Adapter(encoder, self.train, self.finetune, self.val, config, None, self.cache, False, self.store)


def source_only(
    encoder: DualEncoder, home: Manifest, scale: str, seed: int, cache: str | Path | None = None, **changes: Any
) -> DualEncoder:
    """A copy of `encoder` whose heads were trained on a domain alone, and chosen on its val part; towers frozen."""
    torch.manual_seed(seed)
    own = copy.deepcopy(encoder)
    own.new_heads()
    config = TrainConfig.at(scale, seed=seed, tune_epochs=0, **changes)
    Trainer(own, home.split("train"), home.split("val"), config, None, cache, progress=False).fit()
    return own


def few_steps(train: Manifest) -> int:
    """A batch size that gives an epoch of a small source at least five steps; the paper's 80 for a large one."""
    return min(80, max(2, len(train) // 5))


def border_study(
    encoder: DualEncoder,
    folder: str | Path,
    out: str | Path,
    cache: str | Path | None = None,
    scale: str = "tiny",
    seed: int = 0,
    source_domain: str | None = None,
    target_domain: str | None = None,
    progress: bool = True,
    generator: str = "",
    masks: str | Path = "runs/segments",
    device: str = "auto",
    **changes: Any,
) -> AdaptStudy:
    """The study of one border of a dataset: trains the source-only model first. Domains: as of `two_sides`.

    generator: of segments, on `device`, kept in the folder `masks`; without one no arm has any.
    """
    home, away = two_sides(folder, source_domain, target_domain=target_domain)
    finetune, val = target_parts(away, target_domain, seed)
    refuse_shared(home, away)
    changes = {"head_batch_size": few_steps(home.split("train")), **changes}
    store = None
    for part in (home.split("train"), finetune, val) if generator else ():
        store = segment_dataset(part, generator, masks, device=device, progress=progress)
    start = source_only(encoder, home, scale, seed, cache, **changes)
    parts = home.split("train"), finetune, val
    return AdaptStudy(start, *parts, out, cache, scale, progress, store=store, **changes)
