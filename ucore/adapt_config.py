"""Settings of adaptation from a source to a target domain, and the methods that are compared, as values."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from ucore.config import TrainConfig, did_you_mean
from ucore.curriculum import Curriculum
from ucore.errors import ConfigError

AdaptMethod = Literal["ucore", "paper", "dann", "cdan", "coral", "mmd", "source-only", "target-only", "joint"]
Adversary = Literal["none", "dann", "cdan"]
Regime = Literal["unpaired", "paired"]
Choice = Literal["return_probability", "mR", "last"]

METHODS: dict[str, dict[str, Any]] = {
    "source-only": {},
    "dann": dict(adversary="dann"),
    "cdan": dict(adversary="cdan", adversarial_weight=1.0, adversary_steps=1),
    "coral": dict(coral_weight=1.0),
    "mmd": dict(mmd_weight=10.0),
    "paper": dict(
        curriculum="cosine", adversary="dann", domain_weights=True, triplet_weight=1.0, label_smoothing=0.0, ema=0.0,
        weight_decay=0.0, train_views=1, test_views=1, head_batch_size=80, target_batch_size=16, adversarial_weight=1.0,
    ),
    "ucore": dict(pseudo_weight=1.0, bridge_weight=1.0, pseudo_start=0.0, label_smoothing=0.0),
    "target-only": dict(regime="paired", source_weight=0.0),
    "joint": dict(regime="paired"),
}  # fmt: skip

KEPT = ("segments", "segment_count", "segment_background", "segment_weight", "image_segment_weight", "segment_share")


def inherited(trained: Mapping[str, Any]) -> dict[str, Any]:
    """What an adaptation keeps of a checkpoint's training, its settings `trained`: how segments are cut, pooled and
    counted, where it has any, and the sigmoid loss, whose bias it learned."""
    own = {"loss": "sigmoid"} if trained.get("loss") == "sigmoid" else {}
    return {**own, **({name: trained[name] for name in KEPT} if trained.get("segments", "none") != "none" else {})}


@dataclass(frozen=True)
class AdaptConfig(TrainConfig):
    """Settings of `Adapter`: those of training (phase 1 alone), and what is done with the target's samples.

    The target's images and texts are drawn apart (regime "unpaired": which text belongs to which image is unknown), or,
    beside that, as pairs ("paired": the few that were annotated).
    """

    method: AdaptMethod = "ucore"  # type: ignore[assignment]
    regime: Regime = "unpaired"
    shots: int | None = None  # images of the target whose texts are known, in the regime "paired"; None: all
    choose_by: Choice = "last"  # which weights are kept: without pairs, or by "mR", which needs them: the oracle
    epoch_steps: int = 5  # at most: after so many the likely pairs are found anew, and weights may be kept
    target_batch_size: int = 64  # images, and texts, of the target a step
    source_weight: float = 1.0  # of the contrastive loss of source pairs
    curriculum: Curriculum = "none"  # which source samples are shown
    curriculum_start: float = 0.2  # share of a batch's source samples kept in the first cycle through the target
    curriculum_growth: float = 0.2  # more a cycle
    adversary: Adversary = "none"
    adversarial_weight: float = 3.0
    adversary_steps: int = 3  # of the discriminators before each step of the features
    gradient_penalty: float = 0.01  # on the discriminators (`adversary.gradient_penalty`)
    domain_weights: bool = False  # rows of the adversarial and of the triplet loss count by their likeness (W2)
    coral_weight: float = 0.0
    mmd_weight: float = 0.0
    triplet_weight: float = 0.0  # of the Euclidean triplet on source pairs
    triplet_margin: float = 0.5
    triplet_growth: float = 0.2  # of the margin a cycle
    triplet_most: float = 1.5
    pseudo_weight: float = 0.0  # of the contrastive loss of target pairs that the model finds (`balanced_matching`)
    bridge_weight: float = 0.0  # in the matching, of what is said of alike source images, beside the model's cosines
    pseudo_start: float = 0.2  # share of the epochs before they count

    @classmethod
    def of(cls, method: str = "ucore", scale: str = "small", **overrides: Any) -> Self:
        """Settings of `method` with `overrides` on top. Raises ConfigError for unknown names and values."""
        if method not in METHODS:
            raise ConfigError(
                f"Unknown method {method!r}: choose one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
            )
        views = dict(train_views=1, test_views=1) if scale == "tiny" else {}
        base = dict(scale=scale, head_epochs=20, head_batch_size=128, head_lr=3e-4, tune_epochs=0, patience=10_000)
        return cls.from_dict({**base, **views, **METHODS[method], "method": method, **overrides})

    @property
    def aligns(self) -> bool:
        """Whether features of the target are brought nearer to the source's as a whole."""
        return self.adversary != "none" or self.coral_weight > 0 or self.mmd_weight > 0

    def card(self) -> dict[str, Any]:
        """What encoder.json keeps: as `adapt` all settings, as `train` those of training, which reading it needs."""
        values = self.to_dict()
        plain = {field.name: values[field.name] for field in dataclasses.fields(TrainConfig)}
        return {"train": {**plain, "method": "ucore"}, "adapt": values}

    def check(self) -> None:
        """Raise ConfigError for a value out of its range, or for settings that contradict each other."""
        super().check()
        self._check_choices("method", "regime", "curriculum", "adversary", "choose_by")
        weights = ("source_weight", "adversarial_weight", "coral_weight", "mmd_weight", "triplet_weight")
        ranges = dict.fromkeys((*weights, "pseudo_weight", "bridge_weight", "gradient_penalty"), (0, 1000))
        shares = dict.fromkeys(("curriculum_start", "curriculum_growth", "pseudo_start"), (0, 1))
        margins = dict.fromkeys(("triplet_margin", "triplet_growth", "triplet_most"), (0, 10))
        counts = {"target_batch_size": (2, 1_000_000), "epoch_steps": (1, 1_000_000), "adversary_steps": (1, 100)}
        self._check_ranges({**ranges, **shares, **margins, **counts})
        if self.shots is not None:
            self._check_ranges({"shots": (1, 1_000_000)})
            if self.regime == "unpaired":
                raise ConfigError("shots needs the regime paired: without it no pair of the target is known")
        if not isinstance(self.domain_weights, bool):
            raise ConfigError(f"domain_weights is {self.domain_weights!r}; it must be true or false")
        if self.tune_epochs:
            raise ConfigError("tune_epochs must be 0: adaptation trains the heads; tune the towers with ucore train")
        if self.source_weight == self.triplet_weight == 0 and self.regime == "unpaired":
            raise ConfigError("source_weight is 0 and no pair of the target is known: nothing would keep retrieval up")
