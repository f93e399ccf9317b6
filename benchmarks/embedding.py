"""Embedding a gallery: `ucore index build`'s path against the plain eager loop over timm's own model, in one run.

    python benchmarks/embedding.py [--images N] [--rounds R]      (or: make bench)

Both decode, resize, normalise and embed the same files in batches of 64 on the same cores; the weights are in memory
before. The gallery's path does more: it hashes the files, brings the features into the shared space, computes what
corrects hubs with a bank of 10,000 captions, and writes vectors and metadata to disk in a version. Rounds alternate,
and the ratio is taken round by round.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from claims import claim
from feature_extraction import against_plain_loop, images, options_of

from ucore import embedding
from ucore.checkpoint import load_checkpoint, save_bank, save_encoder
from ucore.config import TrainConfig
from ucore.hubness import MOST_BANK, Bank
from ucore.manifest import Manifest
from ucore.model import load_encoder


def save_checkpoint(folder: Path) -> None:
    """The bundled encoder as it comes, with a bank of random features."""
    encoder = load_encoder()
    folder.mkdir()
    save_encoder(folder, encoder, encoder.state_dict(), TrainConfig.at("tiny"), {"mR": 0.0})
    texts = np.random.default_rng(0).standard_normal((MOST_BANK, encoder.embed_dim)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    save_bank(folder, Bank(texts[:1000], texts))


def main() -> None:
    options = options_of(__doc__)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        manifest, what = images(options.images, folder)
        frame: Any = manifest.frame.assign(captions=[[] for _ in range(len(manifest))])
        save_checkpoint(folder / "checkpoint")
        loaded = load_checkpoint(folder / "checkpoint")
        names = (folder / f"index-{number}" for number in itertools.count())

        def ours(part: Manifest) -> None:
            with patch.object(embedding, "load_checkpoint", return_value=loaded):
                embedding.build_index(folder / "checkpoint", part, next(names), progress=False)

        name = f"to the index, {loaded[0].precision}"
        ratios = against_plain_loop(ours, Manifest(frame, manifest.root), options.rounds, name, what)
    claim("gallery embedded and indexed, images/s over a plain timm loop", ratios, 1.0)


if __name__ == "__main__":
    main()
