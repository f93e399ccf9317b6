"""Trains sam-micro: `ucore segments train-micro --out DIR`.

The recipe is SAM's (arXiv 2304.02643, section 3 and appendix A): focal and dice loss, three masks for an ambiguous
click of which only the best is corrected, a regressed IoU, one mask for boxes and second clicks. Most steps see small
windows, placed anywhere in the frame by their positional encoding: the encoder is convolutional, so that nothing else
changes, and a click costs a quarter or a sixteenth of what it costs in a whole picture.
"""

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from ucore.device import cpu_has_bf16, keep_freed_memory, pick_device
from ucore.errors import ConfigError
from ucore.files import atomic_path, file_hash, only_writer, write_json
from ucore.images import someone_looks
from ucore.micro_sam import IMAGE_SIZE, NAME, STRIDE, build_micro_sam, load_micro_sam
from ucore.micro_sam_data import ZOOM, Source, Window, fingerprint, windows
from ucore.micro_sam_loss import Rule, guide_loss, mask_loss
from ucore.weights import read_state, resuming, write_weights

STATE, RESTART = "state.pt", "remove it to begin anew"
HARDLY, NEAR = 1.4, 2.2  # most zoom of a picture in the two last phases


@dataclass(frozen=True)
class MicroSamConfig:
    """Settings of `train_micro`: first the encoder alone, then everything, on ever larger windows.

    A step sees `batch` windows of a quarter of the frame's side, or half or a quarter as many of twice or four times
    that, with `prompts` clicks each; alone, the encoder sees `batch` windows of half the side. What lies far from a
    click is learned from whole pictures: when the rate is nearly 0, and once more from half of its peak on (`whole`).
    Then come pictures as the second look of `ucore.closer` sees them: whole, or up to twice as near (`closer`).
    """

    steps: int = 10_000
    whole: float = 0.4  # of as many steps again, with warm-up and cosine of their own, on pictures hardly zoomed
    closer: float = 0.25  # of as many steps again, in the same way, on pictures zoomed by up to `NEAR`
    seed: int = 0
    batch: int = 16
    prompts: int = 10
    alone: float = 0.35  # share of the steps in which only the encoder learns, by `guide_loss`
    quarter: float = 0.15  # share of the steps, after them, that see windows of a quarter of the frame's side
    half: float = 0.3  # share of the steps, after them, that see windows of half the side
    together: float = 0.15  # share of the steps, from the first click on, in which all four masks learn from each
    lr: float = 8e-4  # of neck, decoder and prompts; peak of warm-up and cosine
    trunk_lr: float = 3e-4  # of the ImageNet backbone
    weight_decay: float = 0.05
    guide: float = 1.0  # weight of `guide_loss`
    ema: float = 0.998
    distilled: float = 0.35  # share of windows from real pictures, where there are any
    save_every: int = 250


class MicroSamTrainer:
    """Step by step; the batch of a step depends on the seed and the step only, so resuming changes nothing."""

    def __init__(
        self, sources: Sequence[Source], config: MicroSamConfig, device: str = "auto", start: Path | None = None
    ) -> None:
        """start: weights of sam-micro that only the last phase is still to change."""
        self.config, self.sources = config, list(sources)
        torch.manual_seed(config.seed)  # the first weights
        self.device = torch.device(pick_device(device))
        first = build_micro_sam(imagenet=True) if start is None else load_micro_sam(start)
        self.sam = first.to(self.device).train()
        self.average = AveragedModel(self.sam, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        trunk = list(self.sam.image_encoder.trunk.parameters())  # type: ignore[reportAttributeAccessIssue]
        known = {id(parameter) for parameter in trunk}
        self.likeness = torch.nn.Parameter(torch.tensor([8.0, 0.5], device=self.device))  # of `guide_loss`
        rest = [parameter for parameter in self.sam.parameters() if id(parameter) not in known] + [self.likeness]
        groups = [{"params": trunk, "peak": config.trunk_lr}, {"params": rest, "peak": config.lr}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98))
        self.step_number = 0 if start is None else self.phases[1]
        self.data = fingerprint(sources) + ("" if start is None else f" from {file_hash(start)}")

    def side(self, step: int) -> int:
        """Pixels of the windows of a step: small windows first, whole pictures in the end."""
        config, done = self.config, step / self.config.steps
        if config.alone <= done < config.alone + config.quarter:
            return IMAGE_SIZE // 4
        return IMAGE_SIZE // 2 if done < config.alone + config.quarter + config.half else IMAGE_SIZE

    @property
    def phases(self) -> tuple[int, int, int]:
        """The steps at which the first round, that on whole pictures and that on closer ones end."""
        config = self.config
        return config.steps, round(config.steps * (1 + config.whole)), self.last

    @property
    def last(self) -> int:
        """Number of all steps."""
        return round(self.config.steps * (1 + self.config.whole + self.config.closer))

    def is_alone(self, step: int) -> bool:
        """Whether only the encoder learns in a step."""
        return step < self.config.alone * self.config.steps

    def batch(self, step: int) -> tuple[list[Window], str, np.ndarray]:
        """The windows of a step, the kind of prompt, and where in the frame the windows lie, int64 (B, 2) pixels."""
        rng = np.random.default_rng([self.config.seed, step])
        side = self.side(step)
        real = sum(source.name == "distilled" for source in self.sources)
        shares = [self.config.distilled / real if source.name == "distilled" else 1 - self.config.distilled
                  for source in self.sources]  # fmt: skip
        alone = self.is_alone(step)
        count = self.config.batch if alone else max(1, self.config.batch * IMAGE_SIZE // 4 // side)
        prompts = 1 if alone else self.config.prompts
        first, second, _ = self.phases
        zoom = ZOOM if step < first else HARDLY if step < second else NEAR
        made = list(islice(windows(self.sources, shares, side, prompts, rng, zoom), count))
        kind = str(rng.choice(["click", "box", "two"], p=[0.8, 0.1, 0.1]))
        offsets = rng.integers(0, (IMAGE_SIZE - side) // STRIDE + 1, (count, 2)) * STRIDE
        return made, kind, offsets

    def step(self, batch: tuple[list[Window], str, np.ndarray]) -> dict[str, float]:
        """One step of the optimizer; the parts of the loss."""
        made, kind, offsets = batch
        self._set_rates()
        pixels = torch.from_numpy(np.stack([window.image for window in made])).permute(0, 3, 1, 2)
        objects, cells = (torch.from_numpy(np.stack([getattr(window, name) for window in made])).to(self.device)
                          for name in ("objects", "cells"))  # fmt: skip
        parts: dict[str, Tensor] = {}
        with self._autocast():
            mean: Any = self.sam.pixel_mean
            normal = (pixels.to(self.device).float() - mean) / self.sam.pixel_std
            embedding = self.sam.image_encoder(normal)
            upscaled = self.sam.mask_decoder.output_upscaling(embedding)
            if not self.is_alone(self.step_number):
                parts = self._mask_parts(embedding, made, kind, offsets)
        parts["guide"] = guide_loss(upscaled.float(), objects, cells, self.likeness)
        parts["loss"] = self.config.guide * parts["guide"] + parts.get("mask", 0) + parts.get("iou_error", 0)
        self.optimizer.zero_grad()
        parts["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.sam)
        self.step_number += 1
        return {**{name: float(value.detach()) for name, value in parts.items()}, "norm": float(norm)}

    def _mask_parts(self, embedding: Tensor, made: list[Window], kind: str, offsets: np.ndarray) -> dict[str, Tensor]:
        targets = torch.from_numpy(np.concatenate([window.masks for window in made])).to(self.device).float()
        points, labels = (part.to(self.device) for part in prompts_of(made, kind, offsets))
        logits, scores = decode(self.sam, embedding, points, labels, offsets)
        config = self.config
        together = self.step_number < (config.alone + config.together) * config.steps
        rule: Rule = "all" if together else "best" if kind == "click" else "first"
        return mask_loss(logits.float(), scores.float(), targets, rule)

    def _set_rates(self) -> None:
        ends = (0, *self.phases)
        phase = sum(self.step_number >= end for end in ends[1:])
        step, steps, peak = self.step_number - ends[phase], ends[phase + 1] - ends[phase], 0.5 if phase else 1.0
        warm = min(1.0, (step + 1) / 150)
        share = peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    def _autocast(self) -> torch.autocast:
        kind = self.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda" or cpu_has_bf16())

    def averaged(self) -> Sam:
        """The exponentially averaged weights, which are scored and shipped."""
        sam: Any = self.average.module
        return sam.eval()

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser, step, settings and data: what `load_state` goes on from."""
        return {"sam": self.sam.state_dict(), "likeness": self.likeness.detach(), "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(), "step": self.step_number,
                "config": asdict(self.config), "data": self.data}  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises ConfigError when it is of other settings."""
        if state["config"] != asdict(self.config) or state["data"] != self.data:
            raise ConfigError(
                "The unfinished training there has other settings or data; repeat them, or choose another --out"
            )
        self.sam.load_state_dict(state["sam"])
        self.likeness.data.copy_(state["likeness"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = int(state["step"])


def prompts_of(made: Sequence[Window], kind: str, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Points float32 (B, P, 2, 2) in pixels of the frame and their labels int64 (B, P, 2), as segment_anything counts
    them: -1 no point, 0 outside, 1 inside, 2 and 3 the corners of a box."""
    points = np.stack([window.points for window in made])
    labels = np.stack([window.labels for window in made])
    if kind == "box":
        points = np.stack([window.boxes for window in made]).reshape(points.shape)
        labels = np.broadcast_to(np.array([2, 3]), labels.shape).copy()
    elif kind == "click":
        labels[..., 1] = -1
    points = points + offsets[:, None, None, ::-1]
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def decode(sam: Sam, embedding: Tensor, points: Tensor, labels: Tensor, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Every prompt of a batch of windows at once: mask logits (B * P, 4, 4 h, 4 w) and predicted IoU (B * P, 4).

    embedding: float (B, C, h, w); points, labels: as of `prompts_of`; offsets: rows and columns of the windows'
    corners in the frame, pixels, multiples of STRIDE.
    """
    decoder, prompter = sam.mask_decoder, sam.prompt_encoder
    count, prompts = points.shape[:2]
    height, width = embedding.shape[2:]
    with torch.autocast(embedding.device.type, enabled=False):  # the phase of short waves needs float32
        sparse = _embed(prompter, points.flatten(0, 1), labels.flatten(0, 1))
        whole = prompter.get_dense_pe()[0]
    corners = offsets // STRIDE
    position = torch.stack([whole[:, y : y + height, x : x + width] for y, x in corners])
    source = embedding + prompter.no_mask_embed.weight.reshape(1, -1, 1, 1)
    source, position = (part.repeat_interleave(prompts, dim=0) for part in (source, position))
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own[None].expand(count * prompts, -1, -1), sparse], dim=1)
    hidden, source = decoder.transformer(source, position, tokens)
    upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(count * prompts, -1, height, width))
    weights = [mlp(hidden[:, 1 + n]) for n, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.einsum("pkc,pchw->pkhw", torch.stack(weights, dim=1), upscaled)
    return logits, decoder.iou_prediction_head(hidden[:, 0])


def _embed(prompter: Any, points: Tensor, labels: Tensor) -> Tensor:
    """Prompt tokens float (N, n, C); a box's corners too, which segment_anything embeds apart."""
    tokens = prompter.pe_layer.forward_with_coords(points + 0.5, prompter.input_image_size)
    kinds = torch.stack([embedding.weight[0] for embedding in prompter.point_embeddings])
    empty = (labels < 0)[..., None]
    return torch.where(empty, prompter.not_a_point_embed.weight, tokens + kinds[labels.clamp(min=0)])


def train_micro(
    sources: Sequence[Source],
    out: str | Path,
    config: MicroSamConfig | None = None,
    device: str = "auto",
    start: Path | None = None,
) -> Path:
    """Train, and write OUT/sam-micro.safetensors (float16) and OUT/training.json; goes on where it was stopped.

    start: weights of sam-micro; the phases before the last one are then left out.
    Raises ConfigError when OUT holds an unfinished training of other settings.
    """
    config, out = config or MicroSamConfig(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    with only_writer(out):
        trainer = MicroSamTrainer(sources, config, device, start)
        log: list[dict[str, float]] = []
        if (out / STATE).is_file():
            saved = read_state(out / STATE, RESTART, ("trainer", "log"))
            with resuming(out / STATE, RESTART):
                trainer.load_state(saved["trainer"])
            log = saved["log"]
        _fit(trainer, out, log)
        path = out / f"{NAME}.safetensors"
        write_weights(path, {name: value.half() for name, value in trainer.averaged().state_dict().items()})
        pictures = [[source.name, len(source.images)] for source in sources]
        write_json(out / "training.json", {"config": asdict(config), "pictures": pictures, "log": log})
    return path


def _fit(trainer: MicroSamTrainer, out: Path, log: list[dict[str, float]]) -> None:
    config = trainer.config
    started, seconds = time.perf_counter(), log[-1]["seconds"] if log else 0.0
    recent: list[dict[str, float]] = []
    bar = tqdm(total=trainer.last, initial=trainer.step_number, desc=NAME, unit="step", disable=not someone_looks())
    with bar, ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(trainer.batch, trainer.step_number)
        while trainer.step_number < trainer.last:
            batch = ahead.result()
            ahead = pool.submit(trainer.batch, trainer.step_number + 1)
            recent.append(trainer.step(batch))
            bar.update()
            if trainer.step_number % config.save_every == 0 or trainer.step_number == trainer.last:
                means = {name: round(float(np.mean([entry[name] for entry in recent if name in entry])), 4)
                         for name in recent[-1]}  # fmt: skip
                log.append({"step": trainer.step_number, **means,
                            "seconds": round(seconds + time.perf_counter() - started, 1)})  # fmt: skip
                bar.set_postfix({name: means[name] for name in ("loss", "guide", "iou") if name in means})
                if not someone_looks():
                    print(json.dumps(log[-1]), flush=True)
                recent = []
                with atomic_path(out / STATE) as temporary:
                    torch.save({"trainer": trainer.state(), "log": log}, temporary)
