"""What an image costs in the augmentation stage, and a million of them: every step, on local processes and on Ray.

    python benchmarks/stage.py [--data DIR] [--images N] [--steps STEP ...] [--engines local ray]

Each step is run from nothing on one image, on half of them, and on all. The difference of the last two is what an image
costs (reading it, the model, the store); the first is what a start costs: libraries, processes, models, a cluster. Half
of the images must keep every worker busy: give at least 16 for each.
Core seconds are what all processes of the step computed, whatever else the machine was doing; of a cluster's processes
they are not known.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from ucore.captions import caption_dataset
from ucore.data import read_dataset
from ucore.manifest import Manifest, subset
from ucore.origin import machine_facts
from ucore.segments import segment_dataset
from ucore.simulate import simulate_dataset
from ucore.simulated_set import SimulationConfig

CAPTIONERS = ("tags", "micro")
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset folder; by default simulated tiles are made")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", nargs="+", default=["tags", "micro", "slic", "felzenszwalb", "sam-micro"],
                        help="generators and captioners, as `ucore segment` and `ucore caption` name them")  # fmt: skip
    parser.add_argument("--captioners", nargs="*", default=[], help="further ones: folders, hub names, addresses")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--workers", type=int, default=None, help="processes; by default as the commands choose")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores, GPU {facts['gpu']}, torch {facts['torch']}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.data is None:
            count = -(-arguments.images // 3)
            simulate_dataset(folder / "set", SimulationConfig(tiles=count, masks=False), progress=False)
        images = subset(read_dataset(arguments.data or folder / "set"), arguments.images)
        print(f"{len(images)} images of {images.name}\n")
        print("| step | engine | s to start | s an image | core s an image | hours for 1 M | core hours for 1 M |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        captioners = {*CAPTIONERS, *arguments.captioners}
        for step in [*arguments.steps, *arguments.captioners]:
            for engine in arguments.engines:
                sizes = (1, len(images) // 2, len(images))
                start, few, many = (
                    run(step, subset(images, size), step in captioners, engine, arguments) for size in sizes
                )
                each, core = (many - few) / (sizes[2] - sizes[1])
                cores = (f"{core:.4f}", f"{core * MILLION / 3600:,.0f}") if engine == "local" else ("", "")
                print(
                    f"| {step} | {engine} | {start[0]:.1f} | {each:.4f} | {cores[0]} | "
                    f"{each * MILLION / 3600:,.0f} | {cores[1]} |",
                    flush=True,
                )


def run(step: str, images: Manifest, captions: bool, engine: str, arguments: argparse.Namespace) -> np.ndarray:
    """Seconds that a step takes from nothing, by the clock and of the cores: float64 (2,)."""
    stage = caption_dataset if captions else segment_dataset
    with tempfile.TemporaryDirectory() as out:
        before = np.array([time.perf_counter(), core_seconds()])
        stage(images, step, out, engine=engine, workers=arguments.workers, device=arguments.device, progress=False)
        return np.array([time.perf_counter(), core_seconds()]) - before


def core_seconds() -> float:
    """What this process and those it has ended computed so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
