"""Loading: reading and preparing images as features are made from, against plain Pillow and torchvision.

    python benchmarks/loading.py [--images 256] [--rounds 5]

Both read the same files (RSICD's validation images where UCORE_DATA is set, generated JPEGs otherwise) and make RGB of
them and batches of 64 of the encoder's input size. Ours reads in threads, one a core, as it does before every model;
the plain loop is what one writes by hand.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from claims import claim
from feature_extraction import images, plain_transform
from PIL import Image

from ucore.features import pixel_batches
from ucore.model import load_encoder
from ucore.origin import machine_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    encoder, transform, rates = load_encoder(), plain_transform(), ([], [])
    with tempfile.TemporaryDirectory() as folder:
        manifest, what = images(options.images, Path(folder))
        paths = manifest.image_paths
        batches = [range(start, min(start + 64, len(paths))) for start in range(0, len(paths), 64)]
        for warm in (True, *[False] * options.rounds):
            started = time.perf_counter()
            for _ in pixel_batches(encoder, paths, batches):
                pass
            middle = time.perf_counter()
            for rows in batches:
                torch.stack([transform(Image.open(paths[row]).convert("RGB")) for row in rows])
            if not warm:
                rates[0].append(len(paths) / (middle - started))
                rates[1].append(len(paths) / (time.perf_counter() - middle))
    facts, ratios = machine_facts(), [a / b for a, b in zip(*rates, strict=True)]
    print(f"{len(paths)} images ({what}), {facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}")
    print(f"plain Pillow            {statistics.median(rates[1]):7.1f} images/s")
    print(f"ucore pixel_batches     {statistics.median(rates[0]):7.1f} images/s")
    print(f"ratio                   {statistics.median(ratios):7.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    claim("loading: ours / plain Pillow, images/s", ratios, 1)


if __name__ == "__main__":
    main()
