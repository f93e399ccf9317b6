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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ucore import distributed
from ucore.alignment import SegmentSets
from ucore.checkpoint import RESTART, STATE, StartWeights, load_state, resuming, save_encoder, save_state
from ucore.config import TrainConfig
from ucore.device import freed_memory_kept
from ucore.errors import ConfigError, UserError
from ucore.evaluate import retrieval_metrics, retrieval_metrics_from_features, similarity_matrix
from ucore.files import content_hash
from ucore.fusion import add_parts, loss_parts, segment_sets, with_segments
from ucore.gradients import Parts, total
from ucore.guards import only_trainer, require_finite, statistics_kept
from ucore.manifest import Manifest, subset
from ucore.model import DualEncoder
from ucore.neighbours import CaptionLikeness, soft_positives
from ucore.origin import git_commit
from ucore.pairs import TrainingTexts
from ucore.phases import HeadPhase, Phase
from ucore.progress import Curves, Metrics, StepResult, kept_weights, made_of, restore, run_state
from ucore.segment_store import SegmentStore
from ucore.tower_phase import TowerPhase


class Trainer:
    """Trains `encoder` in place on `train`, choosing weights by mR on the whole of `val`.

    segments: of all these images, where the configuration uses any; their features are computed once.
    out: folder for the best weights, the state to resume from and TensorBoard curves; None keeps all in memory.
    cache: folder for tower features, shared between runs.
    """

    criterion = "mR"  # the metric of a validation by which weights are chosen

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
        self.encoder, self.config, self.progress = encoder, config, progress and distributed.is_first()
        encoder.choose_precision(config.precision)
        distributed.synchronise(encoder)
        self.train, self.val = subset(train, config.max_train_images), val
        if len(self.train) < 2:
            raise ConfigError(f"The training split has {len(self.train)} image; contrastive training needs at least 2")
        self.start = {f"{part} tower": encoder.fingerprint(part) for part in ("image", "text")}  # before training
        self._sets: dict[str, SegmentSets] = {}
        self.store, self._segmented = segments, {"train": (self.train, segments), "val": (val, segments)}
        config.require_masks(segments is not None)
        self._equip()
        distributed.synchronise(encoder)  # what was added, too
        if segments is not None and config.segments != "none":
            self.start["segments"] = content_hash(segments.parts.settings)
        self.out = None if out is None else Path(out)
        self._writes = self.out is not None and distributed.is_first()
        self._curves = Curves(self.out / "tensorboard") if self.out is not None and self._writes else None
        self.cache = None if cache is None else Path(cache)
        self.pairs = TrainingTexts(self.train, config.description_share > 0)
        self.texts, self.first_text = self.pairs.texts, self.pairs.first
        self._likeness = None
        if config.soft_share:  # now, since resuming brings weights that have learned
            self._likeness = CaptionLikeness(encoder, self.train, self.pairs, config.soft_tags, self.cache, progress)
        self._kinds = [kind for kind in (HeadPhase, TowerPhase) if kind.epochs_of(config) > 0]
        self.origin = {"commit": git_commit(), "precision": encoder.precision, "device": str(encoder.device)}
        self._start_weights = StartWeights()
        self._most_scale = max(math.log(100), encoder.logit_scale.item())  # CLIP's bound; SigLIP's own lie beyond it
        self.written: tuple[int, ...] | None = None  # mark of the state that this run wrote or read last
        self._begin()

    def _equip(self) -> None:
        add_parts(self.encoder, self.config, len(self.train))

    def _begin(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.step_count = self.phase_number = 0
        self.lr_factor = 1.0  # times every rate of the schedule; may be changed between two steps
        self.best: dict[str, Any] = {"mR": -1.0}
        self.best_state: dict[str, Tensor] = {}
        self.validated: dict[str, Any] = {}  # what the last validation saw: step, image, text, similarity
        self._phase: Phase | None = None
        self.finished, self._between_steps = False, True  # the latter not while a step or epoch's end is half done

    def reset(self) -> None:
        """Back to the start, as a new trainer of the same weights; what `out` holds stays until the next step."""
        for open_one in filter(None, (self._phase, self._curves)):
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
        if not self._between_steps and not self.resume():
            raise UserError("The last step was interrupted when half done, and no state was written: begin anew.")
        phase = self.phase
        if not self.best_state:  # the model as it comes may be the best there is, as a zero-shot CLIP can be
            with self._evaluating(phase):
                self._judge()
            self.save()
        started, epoch = time.perf_counter(), phase.epoch
        rows, texts = phase.next_batch()
        rate = phase.set_learning_rates()
        positives = torch.from_numpy(self.positives(rows, texts)).to(self.encoder.device)
        phase.optimizer.zero_grad(set_to_none=True)

        def losses(image_features: Tensor, text_features: Tensor) -> Parts:
            torch.manual_seed(phase.seed_of(phase.step_count, salt=4))  # dropout of the segments' head
            parts = self.losses(rows, image_features, text_features, positives)
            require_finite(self, "loss", total(parts).item(), rows)
            return parts

        with statistics_kept(self.encoder):
            parts = {name: float(part) for name, part in phase.backward(rows, texts, losses).items()}
            norm = torch.nn.utils.clip_grad_norm_(phase.parameters, self.config.clip_norm)
            require_finite(self, "norm of the gradient", norm.item(), rows)
            self._between_steps = False
        phase.optimizer.step()
        self.encoder.logit_scale.data.clamp_(0, self._most_scale)
        phase.update_average()
        phase.step_count += 1
        self.step_count += 1
        self._count_seconds("training", started)
        temperature = math.exp(-self.encoder.logit_scale.item())
        about = (self.step_count, phase.name, epoch, sum(parts.values()), rate, norm.item(), temperature)
        result = StepResult(*about, parts, self.lr_factor)
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

    def segment_sets(self, split: str) -> SegmentSets:
        """Tower features of the segments of the images of "train" or "val", computed when first needed."""
        if split not in self._sets:
            manifest, store = self._segmented[split]
            assert store is not None
            with distributed.first_alone():  # it keeps them in files
                self._sets[split] = segment_sets(self.encoder, manifest, store, self.config, self.progress)
        return self._sets[split]

    def positives(self, rows: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """bool (images, texts): True where the image has that very text or an equal one; or `soft_positives`."""
        same, config = self.pairs.positives(rows, texts), self.config
        if self._likeness is None:
            return same
        return soft_positives(same, self._likeness(rows, texts), config.soft_share, config.soft_temperature)

    def fit(self, on_step: Callable[[StepResult], None] | None = None) -> Metrics:
        """Step until done; returns the best validation metrics. Ctrl-C saves the state, then raises UserError.

        Raises UserError, too, while another process trains into the same folder.
        """
        with only_trainer(self.out if self._writes else None, self.written), freed_memory_kept(self.encoder.device):
            return self._fit(on_step)

    def _fit(self, on_step: Callable[[StepResult], None] | None) -> Metrics:
        bar = tqdm(total=self.total_steps, initial=self.step_count, desc="Training", disable=not self.progress)
        try:
            with bar:
                while (result := self.step()) is not None:
                    bar.update(1)
                    bar.set_postfix(phase=result.phase, loss=f"{result.loss:.3f}", val_mR=f"{self.best['mR']:.2f}")
                    if on_step is not None:
                        on_step(result)
        except KeyboardInterrupt:
            if distributed.size() > 1:  # the others may be elsewhere in their steps
                raise UserError("Stopped; repeat the command to go on from the last epoch.") from None
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
        better = metrics[self.criterion] > self.best.get(self.criterion, -math.inf)
        if better:
            best = {**metrics, "phase": phase.name, "epoch": phase.epoch, "step": self.step_count}
            state = kept_weights(self)
            if self.out is not None and self._writes:
                save_encoder(self.out, self.encoder, state, self.config, best)
            self.best_state, self.best = state, best  # when they are written: who is interrupted before judges again
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
        return distributed.from_first(self._validate())  # so that all decide alike

    def _validate(self) -> Metrics:
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
        if self.out is not None and self._curves is not None:
            self._curves.flush()  # what lies before the state is not drawn again
            phase = None if self._phase is None else self._phase.state()
            self.written = save_state(self.out, run_state(self, phase))

    made_of = cached_property(made_of)  # what does not change: looked up once

    def resume(self) -> bool:
        """Go on from `out` if a state lies there; True when one did. Raises ConfigError when it is another run's."""
        state = None if self.out is None else load_state(self.out)
        distributed.require_alike(
            None if state is None else state["step_count"],
            f"The processes find different runs in {self.out}; --out must lie where all machines see it",
        )
        if state is None:
            return False
        self._start_weights.keep(self.encoder, towers=True)
        with resuming(Path(self.out or ".") / STATE, RESTART):
            restore(self, state)
        self._phase, self.validated, self._between_steps = None, {}, True
        if state["phase"] is not None:
            phase = self.phase
            with resuming(Path(self.out or ".") / STATE, RESTART):
                phase.restore(state["phase"])
        return True

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _count_seconds(self, what: str, started: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def _log(self, result: StepResult) -> None:
        self.history.append(result.row())
        if self._curves is not None:
            self._curves.add(result)
