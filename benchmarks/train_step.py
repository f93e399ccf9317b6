"""A training step of both towers: with cached segments, in chunks, and against open_clip's own, side by side.

    python benchmarks/train_step.py [--batch N] [--rounds R] [--steps S] [--device cuda]

Images are RSICD's where UCORE_DATA is set, else generated JPEGs. Every contender trains its own copy of the bundled
encoder, the same layers of it, with AdamW in the same precision, on batches it decodes itself. "open_clip" is the loop
that its users write: a DataLoader with a worker a core, `open_clip.ClipLoss`, gradient clipping. It augments nothing
and keeps no averaged weights, which ours does. Features of segments are cached before training, so that random ones
cost the same. The rounds alternate, so that a drift of the machine's speed meets all; ratios are taken round by round.
"""

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from claims import claim
from feature_extraction import images

from ucore.alignment import SegmentSets
from ucore.config import TrainConfig
from ucore.data import ImageTextDataset
from ucore.device import freed_memory_kept, pick_device
from ucore.manifest import Manifest, subset
from ucore.model import DualEncoder, load_encoder
from ucore.origin import machine_facts, peak_memory_gb
from ucore.train import Trainer

SEGMENTS = 5


def our_trainer(encoder: DualEncoder, train: Manifest, val: Manifest, batch: int, **changes: Any) -> Trainer:
    config = TrainConfig.at("small", head_epochs=0, tune_epochs=100, tune_batch_size=batch, test_views=1, **changes)
    return Trainer(encoder, train, val, config, progress=False)


def add_segments(trainer: Trainer) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(trainer.train), SEGMENTS, trainer.encoder.image_width)).astype(np.float16)
    trainer.encoder.add_segments("mean")
    present = torch.ones(len(features), SEGMENTS, dtype=torch.bool)
    trainer._sets.update(train=SegmentSets(torch.from_numpy(features), present))
    trainer._sets.update(val=SegmentSets(torch.from_numpy(features[: len(trainer.val)]), present[: len(trainer.val)]))


def count_waiting(trainer: Trainer) -> list[float]:
    """Seconds that each step will wait for its pixels."""
    phase: Any = trainer.phase
    waited: list[float] = []
    original = phase._next_pixels

    def timed() -> torch.Tensor:
        started = time.perf_counter()
        pixels = original()
        waited.append(time.perf_counter() - started)
        return pixels

    phase._next_pixels = timed
    return waited


def open_clip_step(trainer: Trainer, workers: int) -> Callable[[], None]:
    """One step of a plain loop on a copy of the trainer's encoder, which must have its phase."""
    encoder, rate = copy.deepcopy(trainer.encoder).train(), trainer.config.image_lr
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=trainer.config.weight_decay, fused=True)  # as ours
    loss, all_tokens = open_clip.ClipLoss(), encoder.tokenize(trainer.texts)

    def batches() -> Iterator[dict[str, Any]]:
        data: Any = ImageTextDataset(trainer.train, encoder.transform)
        size = trainer.config.tune_batch_size
        while True:
            yield from torch.utils.data.DataLoader(
                data, size, shuffle=True, drop_last=True, num_workers=workers, collate_fn=ImageTextDataset.collate
            )

    stream = batches()

    def step() -> None:
        batch = next(stream)
        tokens = encoder.trim(all_tokens[trainer.first_text[:-1][batch["index"].numpy()]])
        features = encoder.encode_image(batch["image"]), encoder.encode_text(tokens)
        value = loss(*features, encoder.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, trainer.config.clip_norm)
        optimizer.step()
        with torch.no_grad():
            encoder.logit_scale.clamp_(0, math.log(100))
        value.item()  # as a progress bar asks for it

    return step


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):6.2f}   ({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each contender a round")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    batch, rounds, steps = options.batch, options.rounds, options.steps
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept(device):  # as `Trainer.fit`
        # One epoch is never ended, as validation would be counted.
        train, what = images(batch * (rounds * steps + 2), Path(folder))
        val, encoder = subset(train, 16), load_encoder(device=device)
        trainers = {
            "image only": our_trainer(copy.deepcopy(encoder), train, val, batch),
            f"{SEGMENTS} segments": our_trainer(copy.deepcopy(encoder), train, val, batch),
            "4 chunks": our_trainer(copy.deepcopy(encoder), train, val, batch, chunk=math.ceil(batch / 4)),
        }
        add_segments(trainers[f"{SEGMENTS} segments"])
        ours = trainers["image only"]
        waited = count_waiting(ours)
        contenders: dict[str, Callable[[], Any]] = {name: trainer.step for name, trainer in trainers.items()}
        contenders["open_clip"] = open_clip_step(ours, machine_facts()["cores"])
        for step in contenders.values():
            step()  # and the first validation
        waited.clear()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, step in contenders.items():
                started = time.perf_counter()
                for _ in range(steps):
                    step()
                seconds[name].append((time.perf_counter() - started) / steps)
    facts, base = machine_facts(), seconds["image only"]
    precision = f"{ours.encoder.precision} on {device}"
    print(f"batch {batch} ({what}), {precision}, {facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}")
    for name, aim in ((f"{SEGMENTS} segments", 1.2), ("4 chunks", 2.0)):
        ratios = [a / b for a, b in zip(seconds[name], base, strict=True)]
        print(f"{name + ' / image only':30s}{spread(ratios)}")
        claim(f"training step: {name} / image only, seconds", ratios, aim, least=False)
    ratios = [a / b for a, b in zip(base, seconds["open_clip"], strict=True)]
    print(f"image only / open_clip        {spread(ratios)}")
    claim("training step: ours / open_clip's, seconds", ratios, 1.05, least=False)
    print(f"waiting for data              {100 * sum(waited) / (sum(base) * steps):6.1f} % of an image-only step")
    print(f"image only                    {batch / statistics.median(base):6.1f} images/s")
    peak = peak_memory_gb() if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9
    print(f"peak memory                   {peak:6.2f} GB, all contenders in one process")


if __name__ == "__main__":
    main()
