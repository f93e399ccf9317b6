"""The one training loop: steppable by hand, resumable to the same result, in two phases.

    trainer = Trainer(encoder, train, val, TrainConfig.at("small"), out="runs/rsicd", cache="runs/features")
    trainer.step()   # one optimiser step; at an epoch's end also validation and a checkpoint
    trainer.fit()    # step until done

Phase "heads" trains the two heads on cached tower features (seconds an epoch). Phase "towers" tunes heads and
towers on augmented pixels at lower rates, starting from the best heads. Every random choice is a function of
(seed, phase, epoch, sample), never of what ran before, so that resuming equals never stopping.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ucore.alignment import SegmentSets
from ucore.checkpoint import StartWeights, load_state, save_encoder, save_state
from ucore.config import TrainConfig
from ucore.data import caption_groups
from ucore.errors import ConfigError, UserError
from ucore.evaluate import retrieval_metrics, retrieval_metrics_from_features, similarity_matrix
from ucore.files import content_hash
from ucore.fusion import loss_parts, segment_sets, with_segments
from ucore.history import StepResult, open_writer, write_row
from ucore.manifest import Manifest, few, subset
from ucore.model import DualEncoder
from ucore.phases import HeadPhase, Phase, TowerPhase
from ucore.report import git_commit
from ucore.segment_store import SegmentStore

Metrics = dict[str, float]


class Trainer:
    """Trains `encoder` in place on `train`, choosing weights by mR on the whole of `val`.

    segments: of all these images, where the configuration uses any; their features are computed once.
    out: folder for the best weights, the state to resume from and TensorBoard curves; None keeps all in memory.
    cache: folder for tower features, shared between runs.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        train: Manifest,
        val: Manifest,
        config: TrainConfig,
        out: str | Path | None = None,
        cache: str | Path | None = None,
        progress: bool = True,
        segments: SegmentStore | None = None,
    ) -> None:
        self.encoder, self.config, self.progress = encoder, config, progress
        self.train, self.val = subset(train, config.max_train_images), val
        if len(self.train) < 2:
            raise ConfigError(f"The training split has {len(self.train)} image; contrastive training needs at least 2")
        self._start = [encoder.fingerprint("image"), encoder.fingerprint("text")]  # weights before training
        self._sets: dict[str, SegmentSets] = {}
        self.store = segments
        if config.segments != "none":
            if segments is None:
                raise ConfigError(
                    f"segments={config.segments} needs masks: run ucore segment, then name their folder by --segments"
                )
            encoder.add_segments(config.segments)
            self._start += [content_hash(segments.parts.settings)]
        self.out = None if out is None else Path(out)
        self.cache = None if cache is None else Path(cache)
        texts, self.text_image_index = self.train.texts
        self.texts = texts
        groups = caption_groups(texts)
        counts = np.bincount(self.text_image_index, minlength=len(self.train))
        self.first_text = np.concatenate([[0], np.cumsum(counts)])
        # Padded with -1, which equals no group: which captions (as groups) belong to which image.
        self.image_groups = np.full((len(self.train), counts.max()), -1)
        for image, (start, stop) in enumerate(zip(self.first_text[:-1], self.first_text[1:], strict=True)):
            self.image_groups[image, : stop - start] = groups[start:stop]
        self.text_groups = groups
        self._kinds = [kind for kind in (HeadPhase, TowerPhase) if kind.epochs_of(config) > 0]
        self.origin = {"commit": git_commit(), "precision": encoder.precision, "device": str(encoder.device)}
        self._start_weights = StartWeights()
        self._begin()

    def _begin(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.step_count = self.phase_number = 0
        self.lr_factor = 1.0  # times every rate of the schedule; may be changed between two steps
        self.best: dict[str, Any] = {"mR": -1.0}
        self.best_state: dict[str, Tensor] = {}
        self.validated: dict[str, Any] = {}  # what the last validation saw: step, image, text, similarity
        self._phase: Phase | None = None
        self._writer: Any = None
        self.finished = False
        self._between_steps = True  # False while a step is half applied, or its epoch's end half done

    def reset(self) -> None:
        """Back to the start, as a new trainer of the same weights; what `out` holds stays until the next step."""
        for open_one in (self._phase, self._writer):
            if open_one is not None:
                open_one.close()
        self._start_weights.restore(self.encoder)
        self._begin()

    # --- stepping -------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of all phases if none stops early."""
        return sum(kind.epochs_of(self.config) * kind.batches_of(self.config, len(self.train)) for kind in self._kinds)

    @property
    def phase(self) -> Phase:
        """The phase that the next step belongs to; made (and its features computed) when first needed."""
        if self.finished:
            raise ConfigError("This training has finished; train into another folder, or --restart")
        if self._phase is None:
            started, kind = time.perf_counter(), self._kinds[self.phase_number]
            self._start_weights.keep(self.encoder, towers=kind is TowerPhase)
            self._phase = kind(self)
            self._count_seconds("features", started)
        return self._phase

    def step(self) -> StepResult | None:
        """One optimiser step; None when training has finished."""
        if self.finished:
            return None
        phase = self.phase
        if not self.best_state:  # the model as it comes may be the best there is, as a zero-shot CLIP can be
            with self._evaluating(phase):
                self._judge()
            self.save()
        started = time.perf_counter()
        epoch = phase.epoch
        rows, texts = phase.next_batch()
        rate = phase.set_learning_rates()
        torch.manual_seed(phase.seed_of(phase.step_count, salt=1))  # dropout
        image_features, text_features = phase.forward(rows, texts)
        positives = torch.from_numpy(self.positives(rows, texts)).to(self.encoder.device)
        parts = self.losses(rows, image_features, text_features, positives)
        values = torch.stack(list(parts.values()))
        loss = values.sum()
        if not torch.isfinite(loss):
            raise UserError(
                f"The loss is {loss.item()} at step {self.step_count + 1} ({phase.name} phase); "
                f"the batch begins with {few([str(name) for name in self.train.frame['sample_id'].iloc[rows]])}. "
                "The last checkpoint is kept. Lower the learning rates and train into another --out."
            )
        phase.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(phase.parameters, self.config.clip_norm)
        self._between_steps = False
        phase.optimizer.step()
        with torch.no_grad():  # CLIP's bound: a temperature of at least 0.01
            self.encoder.logit_scale.clamp_(0, math.log(100))
        phase.update_average()
        phase.step_count += 1
        self.step_count += 1
        self._count_seconds("training", started)
        temperature = math.exp(-self.encoder.logit_scale.item())
        named = dict(zip(parts, values.tolist(), strict=True))
        about = (self.step_count, phase.name, epoch, loss.item(), rate, norm.item(), temperature)
        result = StepResult(*about, named, self.lr_factor)
        if phase.step_count % phase.batches_per_epoch == 0:
            result = replace(result, metrics=self._end_epoch())
        self._log(result)
        if result.metrics is not None:
            self.save()
        self._between_steps = True
        return result

    def losses(
        self, rows: np.ndarray, image_features: Tensor, text_features: Tensor, positives: Tensor
    ) -> dict[str, Tensor]:
        """The parts of the loss, weighted: images with texts, and, where there are any, segments with texts.

        rows: int64 (B,), the batch's images; features: float (B, D), L2-normalised; positives: as of `losses`.
        """
        sets = None if self.encoder.segments is None else self.segment_sets("train").take(rows, self.encoder.device)
        return loss_parts(self.encoder, self.config, image_features, text_features, positives, sets)

    def segment_sets(self, split: Literal["train", "val"]) -> SegmentSets:
        """Tower features of the segments of the training or validation images, computed when first needed."""
        if split not in self._sets:
            assert self.store is not None
            manifest = self.train if split == "train" else self.val
            self._sets[split] = segment_sets(self.encoder, manifest, self.store, self.config, self.progress)
        return self._sets[split]

    def positives(self, rows: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """bool (images, texts): True where the image has that very caption, its own or a duplicate's."""
        return (self.image_groups[rows][:, None, :] == self.text_groups[texts][None, :, None]).any(-1)

    def fit(self, on_step: Callable[[StepResult], None] | None = None) -> Metrics:
        """Step until done; returns the best validation metrics. Ctrl-C saves the state, then raises UserError."""
        bar = tqdm(total=self.total_steps, initial=self.step_count, desc="Training", disable=not self.progress)
        try:
            with bar:
                while (result := self.step()) is not None:
                    bar.update(1)
                    bar.set_postfix(phase=result.phase, loss=f"{result.loss:.3f}", val_mR=f"{self.best['mR']:.2f}")
                    if on_step is not None:
                        on_step(result)
        except KeyboardInterrupt:
            if self._between_steps:
                if self._phase is not None:
                    self._phase.close()  # batches decoded ahead belong to steps that were not made
                self.save()
            else:
                self.resume()  # the last epoch's end: half a step can neither be kept nor repeated
            kept = f"; repeat the command to go on from {self.out}" if self.out else ""
            raise UserError(f"Stopped at step {self.step_count} of {self.total_steps}{kept}.") from None
        return self.best

    # --- epochs, phases, validation -------------------------------------------------------------------------

    def _end_epoch(self) -> Metrics:
        phase = self.phase
        with self._evaluating(phase):
            metrics, better = self._judge()
        phase.stale_epochs = 0 if better else phase.stale_epochs + 1
        if phase.epoch >= phase.epochs or phase.stale_epochs >= self.config.patience:
            self._next_phase()
        return metrics

    @contextmanager
    def _evaluating(self, phase: Phase) -> Iterator[None]:
        started = time.perf_counter()
        with phase.averaged_weights():
            yield
        self._count_seconds("validation", started)

    def _judge(self) -> tuple[Metrics, bool]:
        """Validate; keep and write the weights when they are the best so far."""
        phase, metrics = self.phase, self.validate()
        better = metrics["mR"] > self.best["mR"]
        if better:
            self.best = {**metrics, "phase": phase.name, "epoch": phase.epoch, "step": self.step_count}
            self.best_state = {k: v.detach().clone() for k, v in self.encoder.state_dict().items()}
            if self.out is not None:
                save_encoder(self.out, self.encoder, self.best_state, self.config, self.best)
        return metrics, better

    def _next_phase(self) -> None:
        self.phase.close()
        self.encoder.load_state_dict(self.best_state)
        self.encoder.eval()
        self.phase_number += 1
        self._phase = None
        self.finished = self.phase_number >= len(self._kinds)

    def validate(self) -> Metrics:
        """Metrics on the whole validation gallery with the weights as they are, one view an image."""
        image_features, text_features = self.phase.validation_features()
        self.validated = {"step": self.step_count, "image": image_features, "text": text_features}
        if self.encoder.segments is None:
            return retrieval_metrics_from_features(image_features, text_features, self.val.texts[1])
        similarity = similarity_matrix(image_features, text_features)
        parts = self.segment_sets("val"), text_features, self.config.segment_share
        self.validated["similarity"] = similarity = with_segments(self.encoder, similarity, *parts)
        return retrieval_metrics(similarity, self.val.texts[1])

    # --- persistence ----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all that `resume` needs into `out`, atomically; nothing without `out`."""
        if self.out is None:
            return
        state: dict[str, Any] = {
            "config": self.config.to_dict(), "data": self._data_key(), "phase_number": self.phase_number,
            "step_count": self.step_count, "best": self.best, "history": self.history, "seconds": self.seconds,
            "finished": self.finished, "origin": self.origin, "lr_factor": self.lr_factor,
            "phase": None if self._phase is None else self._phase.state(),
            "encoder": self.encoder.state_dict(), "best_state": self.best_state,
        }  # fmt: skip
        save_state(self.out, state)

    def resume(self) -> bool:
        """Go on from `out` if a state lies there; True when one did. Raises ConfigError when it is another run's."""
        state = None if self.out is None else load_state(self.out)
        if state is None:
            return False
        mine = self.config.to_dict()
        changed = [
            f"{name} {state['config'].get(name)!r} -> {mine[name]!r}"
            for name in mine
            if state["config"].get(name) != mine[name]
        ]
        if state["data"] != self._data_key():
            changed.append("the dataset or the encoder")
        if changed:
            raise ConfigError(
                f"{self.out} holds a run with other settings ({'; '.join(changed[:4])}); "
                "choose another --out, or --restart"
            )
        self.phase_number, self.step_count = state["phase_number"], state["step_count"]
        self.best, self.history, self.seconds = state["best"], state["history"], state["seconds"]
        self.finished, self.best_state, self._phase = state["finished"], state["best_state"], None
        self.lr_factor, self.validated = state.get("lr_factor", 1.0), {}
        self._start_weights.keep(self.encoder, towers=True)
        self.encoder.load_state_dict(state["encoder"])
        self.encoder.eval()  # a phase made before would have left parts of it in training mode
        self.origin = state["origin"]
        if state["phase"] is not None:
            self.phase.restore(state["phase"])
        return True

    def _data_key(self) -> str:
        parts = [[list(part.frame["sample_id"]), part.texts[0]] for part in (self.train, self.val)]
        return content_hash(self.encoder.name, *self._start, parts)

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _count_seconds(self, what: str, started: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def _log(self, result: StepResult) -> None:
        self.history.append(result.row())
        if self.out is not None:
            self._writer = self._writer or open_writer(self.out, self.step_count)
            write_row(self._writer, self.history[-1])
