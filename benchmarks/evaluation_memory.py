"""Evaluation of a large gallery from features: seconds, and peak memory beyond the inputs.

    python benchmarks/evaluation_memory.py --images 100000 --texts 500000 --dim 64

Random unit features, float32; every text is its image's feature with noise added, so that the ranks can be told in
advance: with --noise 0 every query finds its match first. The memory is the process's resident set, sampled
every 20 ms, less what it was when the features stood ready; the relevance table counts as beyond the inputs.
"""

import argparse
import threading
import time
from pathlib import Path

import numpy as np

from ucore.errors import ConfigError
from ucore.evaluate import feature_ranks, instance_relevance
from ucore.origin import machine_facts

STATM = Path("/proc/self/statm")
PAGE = 4096


class PeakMemory:
    """Largest resident set, in bytes, while the block ran, beyond that at its start (Linux)."""

    def __enter__(self) -> "PeakMemory":
        self.start, self.peak, self.done = resident(), 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, resident() - self.start)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()


def resident() -> int:
    return int(STATM.read_text().split()[1]) * PAGE


def unit_rows(rows: np.ndarray) -> np.ndarray:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def features(images: int, texts: int, dim: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 (images, dim) and (texts, dim), unit rows, and int64 (texts,): the image of each text."""
    rng = np.random.default_rng(seed)
    image = unit_rows(rng.standard_normal((images, dim), np.float32))
    image_of_text = np.arange(texts) % images
    text = image[image_of_text]
    for start in range(0, texts, 10_000):
        part = text[start : start + 10_000]
        part += noise / np.sqrt(dim) * rng.standard_normal(part.shape, np.float32)
        unit_rows(part)
    return image, text, image_of_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--noise", type=float, default=1.0, help="length of the noise, the features' being 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directions", nargs="+", choices=("i2t", "t2i"), default=("i2t", "t2i"))
    options = parser.parse_args()
    if not STATM.is_file():
        raise ConfigError("This measurement reads /proc/self/statm: run it on Linux")
    if not 0 < options.images <= options.texts:
        raise ConfigError("Give --texts at least as many as --images, so that every image has a text")
    image, text, image_of_text = features(options.images, options.texts, options.dim, options.noise, options.seed)
    facts, inputs = machine_facts(), image.nbytes + text.nbytes + image_of_text.nbytes
    print(f"{options.images:,} images, {options.texts:,} texts, {options.dim} dimensions, {facts['cpu']}")
    print(f"{facts['cores']} cores; inputs {inputs / 1e9:.3f} GB", flush=True)
    for direction in options.directions:
        started = time.perf_counter()
        with PeakMemory() as memory:
            relevant = instance_relevance(image_of_text, len(image))
            if direction == "i2t":
                ranks = feature_ranks(image, text, relevant.T)
            else:
                ranks = feature_ranks(text, image, relevant)
        seconds = time.perf_counter() - started
        found = ", ".join(f"R@{k} {100 * np.mean(ranks <= k):.2f}" for k in (1, 5, 10))
        print(f"{direction}: {seconds:.1f} s, {memory.peak / 1e9:.3f} GB beyond the inputs; {found}", flush=True)


if __name__ == "__main__":
    main()
