"""Embedding a gallery: `ucore index build`'s path against the plain eager loop over timm's own model, in one run.

    python benchmarks/embedding.py [--images N] [--rounds R]      (or: make bench)

Both decode, resize, normalise and embed the same files in batches of 64 on the same cores; the weights are in memory
before. The gallery's path does more: it hashes the files, brings the features into the shared space, computes what
corrects hubs with a bank of 10,000 captions, and writes vectors and metadata to disk in a version. Rounds alternate,
and the ratio is taken round by round.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from claims import claim
from feature_extraction import images, plain_loop, plain_tower

from ucore import embedding
from ucore.checkpoint import load_checkpoint, save_bank, save_encoder
from ucore.config import TrainConfig
from ucore.hubness import MOST_BANK, Bank
from ucore.manifest import Manifest, subset
from ucore.model import load_encoder
from ucore.origin import machine_facts


def save_checkpoint(folder: Path) -> None:
    """The bundled encoder as it comes, with a bank of random features."""
    encoder = load_encoder()
    folder.mkdir()
    save_encoder(folder, encoder, encoder.state_dict(), TrainConfig.at("tiny"), {"mR": 0.0})
    texts = np.random.default_rng(0).standard_normal((MOST_BANK, encoder.embed_dim)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    save_bank(folder, Bank(texts[:1000], texts))


def index_of(folder: Path, manifest: Manifest, name: str, loaded: Any) -> None:
    """Build an index, with a checkpoint that was loaded before."""
    with patch.object(embedding, "load_checkpoint", return_value=loaded):
        embedding.build_index(folder / "checkpoint", manifest, folder / name, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        manifest, what = images(options.images, folder)
        frame: Any = manifest.frame.assign(captions=[[] for _ in range(len(manifest))])
        manifest = Manifest(frame, manifest.root)
        save_checkpoint(folder / "checkpoint")
        loaded = load_checkpoint(folder / "checkpoint")
        plain, paths = plain_tower(), manifest.image_paths
        index_of(folder, subset(manifest, 64), "warm", loaded)
        plain_loop(plain, paths[:64])
        ours, theirs = [], []
        for number in range(options.rounds):
            started = time.perf_counter()
            index_of(folder, manifest, f"index-{number}", loaded)
            middle = time.perf_counter()
            plain_loop(plain, paths)
            ours.append(len(manifest) / (middle - started))
            theirs.append(len(manifest) / (time.perf_counter() - middle))
    facts = machine_facts()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"{len(manifest)} images ({what}), batch 64, {facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}")
    print(f"plain eager timm loop   {statistics.median(theirs):7.1f} images/s (float32)")
    print(f"gallery, to the index   {statistics.median(ours):7.1f} images/s ({loaded[0].precision})")
    print(f"ratio                   {statistics.median(ratios):7.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    claim("gallery embedded and indexed, images/s over a plain timm loop", ratios, 1.0)


if __name__ == "__main__":
    main()
