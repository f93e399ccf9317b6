"""Every setting of a run, as frozen dataclasses; `TrainConfig.at(scale)` is the one dial."""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_type_hints

from ucore.errors import ConfigError

Scale = Literal["tiny", "small", "full"]
Method = Literal["ucore", "paper"]
Loss = Literal["clip", "triplet", "sigmoid"]
Segments = Literal["none", "mean", "attention", "late"]
Precision = Literal["auto", "float32", "bfloat16"]
Augmentation = Literal["dihedral", "flip"]
Background = Literal["white", "mean", "blur", "box"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the two heads that join the towers."""

    embed_dim: int = 512  # width of the shared space; ignored for CLIP models, which bring their own
    hidden: int = 1024  # width of the heads' hidden layer
    dropout: float = 0.3  # inside the heads
    temperature: float = 0.05  # start of the learnable softmax temperature, where the model brings none

    def check(self) -> None:
        """Raise ConfigError for a value out of its range, naming the setting."""
        widths = (1, 100_000)
        _check_ranges(self, {"embed_dim": widths, "hidden": widths, "dropout": (0, 0.99), "temperature": (0.001, 10)})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `Trainer`. Two phases: heads on cached tower features, then heads and towers on pixels.

    Rates are peak AdamW learning rates; each phase has its own linear warm-up and cosine decay.
    """

    scale: Scale = "small"
    method: Method = "ucore"  # "ucore": the best we found; "paper": UrbanCross as published, its mistakes corrected
    seed: int = 0
    loss: Loss = "clip"  # "clip": symmetric multi-positive InfoNCE; "triplet": the paper's sum-hinge; "sigmoid": SigLIP
    margin: float = 0.2  # of the sum-hinge (paper: 0.2)
    label_smoothing: float = 0.1  # of InfoNCE
    soft_share: float = 0.0  # of an image's target that texts like its own captions have (`neighbours.soft_positives`)
    soft_temperature: float = 0.1  # of the softmax of likeness that spreads it
    soft_tags: float = 0.0  # of that likeness what the images' tags say, beside their captions
    hard_share: float = 0.0  # of a batch of phase 1 that are near neighbours of the rest (`neighbours.HardBatches`)
    description_share: float = 0.0  # of the texts drawn that are an image's description or a sentence of it
    segments: Segments = "none"  # how an image's segments are pooled (`alignment.SegmentPool`); "none" leaves them out
    segment_count: int = 5  # best segments of an image, chosen without any text
    segment_background: Background = "box"  # what surrounds a segment's crop; the paper's is "white"
    segment_weight: float = 1.0  # of the loss between segments and texts, beside that between images and texts
    image_segment_weight: float = 0.0  # of the loss between images and segments
    segment_share: float = 0.25  # of the segments in the score of an image and a text
    head_epochs: int = 12  # phase 1, towers frozen; 0 skips it
    head_batch_size: int = 512
    head_lr: float = 1e-3
    tune_epochs: int = 8  # phase 2, towers tuned; 0 is frozen-feature mode
    tune_batch_size: int = 128
    tune_head_lr: float = 5e-4
    image_lr: float = 2e-4
    text_lr: float = 5e-5
    frozen_image_stages: int = (
        3  # and the stem; the bundled tower has seven, a ResNet or ConvNeXt four, a ViT its blocks
    )
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of a phase's steps
    clip_norm: float = 1.0  # gradient norm; clipped after backward
    ema: float = 0.99  # decay of the averaged weights that are evaluated and saved; 0 switches it off
    patience: int = 4  # epochs without a better validation mR before a phase stops
    train_views: int = 4  # dihedral views of each training image that phase 1 draws from (1, 2, 4 or 8)
    test_views: int = 8  # dihedral views averaged when a gallery is embedded
    augmentation: Augmentation = "dihedral"  # views in phase 2: all eight flips and turns, or "flip": left to right
    min_crop: float = 0.6  # smallest share of the area that a random crop keeps in phase 2; 1 switches it off
    chunk: int = 0  # images encoded at once in phase 2, for batches larger than the memory; 0: a process's whole share
    precision: Precision = "auto"  # of the towers; "auto": bfloat16 where the hardware multiplies it
    compile: bool = False  # the vision tower by torch.compile in phase 2; needs a C++ compiler
    max_train_images: int | None = None  # an evenly spread subset, for quick runs

    @classmethod
    def at(cls, scale: str, method: str = "ucore", **overrides: Any) -> Self:
        """Settings for `scale` and `method`, with `overrides` on top. Raises ConfigError for unknown names and values.

        tiny: heads only on 1,500 images, a minute on two cores. small: heads, then both towers, on two cores.
        full: every stage of the vision tower tuned; for a GPU.

        paper: stage 2 of UrbanCross (arXiv 2404.14241): sum-hinge over all negatives of the batch; the mean of five
        segments, cut out on white, through a frozen tower; Adam, one view, flips. Corrected: segments are chosen
        without the caption and count at test time, too; neither padding nor an equal caption counts as a negative.
        Not taken over: the rate of 1e-5 and the 10 to 20 epochs, which suit a CLIP model, whose towers share a space.
        The bundled encoder's heads start at random, and Adam moves a weight by little more than its rate a step: they
        would hardly leave their start. Rates and epochs are the scale's, and so is phase 1, which the paper has not;
        its batch of 40 is that of phase 2.
        """
        presets: dict[str, dict[str, Any]] = {
            "tiny": dict(
                max_train_images=1500, train_views=1, test_views=1, tune_epochs=0, head_epochs=20, head_batch_size=128
            ),
            "small": {},
            "full": dict(tune_epochs=20, tune_batch_size=256, frozen_image_stages=0),
        }
        if scale not in presets:
            raise ConfigError(f"Unknown scale {scale!r}: choose tiny, small or full{did_you_mean(scale, presets)}")
        methods: dict[str, dict[str, Any]] = {
            "ucore": {},
            "paper": dict(
                loss="triplet", segments="mean", segment_background="white", segment_share=0.5, label_smoothing=0.0,
                ema=0.0, weight_decay=0.0, train_views=1, test_views=1, augmentation="flip", min_crop=1.0,
                tune_batch_size=40,
            ),
        }  # fmt: skip
        if method not in methods:
            raise ConfigError(f"Unknown method {method!r}: choose paper or ucore{did_you_mean(method, methods)}")
        return cls.from_dict({"scale": scale, "method": method, **presets[scale], **methods[method], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a plain dictionary (a checkpoint's JSON), refusing unknown names and wrong values."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(f"{name!r} is not a training setting{did_you_mean(name, names)}")
        # None is what "none" is on the command line.
        words = {name: "none" for name in ("segments", "curriculum", "adversary") if values.get(name, "") is None}
        # numpy's numbers, of a sweep, become plain ones: the state of a run could not be read again with them.
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
        config = cls(**{**plain, **words})
        config.check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, JSON-able; `from_dict` reads them."""
        return dataclasses.asdict(self)

    def card(self) -> dict[str, Any]:
        """What a checkpoint's encoder.json keeps of the settings; `train` are those that reading it needs."""
        return {"train": self.to_dict()}

    def check(self) -> None:
        """Raise ConfigError for a value out of its range, naming the setting."""
        self._check_choices("scale", "method", "loss", "segments", "segment_background", "augmentation", "precision")
        ranges = {
            "head_epochs": (0, 10_000), "tune_epochs": (0, 10_000), "head_batch_size": (2, 1_000_000),
            "tune_batch_size": (2, 1_000_000), "head_lr": (0, 1), "tune_head_lr": (0, 1), "image_lr": (0, 1),
            "text_lr": (0, 1), "label_smoothing": (0, 0.99), "margin": (0, 10), "warmup": (0, 1), "ema": (0, 0.99999),
            "clip_norm": (1e-6, 1e6), "patience": (1, 10_000), "min_crop": (0.05, 1), "frozen_image_stages": (0, 100),
            "weight_decay": (0, 10), "seed": (0, 2**31 - 1), "segment_count": (1, 100), "segment_weight": (0, 100),
            "segment_share": (0, 1), "image_segment_weight": (0, 100), "soft_share": (0, 0.5),
            "soft_temperature": (0.001, 10), "soft_tags": (0, 1), "hard_share": (0, 0.9), "description_share": (0, 1),
            "chunk": (0, 1_000_000),
        }  # fmt: skip
        self._check_ranges(ranges)
        for name in ("train_views", "test_views"):
            value = getattr(self, name)
            if not _is_number(value, whole=True) or value not in (1, 2, 4, 8):
                raise ConfigError(f"{name} is {value!r}; choose 1, 2, 4 or 8")
        if not isinstance(self.compile, bool):
            raise ConfigError(f"compile is {self.compile!r}; it must be true or false")
        most = self.max_train_images
        if most is not None and (not _is_number(most, whole=True) or most < 2):
            raise ConfigError(f"max_train_images is {most!r}; it must be a whole number of at least 2, or none")
        if self.head_epochs + self.tune_epochs == 0:
            raise ConfigError("head_epochs and tune_epochs are both 0: nothing would be trained; raise one of them")

    def _check_choices(self, *names: str) -> None:
        hints = get_type_hints(type(self))
        for name in names:
            allowed = get_args(hints[name])
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")

    def _check_ranges(self, ranges: dict[str, tuple[float, float]]) -> None:
        _check_ranges(self, ranges)

    def require_masks(self, given: bool) -> None:
        """Raise ConfigError where these settings need segments and none are given."""
        if self.segments != "none" and not given:
            who = "method=paper pools segments and" if self.method == "paper" else f"segments={self.segments}"
            raise ConfigError(
                f"{who} needs masks: run ucore segment, then name their folder by --segments; "
                "or leave segments out with -s segments=none"
            )


def _check_ranges(config: Any, ranges: dict[str, tuple[float, float]]) -> None:
    hints = get_type_hints(type(config))
    for name, (low, high) in ranges.items():
        value, whole = getattr(config, name), hints[name] is int
        kind = "a whole number" if whole else "a number"
        if not _is_number(value, whole) or not low <= value <= high:
            raise ConfigError(f"{name} is {value!r}; it must be {kind} from {low} to {high}")


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
