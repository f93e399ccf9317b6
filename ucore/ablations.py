"""Which part earns its keep: one setting changed at a time, over seeds, through the same `Trainer`.

    study = Study(encoder, train, val, "runs/ablations", "runs/features", store=segment_dataset(...))
    rows = study.table(["segments=mean", "ema=0"], seeds=[0, 1, 2])

Frozen-feature mode: phase 1 alone, on tower features that all runs share. A run is kept under a key of all it depends
on, so that a study that was stopped repeats only what is missing, and a changed setting only what it changes.
"""

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ucore.comparison import seeded_difference
from ucore.config import TrainConfig
from ucore.errors import ConfigError
from ucore.evaluate import METRICS, Ranks, metrics_from_ranks, retrieval_ranks
from ucore.features import image_tower_features, text_tower_features
from ucore.files import atomic_path, content_hash, parse_json, write_json
from ucore.fusion import heads_similarity, with_segments
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.notebooks import parse_parameters
from ucore.origin import code_key
from ucore.segment_store import SegmentStore
from ucore.train import Trainer

BASE = "base"
ARMS = (
    *("segments=none", "segments=mean", "segments=attention", "segment_share=0.5", "segment_share=0.75"),
    *("segment_count=3", "image_segment_weight=1", "loss=triplet", "loss=sigmoid", "soft_share=0.1", "hard_share=0.5"),
    "soft_share=0.1,soft_tags=0.5",
    *("label_smoothing=0", "ema=0", "train_views=2", "description_share=0.3"),
)
VERSION = 1  # of what a kept run holds


class Run(NamedTuple):
    """One training: the seconds it took, and the validation ranks of image -> text and text -> image, int64."""

    seconds: float
    ranks: Ranks


class Study:
    """What all runs share.

    encoder: is never trained itself, every run has a copy with heads of its own seed. out: folder of the kept runs.
    cache: as of `Trainer`. store: segments of both splits; without it no arm has any. changes: settings of every arm,
    the base too.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        train: Manifest,
        val: Manifest,
        out: str | Path,
        cache: str | Path | None = None,
        store: SegmentStore | None = None,
        scale: str = "tiny",
        progress: bool = True,
        **changes: Any,
    ) -> None:
        self.encoder, self.train, self.val, self.store = encoder, train, val, store
        self.out, self.cache, self.scale, self.progress = Path(out), cache, scale, progress
        self.changes = {"segments": "none" if store is None else "late", **changes, "tune_epochs": 0}
        parts = [[part.content_key(), *(list(part.frame[name]) for name in ("description", "tags"))]
                 for part in (train, val)]  # fmt: skip
        weights = [encoder.name, asdict(encoder.config), encoder.fingerprint("image"), encoder.fingerprint("text")]
        code = code_key([f"import {type(self).__module__}"])  # what other code has trained is not this code's
        self._key = [VERSION, code, parts, weights, None if store is None else store.parts.settings]

    def config(self, arm: str, seed: int = 0) -> TrainConfig:
        """Settings of an arm, "name=value" or several with commas between; "base" changes nothing.

        Raises ConfigError for a setting or a value that does not exist.
        """
        own = {} if arm == BASE else parse_parameters(arm.split(","))
        return TrainConfig.at(**{"scale": self.scale, **self.changes, **own, "seed": seed})

    def lacking(self, arm: str) -> str:
        """Why an arm cannot be run on these data; empty when it can."""
        config = self.config(arm)
        if self.store is None and (config.segments != "none" or config.image_segment_weight):
            return "there are no segments"
        if config.segments == "none" and arm.startswith(("segment_", "image_segment")):
            return "it changes nothing without segments"
        described = any(text.strip() for text in self.train.frame["description"])
        if config.soft_share and config.soft_tags and not any(map(len, self.train.frame["tags"])):
            return "no training image has a tag"
        return "no training image has a description" if config.description_share and not described else ""

    def run(self, arm: str, seed: int) -> Run:
        """Train an arm with a seed and rank the whole validation gallery, or read what an earlier call kept."""
        config = self.config(arm, seed)
        path = self.out / f"{content_hash(config.to_dict(), *self._key)}.json"
        kept = _read(path)
        if kept is not None:
            return kept
        started = time.perf_counter()
        torch.manual_seed(seed)
        trainer = self._trainer(config)
        trainer.fit()
        ranks = retrieval_ranks(_similarity(trainer), self.val.texts[1])
        run = Run(time.perf_counter() - started, ranks)
        names = {"arm": arm, "settings": config.to_dict(), "metrics": metrics_from_ranks(*ranks)}
        both = {"image_to_text": ranks[0].tolist(), "text_to_image": ranks[1].tolist()}
        write_json(path, {**names, **both, "seconds": run.seconds})
        return run

    def _trainer(self, config: TrainConfig) -> Trainer:
        """What makes the run of a configuration, with an encoder of its own."""
        encoder = copy.deepcopy(self.encoder)
        encoder.new_heads()
        return Trainer(encoder, self.train, self.val, config, None, self.cache, False, self.store)

    def table(self, arms: Iterable[str] = ARMS, seeds: Sequence[int] = (0, 1, 2)) -> list[dict[str, Any]]:
        """Rows, the base first: arm, seeds, METRICS (means over seeds), mR_seeds, seconds (mean of a run) and, but for
        the base, difference, low and high: of mR to the base's with the same seed (`seeded_difference`).

        Raises ConfigError for no seeds, one given twice, or an arm that these data do not allow.
        """
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds is {list(seeds)}; give at least one, each once")
        names = [BASE, *dict.fromkeys(arm for arm in arms if arm != BASE)]
        for arm in names:
            if why := self.lacking(arm):
                raise ConfigError(f"The arm {arm} cannot be run: {why}; leave it out")
        bar = tqdm(total=len(names) * len(seeds), desc="Runs", disable=not self.progress)
        found: dict[str, list[Run]] = {arm: [] for arm in names}
        with bar:
            for seed in seeds:  # all arms of a seed first: a stopped study has all arms, with fewer seeds
                for arm in names:
                    found[arm].append(self.run(arm, seed))
                    bar.update(1)
        return [self._row(arm, found[arm], found[BASE]) for arm in names]

    def _row(self, arm: str, runs: list[Run], base: list[Run]) -> dict[str, Any]:
        ranks = [[run.ranks for run in some] for some in (runs, base)]
        row = compared(arm, ranks[0], None if arm == BASE else ranks[1], self.val.texts[1])
        return row | {"seconds": float(np.mean([run.seconds for run in runs]))}


def compared(arm: str, ranks: list[Ranks], base: list[Ranks] | None, owner: np.ndarray) -> dict[str, Any]:
    """A row of a table: arm, seeds, METRICS (means over seeds), mR_seeds and, where there is a base, difference, low
    and high: of mR to the base's with the same seed. owner: the image of each text, int64 (T,)."""
    metrics = [metrics_from_ranks(*one) for one in ranks]
    means = {name: float(np.mean([one[name] for one in metrics])) for name in METRICS}
    row = {"arm": arm, "seeds": len(ranks), **means, "mR_seeds": [one["mR"] for one in metrics]}
    if base is None:
        return row
    return row | dict(zip(("difference", "low", "high"), seeded_difference(ranks, base, owner), strict=True))


def report_rows(rows: Sequence[dict[str, Any]], queries: int) -> list[dict[str, Any]]:
    """Rows for a `Report`: of each arm the mean metrics over seeds, and mR_difference with its interval."""
    result = []
    for row in rows:
        result += [dict(label=row["arm"], metric=name, value=row[name], n=queries) for name in METRICS]
        if "difference" in row:
            bounds = {"value": row["difference"], "low": row["low"], "high": row["high"]}
            result.append({"label": row["arm"], "metric": "mR_difference", **bounds, "n": queries})
    return result


def save_table(rows: Sequence[dict[str, Any]], path: str | Path) -> Any:
    """Write the rows as CSV and return them as a pandas DataFrame: arm, seeds, mR and the difference, rounded."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)
    shown = [name for name in ("arm", "seeds", "mR", "difference", "low", "high", "seconds") if name in frame]
    return frame[shown].round(2)


def _similarity(trainer: Trainer) -> np.ndarray:
    """Scores float32 (I, T) of the validation gallery by the weights chosen, from cached features of the towers."""
    encoder, config, val = trainer.encoder, trainer.config, trainer.val
    views = image_tower_features(encoder, val, config.test_views, trainer.cache, progress=False)
    texts = text_tower_features(encoder, val.texts[0], trainer.cache, progress=False)
    similarity, text = heads_similarity(encoder, views, texts)
    if encoder.segments is None:
        return similarity
    return with_segments(encoder, similarity, trainer.segment_sets("val"), text, config.segment_share)


def _read(path: Path) -> Run | None:
    """A kept run; None when there is none, or one that cannot be read."""
    try:
        kept = parse_json(path.read_text("utf-8"))
        ranks = np.array(kept["image_to_text"]), np.array(kept["text_to_image"])
        right = all(of.ndim == 1 and len(of) and of.dtype.kind in "iu" and of.min() >= 0 for of in ranks)
        seconds = float(kept["seconds"])
        return Run(seconds, ranks) if right and 0 <= seconds < 1e12 else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
