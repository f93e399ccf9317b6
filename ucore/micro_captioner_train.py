"""Trains the small captioner: `ucore captions train-micro --out DIR [--data DIR ...]`.

The lower half of the ImageNet tower stays as it is, so its features are computed once; the upper half, the projector
and the language model learn to say an image's captions after a prompt with its tags (`micro_captioner_data`). One
image and prompt serve several answers at once, kept apart by the attention mask. Every batch is a function of (seed,
step), which is why resuming gives the same weights as never stopping; the weights of the lowest validation loss stay.
Each picture is seen about as often as it has captions, so that flips, which would turn "left" into a lie, are not
needed.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from ucore.convolution import fuse_convolutions
from ucore.data import read_dataset
from ucore.device import cpu_has_bf16, keep_freed_memory, pick_device
from ucore.errors import ConfigError, DataError
from ucore.features import stored_array
from ucore.files import atomic_path, content_hash, only_writer, require_writable, write_json
from ucore.images import load_image, someone_looks
from ucore.manifest import Manifest, subset
from ucore.micro_captioner import (
    ANSWER,
    END,
    IMAGE,
    IMAGE_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
    save,
    tower_of,
)
from ucore.micro_captioner_data import Batch, Sample, example, lesson_texts, pack, samples_of
from ucore.simulate import simulate_dataset
from ucore.simulated_set import SimulationConfig
from ucore.weights import read_state, resuming

STATE, FEATURES, SIMULATED, RESULT = "state.pt", "features", "simulated", "captioner"
RESTART = "remove it to begin anew"
FIRST_SEED = 4100  # of the simulated set, so that the built-in ones, of low seeds, stay unseen
FROZEN = 5  # of the tower's seven stages
PART = 1024  # pictures whose features are written together: what a stopped run loses at most
TOGETHER = 8  # images packed together, so that little is padding
MOST_ANSWER = 80  # tokens of an answer; longer ones are left out
VALIDATION = 200  # images of a dataset's validation split that are looked at


@dataclass(frozen=True)
class MicroCaptionerConfig:
    """Settings of `train_micro`."""

    steps: int = 1800
    seed: int = 0
    batch: int = 16  # images a step
    answers: int = 4  # of an image in a step, at most
    lr: float = 1.2e-3  # of language model and projector; peak of warm-up and cosine
    tower_lr: float = 2e-4
    weight_decay: float = 0.05
    warmup: int = 150  # steps
    check_every: int = 200  # steps between validation and saved state
    tiles: int = 1500  # simulated, of each country; 0: none, learn from other data only


class MicroCaptionerTrainer:
    """Training step by step on the features of `samples`, float16 (N, C, h, w), in groups that are drawn alike."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        groups: Sequence[tuple[list[Sample], np.ndarray]],
        config: MicroCaptionerConfig,
        device: str = "auto",
    ) -> None:
        self.model, self.tokenizer, self.groups, self.config = model, tokenizer, list(groups), config
        self.device = torch.device(pick_device(device))
        self.pad, self.end, self.image, self.answer = tokenizer.convert_tokens_to_ids(
            [tokenizer.pad_token, END, IMAGE, ANSWER]
        )
        model.to(self.device).requires_grad_(True)
        tower = tower_of(model)
        for part in (tower.conv_stem, tower.bn1, *tower.blocks[:FROZEN]):
            part.requires_grad_(False)
        model.train()
        tower.eval()  # batch statistics stay ImageNet's
        self.upper = [*tower.blocks[FROZEN:], tower.conv_head, tower.bn2]
        for part in self.upper[:-1]:
            fuse_convolutions(part)
        own = {id(parameter) for parameter in tower.parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if id(p) not in own], "peak": config.lr},
                {"params": [p for p in trained if id(p) in own], "peak": config.tower_lr},
            ],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        # Small sets of real pictures beside a large simulated one: by the square root of their size.
        weights = np.sqrt([len(samples) for samples, _ in self.groups])
        self.shares = weights / weights.sum()
        self.step_number = 0

    def draw(self, step: int) -> list[tuple[Tensor, Batch]]:
        """A step's images: features float16 (b, C, h, w) and sequences, in parts of about the same length."""
        draw = np.random.default_rng([self.config.seed, step])
        of = draw.choice(len(self.groups), self.config.batch, p=self.shares)
        return self._encode(
            [(self.groups[group], int(draw.integers(len(self.groups[group][0])))) for group in of], draw
        )

    def _encode(self, chosen: Sequence[Any], draw: np.random.Generator) -> list[tuple[Tensor, Batch]]:
        examples = [example(samples[row], draw, self.config.answers) for (samples, _), row in chosen]
        prompts = self.tokenizer([one.prompt for one in examples])["input_ids"]
        answers = iter(self.tokenizer([text for one in examples for text in one.answers])["input_ids"])
        sequences = []
        for one, prompt in zip(examples, prompts, strict=True):
            ids = [[*next(answers), self.end] for _ in one.answers]
            short = [answer for answer in ids if len(answer) <= MOST_ANSWER] or [ids[0][:MOST_ANSWER]]
            sequences.append(([self.image] * IMAGE_TOKENS + prompt + [self.answer], short))
        lengths = [len(prefix) + sum(map(len, answers)) for prefix, answers in sequences]
        order = np.argsort(lengths, kind="stable").tolist()
        parts = (order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER))
        return [
            (
                torch.from_numpy(np.stack([chosen[k][0][1][chosen[k][1]] for k in part])),
                pack([sequences[k] for k in part], self.pad),
            )
            for part in parts
        ]

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the answers' words, nats."""
        model, kind = self.model, self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" or cpu_has_bf16()):
            hidden = features.to(self.device).float()
            for part in self.upper:
                hidden = part(hidden)
            seen = model.model.multi_modal_projector(hidden.flatten(2).transpose(1, 2))
            tokens = batch.tokens.to(self.device)
            words = model.get_input_embeddings()(tokens)
            words = words.masked_scatter((tokens == self.image)[..., None], seen.to(words.dtype))
            hidden = model.model.language_model(
                inputs_embeds=words,
                attention_mask={"full_attention": batch.mask.to(self.device)},
                position_ids=batch.positions.to(self.device),
                use_cache=False,
            ).last_hidden_state
            logits = model.lm_head(hidden[batch.rows.to(self.device), batch.columns.to(self.device)])
        return F.cross_entropy(logits.float(), batch.labels.to(self.device))

    def step(self) -> float:
        """One step of the optimizer; its loss."""
        config = self.config
        warm = min(1.0, (self.step_number + 1) / config.warmup)
        share = warm * 0.5 * (1 + math.cos(math.pi * self.step_number / config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        parts = self.draw(self.step_number)
        words, total = sum(len(batch.labels) for _, batch in parts), 0.0
        self.optimizer.zero_grad()
        for features, batch in parts:
            loss = self.loss(features, batch) * (len(batch.labels) / words)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step_number += 1
        return total

    @torch.no_grad()
    def validate(self, groups: Sequence[tuple[list[Sample], np.ndarray]]) -> list[float]:
        """Loss on other images, the same prompts and answers every time; one number a group."""
        found = []
        for group in groups:
            draw = np.random.default_rng([self.config.seed, 1, 1])
            losses, counts = [], []
            for start in range(0, len(group[0]), self.config.batch):
                rows = range(start, min(start + self.config.batch, len(group[0])))
                for features, batch in self._encode([(group, row) for row in rows], draw):
                    losses.append(float(self.loss(features, batch)) * len(batch.labels))
                    counts.append(len(batch.labels))
            found.append(sum(losses) / sum(counts))
        return found

    def state(self) -> dict[str, Any]:
        """Model, optimiser and step: what `load_state` goes on from."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step_number}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = int(state["step"])


@torch.no_grad()
def lower_features(model: Any, processor: Any, paths: Sequence[Path], out: Path, device: str = "auto") -> np.ndarray:
    """What the frozen stages make of the pictures, float16 (N, C, h, w); kept in `out` in parts."""
    tower, target = tower_of(model).eval().to(pick_device(device)), torch.device(pick_device(device))
    parts = []
    starts = tqdm(range(0, len(paths), PART), desc="Features", unit="part", disable=not someone_looks())
    for start in starts:
        names = paths[start : start + PART]
        path = out / f"{content_hash(FROZEN, [[str(name), name.stat().st_size] for name in names])}.npy"
        kept = stored_array(path)
        if kept is None or len(kept) != len(names):
            made = []
            for first in range(0, len(names), 32):
                images = [load_image(name) for name in names[first : first + 32]]
                hidden = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(target)
                with torch.autocast(target.type, torch.bfloat16, enabled=target.type == "cuda" or cpu_has_bf16()):
                    hidden = tower.bn1(tower.conv_stem(hidden))
                    for stage in tower.blocks[:FROZEN]:
                        hidden = stage(hidden)
                made.append(hidden.to("cpu", torch.float16).numpy())
            kept = np.concatenate(made)
            with atomic_path(path) as temporary, open(temporary, "wb") as stream:
                np.save(stream, kept)
        parts.append(kept)
    return np.concatenate(parts)


def train_micro(
    out: str | Path,
    data: Sequence[str | Path] = (),
    config: MicroCaptionerConfig | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> Path:
    """Train on the simulated set, which is made in OUT/simulated, and on the datasets in `data`; returns OUT/captioner.

    data: folders that `read_dataset` knows; images and captions of their splits "train" are learnt from, up to 200
    images of each split "val" choose the weights. OUT/captioner is a folder for AutoModelForImageTextToText;
    OUT/training.json says how it went. The same call goes on where it was stopped. Raises ConfigError when OUT holds a
    training of other settings or data, DataError for a dataset without training split.
    """
    config, out = config or MicroCaptionerConfig(), Path(out)
    require_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    manifests = []
    if config.tiles:
        simulation = SimulationConfig(
            tiles=config.tiles, sensor="per-country", seed=FIRST_SEED + config.seed, masks=False
        )
        manifests.append(simulate_dataset(out / SIMULATED, simulation))
    manifests += [read_dataset(folder, skip_bad=skip_bad) for folder in data]
    if not manifests:
        raise ConfigError("There is nothing to learn from: ask for simulated tiles, or name a dataset with --data")
    with only_writer(out):
        return _train(out, manifests, config, device)


def _train(out: Path, manifests: Sequence[Manifest], config: MicroCaptionerConfig, device: str) -> Path:
    train, val = [], []
    for manifest in manifests:
        splits = set(manifest.frame["split"])
        if "train" not in splits:
            raise DataError(f"{manifest.root} has no split called train; split it with spatial_split first")
        train.append(samples_of(manifest.split("train")))
        if "val" in splits:
            val.append(samples_of(subset(manifest.split("val"), VALIDATION)))
    tokenizer = build_tokenizer(sorted(set(lesson_texts([s for of in train for s in of], config.seed))))
    processor, model = build_processor(tokenizer), build_model(tokenizer, config.seed)
    key = content_hash(asdict(config), [[sample.captions for sample in of] for of in train])
    saved: dict[str, Any] = {"log": [], "best": None}
    if (out / STATE).is_file():
        saved = read_state(out / STATE, RESTART, ("key", "log", "best", "trainer"))
        if saved["key"] != key:
            raise ConfigError(f"{out} holds a training of other settings or data; repeat them, or choose another --out")
    groups, checks = (
        [(of, lower_features(model, processor, [s.path for s in of], out / FEATURES, device)) for of in samples]
        for samples in (train, val)
    )
    trainer = MicroCaptionerTrainer(model, tokenizer, groups, config, device)
    if "trainer" in saved:
        with resuming(out / STATE, RESTART):
            trainer.load_state(saved["trainer"])
    log, best = saved["log"], saved["best"]
    _fit(trainer, checks, out, key, log, best)
    saved = read_state(out / STATE, RESTART, ("best", "log"))
    model.load_state_dict(saved["best"])
    save(model, processor, out / RESULT)
    pictures = {str(manifest.name): len(of) for manifest, of in zip(manifests, train, strict=True)}
    write_json(out / "training.json", {"config": asdict(config), "pictures": pictures, "log": saved["log"]})
    return out / RESULT


def _fit(trainer: MicroCaptionerTrainer, checks: Any, out: Path, key: str, log: list[Any], best: Any) -> None:
    config, seconds, recent = trainer.config, log[-1]["seconds"] if log else 0.0, []
    started = time.perf_counter()
    bar = tqdm(total=config.steps, initial=trainer.step_number, desc="captioner", unit="step",
               disable=not someone_looks())  # fmt: skip
    with bar:
        while trainer.step_number < config.steps:
            recent.append(trainer.step())
            bar.update()
            if trainer.step_number % config.check_every and trainer.step_number < config.steps:
                continue
            losses = trainer.validate(checks)
            mean = float(np.mean(losses)) if losses else float(np.mean(recent))
            if best is None or mean <= min(entry["val"] for entry in log):
                best = {name: value.to("cpu", copy=True) for name, value in trainer.model.state_dict().items()}
            spent = round(seconds + time.perf_counter() - started, 1)
            log.append({"step": trainer.step_number, "loss": round(float(np.mean(recent)), 4), "val": mean,
                        "val_each": [round(loss, 4) for loss in losses], "seconds": spent})  # fmt: skip
            recent = []
            bar.set_postfix(loss=log[-1]["loss"], val=round(mean, 3))
            if not someone_looks():
                print(json.dumps(log[-1]), flush=True)
            with atomic_path(out / STATE) as temporary:
                torch.save({"key": key, "trainer": trainer.state(), "log": log, "best": best}, temporary)
