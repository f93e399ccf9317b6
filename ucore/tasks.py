"""The two tasks behind the commands and the notebooks: train a checkpoint, score a gallery with it."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ucore import distributed
from ucore.alignment import SegmentSets
from ucore.checkpoint import BANK, CARD, STATE, WEIGHTS, load_bank, save_bank
from ucore.config import TrainConfig
from ucore.data import caption_groups
from ucore.errors import ConfigError, DataError
from ucore.evaluate import Metrics, bootstrap_ci, metrics_from_ranks, retrieval_ranks, similarity_matrix
from ucore.features import embed_images, embed_texts
from ucore.files import atomic_path, content_hash, only_writer, require_writable
from ucore.fusion import fused_biases, segment_sets, segment_vectors, with_segments
from ucore.hubness import MOST_BANK, Bank, correct_hubs
from ucore.manifest import Manifest, subset
from ucore.model import DualEncoder
from ucore.origin import code_key
from ucore.pairs import TrainingTexts
from ucore.report import write_report
from ucore.segment_store import SegmentStore
from ucore.splits import save_split
from ucore.ties import TIES, random_tie_metrics
from ucore.train import Trainer

MOST_SCORES = 2 * 10**9  # entries of a similarity matrix: 8 GB


@dataclass(frozen=True)
class Scores:
    """A scored gallery: similarity float32 (I, T), features float32 (I, D) and (T, D), each text's image.

    sets: the images' segments, where they count in the scores, with `share`.
    """

    manifest: Manifest
    similarity: np.ndarray
    image_features: np.ndarray
    text_features: np.ndarray
    text_image_index: np.ndarray
    groups: np.ndarray
    seconds: dict[str, float]
    sets: SegmentSets | None = None
    share: float = 0.0

    def metrics(self, duplicate_aware: bool = False, seed: int = 0) -> tuple[Metrics, dict[str, tuple[float, float]]]:
        """Metrics and their 95 % intervals (cluster bootstrap over images), standard or duplicate-aware."""
        ranks = retrieval_ranks(self.similarity, self.text_image_index, self.groups if duplicate_aware else None)
        return metrics_from_ranks(*ranks), bootstrap_ci(*ranks, self.text_image_index, seed=seed)

    def published(self, seed: int = 0) -> tuple[Metrics, dict[str, tuple[float, float]]]:
        """Recalls and mR with equal scores in random order, as in published tables (`ties`), and their intervals."""
        return random_tie_metrics(self.similarity, self.text_image_index, seed=seed)

    def corrected(self, encoder: DualEncoder, bank: Bank) -> "Scores":
        """The same gallery with hubs corrected by a `bank` of training images and captions (`hubness`)."""
        temperature = float(torch.exp(-encoder.logit_scale.detach()))
        features = (self.image_features, self.text_features)
        if self.sets is None:
            return replace(self, similarity=correct_hubs(self.similarity, *features, bank, temperature))
        images, texts = fused_biases(encoder, *features, self.sets, bank, self.share, temperature)
        return replace(self, similarity=self.similarity + texts + images[:, None])

    def rows(self, label: str, seed: int = 0) -> list[dict[str, Any]]:
        """Rows for a report: one a metric, by the standard protocol, duplicate-aware, and with random ties."""
        rows = []
        for name, (metrics, intervals) in (
            (label, self.metrics(seed=seed)),
            (f"{label}, duplicate-aware", self.metrics(True, seed)),
            (f"{label}, {TIES}", self.published(seed)),
        ):
            for metric, value in metrics.items():
                queries = len(self.text_image_index) if metric.startswith("text") else len(self.manifest)
                low, high = intervals[metric]
                rows.append({"label": name, "metric": metric, "value": value, "low": low, "high": high, "n": queries})
        return rows

    def save(self, path: Path) -> None:
        """scores.npz: similarity (images, texts), image_ids, text_ids, text_image_ids (the image of each text)."""
        image_ids = np.array(self.manifest.frame["sample_id"].tolist())
        arrays: dict[str, Any] = {
            "similarity": self.similarity,
            "image_ids": image_ids,
            "text_ids": np.array(self.manifest.text_ids),
            "text_image_ids": image_ids[self.text_image_index],
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **arrays)


def score(
    encoder: DualEncoder,
    manifest: Manifest,
    views: int = 1,
    progress: bool = True,
    segments: SegmentStore | None = None,
    config: TrainConfig | None = None,
) -> Scores:
    """Embed every image and text of `manifest` and compare all with all by cosine: nothing is sampled or dropped.

    views: dihedral views averaged per image. segments: of these images, which an encoder trained with segments
    needs; config: how many, on what ground and with what share they count, as they did in training.
    """
    if encoder.segments is not None and (segments is None or config is None):
        raise ConfigError("This checkpoint was trained with segments: name those of these images with --segments")
    texts, text_image_index = manifest.texts
    if len(manifest) * len(texts) > MOST_SCORES:
        raise DataError(
            f"{len(manifest):,} x {len(texts):,} scores need {len(manifest) * len(texts) * 4e-9:.0f} GB; "
            "choose one --split or --domain"
        )
    started = time.perf_counter()
    image_features = embed_images(encoder, manifest, views, progress)
    middle = time.perf_counter()
    text_features = embed_texts(encoder, texts, progress)
    embedded = time.perf_counter()
    similarity, sets = similarity_matrix(image_features, text_features), None
    if encoder.segments is not None and segments is not None and config is not None:
        with distributed.first_alone():  # it keeps them in files
            sets = segment_sets(encoder, manifest, segments, config, progress)
        similarity = with_segments(encoder, similarity, sets, text_features, config.segment_share)
    seconds = {"images": middle - started, "texts": embedded - middle, "scores": time.perf_counter() - embedded}
    groups, share = caption_groups(texts), config.segment_share if sets is not None and config is not None else 0.0
    features = (image_features, text_features)
    return Scores(manifest, similarity, *features, text_image_index, groups, seconds, sets, share)


def train_checkpoint(
    encoder: DualEncoder,
    train: Manifest,
    val: Manifest,
    config: TrainConfig,
    out: Path,
    cache: Path,
    restart: bool = False,
    progress: bool = True,
    segments: SegmentStore | None = None,
    everything: Manifest | None = None,
) -> tuple[Trainer, Scores, Scores]:
    """Train into `out`, going on where an earlier call stopped, and score the whole validation gallery.

    everything: the samples whose splits are written beside the weights, before these learn; none are without it.
    Returns the trainer, the scores as plain cosines, and the scores with hubs corrected, whose bank of
    training images and captions is kept beside the weights.
    """
    require_writable(out)
    require_writable(cache)
    _require_same_training(encoder, train, val, config, segments)
    with distributed.first_alone():
        if restart and distributed.is_first():
            forget_run(out)
    progress = progress and distributed.is_first()
    trainer = Trainer(encoder, train, val, config, out, cache, progress, segments)
    if trainer.resume() and progress:
        state = "finished" if trainer.finished else f"at step {trainer.step_count}"
        print(f"Found a run in {out}, {state}: going on from there.")
    if everything is not None and distributed.is_first():
        keep_split(everything, out)
    trainer.fit()
    bank = training_bank(encoder, trainer.train, out, progress, segments, config)
    plain = score(encoder, val, config.test_views, progress, segments, config)
    return trainer, plain, plain.corrected(encoder, bank)


def _require_same_training(
    encoder: DualEncoder, train: Manifest, val: Manifest, config: TrainConfig, segments: SegmentStore | None
) -> None:
    """Raise ConfigError where several processes were given different things to train, by rows, settings and masks."""
    if distributed.size() == 1:
        return
    columns = ("sample_id", "image", "captions", "description")
    rows = [part.frame[name].tolist() for part in (train, val) for name in columns]
    masks = None
    if segments is not None:
        known, samples = set(segments.sample_ids), [name for part in (train, val) for name in part.frame["sample_id"]]
        masks = [segments.parts.settings, [segments.key(name) if name in known else "" for name in samples]]
    distributed.require_alike(
        content_hash(config.to_dict(), encoder.name, *rows, masks),
        f"The processes have different settings, rows or segments (this one's images: {train.root}); "
        "every machine needs the same command and the same data",
    )


def training_bank(
    encoder: DualEncoder,
    train: Manifest,
    out: Path,
    progress: bool = True,
    segments: SegmentStore | None = None,
    config: TrainConfig | None = None,
) -> Bank:
    """Features of at most 10,000 training images and captions, read from `out` or embedded and kept there.

    segments, config: as of `score`, of the training images.
    """
    bank = load_bank(out)
    known = distributed.agree(bank is not None and (encoder.segments is None or bank.segments is not None))
    if bank is None or not known:  # they embed together, or not at all
        texts = train.texts[0] or TrainingTexts(train, with_descriptions=True).texts
        chosen = [texts[i] for i in np.linspace(0, len(texts) - 1, min(len(texts), MOST_BANK)).round().astype(int)]
        some, vectors = subset(train, MOST_BANK), None
        images = embed_images(encoder, some, progress=progress)
        if encoder.segments is not None and segments is not None and config is not None:
            with distributed.first_alone():  # it keeps them in files
                sets = segment_sets(encoder, some, segments, config, progress)
            vectors = segment_vectors(encoder.segments, sets, encoder.device).astype(np.float16)
        bank = Bank(images.astype(np.float16), embed_texts(encoder, chosen, progress).astype(np.float16), vectors)
        if distributed.is_first():
            save_bank(out, bank)
    return bank


def keep_split(everything: Manifest, out: Path) -> None:
    """Write `everything`'s splits into `out`, before a run leaves weights there: what these have seen is always known.

    Raises UserError, and writes nothing, while another run writes into it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        save_split(everything, out / "split.json")


def forget_run(out: Path) -> None:
    """Remove what training wrote into `out`, and nothing else. Raises UserError while a run writes into it."""
    if not out.is_dir():
        return
    with only_writer(out):
        for name in (STATE, WEIGHTS, CARD, BANK, "validation.json", "split.json"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)


def write_metrics(
    path: Path, rows: Sequence[dict[str, Any]], of: Manifest, command: str, *, seed: int, **facts: Any
) -> None:
    """A JSON file beside what was measured, with all that a report has (`report.REPORT_KEYS`) and the facts given.

    rows: as from `Scores.rows`; of: what was scored; command: without folders, so that runs elsewhere compare.
    """
    facts = {"simulated": of.simulated, "parameters": {}, **facts, "seed": seed, "command": command, "dataset": of.name}
    write_report(path, {**facts, "code": code_key(["import ucore.cli"]), "data": of.content_key(), "metrics": [*rows]})


def ties_text(scores: Scores, seed: int = 0) -> str:
    """One line for a terminal: mR as published tables count it."""
    metrics, intervals = scores.published(seed)
    low, high = intervals["mR"]
    return f"mR {metrics['mR']:5.2f} [{low:.2f}, {high:.2f}] with ties broken at random, as in published tables"


def metrics_text(metrics: Metrics, intervals: dict[str, tuple[float, float]]) -> str:
    """Three lines for a terminal: both directions' recalls and mR, each with its interval."""

    def shown(name: str) -> str:
        low, high = intervals[name]
        return f"{metrics[name]:5.2f} [{low:.2f}, {high:.2f}]"

    lines = []
    for direction, title in (("image_to_text", "image -> text"), ("text_to_image", "text -> image")):
        recalls = "  ".join(f"R@{k} {shown(f'{direction}_R@{k}')}" for k in (1, 5, 10))
        lines.append(f"{title}  {recalls}  median rank {metrics[f'{direction}_median_rank']:g}")
    lines.append(f"mR {shown('mR')}")
    return "\n".join(lines)
