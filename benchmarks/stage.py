"""What an image costs in the augmentation stage, and a million of them: every step, on local processes and on Ray.

    python benchmarks/stage.py [--data DIR] [--images N] [--steps STEP ...] [--engines local ray]

Each step is run twice from nothing, on a quarter of the images and on all of them. The difference is what an image
costs (reading it, the model, the store); the rest is what a start costs: processes, libraries, models, a cluster.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ucore.captions import caption_dataset
from ucore.data import read_dataset
from ucore.manifest import Manifest, subset
from ucore.report import machine_facts
from ucore.segments import segment_dataset
from ucore.simulate import simulate_dataset
from ucore.simulated_set import SimulationConfig

CAPTIONERS = ("tags", "micro")
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset folder; by default simulated tiles are made")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", nargs="+", default=["felzenszwalb", "sam-micro", "tags", "micro"],
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
        print("| step | engine | s to start | s an image | hours for 1 M |")
        print("| --- | --- | ---: | ---: | ---: |")
        captioners = {*CAPTIONERS, *arguments.captioners}
        for step in [*arguments.steps, *arguments.captioners]:
            for engine in arguments.engines:
                few = subset(images, len(images) // 4)
                first, second = (run(step, part, step in captioners, engine, arguments) for part in (few, images))
                each = (second - first) / (len(images) - len(few))
                start = first - each * len(few)
                print(f"| {step} | {engine} | {start:.1f} | {each:.3f} | {each * MILLION / 3600:,.0f} |", flush=True)


def run(step: str, images: Manifest, captions: bool, engine: str, arguments: argparse.Namespace) -> float:
    """Seconds that a step takes from nothing."""
    stage = caption_dataset if captions else segment_dataset
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        stage(images, step, out, engine=engine, workers=arguments.workers, device=arguments.device, progress=False)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
