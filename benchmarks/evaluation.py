"""Evaluation: every image and text encoded once, against encoding the images again for each shard of captions.

    python benchmarks/evaluation.py [--images 200] [--shard 200] [--rounds 3]

The second way is that of the method's public code: its evaluation walks over shards of captions and sends the images
through the model for each of them. Both use the same encoder, batches and images (RSICD's validation images where
UCORE_DATA is set, generated JPEGs otherwise), read and prepared beforehand, and must find the same recalls.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from claims import claim
from feature_extraction import images

from ucore.evaluate import retrieval_metrics, retrieval_metrics_from_features
from ucore.features import embed_texts, pixel_batches
from ucore.model import DualEncoder, load_encoder
from ucore.origin import machine_facts

BATCH = 64


def encode(encoder: DualEncoder, pixels: list[torch.Tensor]) -> np.ndarray:
    with encoder.evaluating():
        return torch.cat([encoder.encode_image(batch) for batch in pixels]).float().cpu().numpy()


def once(encoder: DualEncoder, pixels: list[torch.Tensor], texts: list[str], owner: np.ndarray) -> dict[str, float]:
    return retrieval_metrics_from_features(encode(encoder, pixels), embed_texts(encoder, texts, progress=False), owner)


def by_shards(
    encoder: DualEncoder, pixels: list[torch.Tensor], texts: list[str], owner: np.ndarray, shard: int
) -> dict[str, float]:
    blocks = []
    for start in range(0, len(texts), shard):
        features = embed_texts(encoder, texts[start : start + shard], progress=False)
        blocks.append(encode(encoder, pixels) @ features.T)
    return retrieval_metrics(np.hstack(blocks), owner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--shard", type=int, default=200, help="captions of a shard")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    encoder, seconds = load_encoder(), ([], [])
    with tempfile.TemporaryDirectory() as folder:
        manifest, what = images(options.images, Path(folder))
        batches = [range(i, min(i + BATCH, len(manifest))) for i in range(0, len(manifest), BATCH)]
        pixels = list(pixel_batches(encoder, manifest.image_paths, batches))
        texts, owner = manifest.texts
        if len(texts) == len(manifest):  # generated: asked five times, as RSICD's images have five captions
            texts, owner = [f"{text}, view {n}" for text in texts for n in range(5)], np.repeat(owner, 5)
        encode(encoder, pixels)
        for _ in range(options.rounds):
            started = time.perf_counter()
            ours = once(encoder, pixels, list(texts), owner)
            middle = time.perf_counter()
            theirs = by_shards(encoder, pixels, list(texts), owner, options.shard)
            seconds[0].append(middle - started)
            seconds[1].append(time.perf_counter() - middle)
            assert abs(ours["mR"] - theirs["mR"]) < 0.2, "both ways must find the same"
    facts, ratios = machine_facts(), [b / a for a, b in zip(*seconds, strict=True)]
    shards = len(range(0, len(texts), options.shard))
    print(f"{len(manifest)} images ({what}), {len(texts)} texts, {facts['cpu']}, {facts['cores']} cores")
    print(f"encoded once            {statistics.median(seconds[0]):6.2f} s, mR {ours['mR']:.2f}")
    print(f"images again a shard    {statistics.median(seconds[1]):6.2f} s, mR {theirs['mR']:.2f}")
    print(f"ratio                   {statistics.median(ratios):6.2f} ({shards} shards)")
    claim(f"evaluation: images again for each {options.shard} captions / encoded once", ratios, 2)


if __name__ == "__main__":
    main()
