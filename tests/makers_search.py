"""A small index of made-up places, with a checkpoint of the bundled encoder whose heads are as they were drawn."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from makers_maps import make_places

from ucore.checkpoint import save_bank, save_encoder
from ucore.config import TrainConfig
from ucore.embedding import build_index
from ucore.features import embed_images, embed_texts
from ucore.hubness import Bank
from ucore.manifest import Manifest
from ucore.segments import segment_dataset


class Place(NamedTuple):
    """Folders of the checkpoint, the index and the data, and the data."""

    checkpoint: Path
    index: Path
    data: Path
    manifest: Manifest


def save_checkpoint(folder: Path, encoder, manifest: Manifest, **settings) -> Path:
    """The encoder as training with `settings` would leave it, with a bank of the training images and captions."""
    encoder.choose_precision("float32")
    folder.mkdir(parents=True)
    config = TrainConfig.at("tiny", precision="float32", **settings)
    save_encoder(folder, encoder, encoder.state_dict(), config, {"mR": 1.0})
    train = manifest.split("train")
    save_bank(folder, Bank(embed_images(encoder, train, progress=False), embed_texts(encoder, train.texts[0], False)))
    return folder


def make_search(folder: Path, encoder, per_country: int = 12, source: str = "survey") -> Place:
    manifest = make_places(folder / "data", per_country, source=source)
    checkpoint = save_checkpoint(folder / "checkpoint", encoder, manifest)
    masks = segment_dataset(manifest, "felzenszwalb", folder / "masks", workers=1, progress=False)
    build_index(checkpoint, manifest, folder / "index", masks, 3, progress=False)
    return Place(checkpoint, folder / "index", folder / "data", manifest)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    features = rng.normal(size=shape).astype(np.float32)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
