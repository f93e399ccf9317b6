"""The training stepper on cached features: how often its views change, and what share of the time training keeps.

    python benchmarks/stepper.py [--data DIR] [--out runs] [--steps N] [--rounds R] [--segments]

Rounds of bare `trainer.step()` alternate with rounds of `TrainingStepper.run`, from the same start, so that a drift of
the machine's speed meets both; the share is taken round by round. A view cannot change more often than steps are made.
Rates are by the clock and, which other work on the machine changes less, by this process's own core seconds. Tower
features are computed before, once, and kept under --out. Without --data, the dataset is as notebook 04 finds it at
scale tiny.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from ucore.config import TrainConfig
from ucore.data import find_dataset, read_dataset
from ucore.device import freed_memory_kept
from ucore.manifest import subset
from ucore.model import load_encoder
from ucore.origin import machine_facts
from ucore.probes import BatchProbe, QueryProbe
from ucore.segments import segment_dataset
from ucore.train import Trainer
from ucore.widgets import TrainingStepper

VIEWS = {"curves": "curves", "matrix": "similarity matrix", "found": "best images"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="dataset folder")
    parser.add_argument("--out", default="runs", help="folder of the cached features")
    parser.add_argument("--steps", type=int, default=60, help="steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--validation-images", type=int, default=None, help="fewer than there are")
    parser.add_argument("--segments", action="store_true", help="with five segments an image, pooled late")
    options = parser.parse_args()
    manifest = read_dataset(find_dataset(options.data, "tiny", 0, options.out), split=("train", "val"))
    val = subset(manifest.split("val"), options.validation_images)
    changes = {"segments": "late"} if options.segments else {}
    config = TrainConfig.at("tiny", head_epochs=1000, patience=1000, **changes)
    store = segment_dataset(manifest, "slic", options.out) if options.segments else None
    torch.manual_seed(0)
    trainer = Trainer(load_encoder(), manifest.split("train"), val, config, cache=f"{options.out}/features",
                      segments=store)  # fmt: skip
    stepper = TrainingStepper(trainer, probe=BatchProbe(trainer), query=QueryProbe(trainer))
    changed: Counter[str] = Counter()
    for name in VIEWS:
        getattr(stepper, name).observe(lambda _, name=name: changed.update([name]), "value")
    stepper.run(5)
    shares, rates, bares = [], [], []
    for _ in range(options.rounds):
        trainer.reset()
        trainer.step()  # makes the phase
        with freed_memory_kept():  # as the stepper does
            bare = timed(lambda: [trainer.step() for _ in range(options.steps)])
        stepper.reset()
        trainer.step()
        changed.clear()
        watched = timed(lambda: stepper.run(options.steps))
        shares.append(bare / watched)
        bares.append(1000 * bare / options.steps)
        rates.append({name: changed[name] / watched for name in VIEWS})
    facts = machine_facts()
    print(f"{len(trainer.train)} + {len(val)} images of {manifest.name}, batch {trainer.phase.batch_size}, segments "
          f"{config.segments}; {facts['cpu']}, {facts['cores']} cores, {torch.get_num_threads()} threads, "
          f"torch {facts['torch']}")  # fmt: skip
    print("                                 by the clock  by core seconds (medians of the rounds)")
    table = {
        "bare step, ms": bares,
        **{f"{told}, updates/s": [rate[name] for rate in rates] for name, told in VIEWS.items()},
        "share that training keeps": shares,
    }
    for told, values in table.items():
        clock, core = np.median(values, axis=0)
        print(f"{told:36} {clock:8.2f} {core:8.2f}")


def timed(work: Callable[[], object]) -> np.ndarray:
    """Seconds by the clock, and of this process's cores: float64 (2,)."""
    started = np.array([time.perf_counter(), time.process_time()])
    work()
    return np.array([time.perf_counter(), time.process_time()]) - started


if __name__ == "__main__":
    main()
