"""A dataset embedded once into a `GalleryIndex`: its images, its captions and, where there are masks, its segments.

    index = build_index("runs/rsicd", read_dataset("data/rsicd"), "runs/index")

Every item keeps, beside its features, what `hubness` adds to its score: that depends on the item and the checkpoint's
bank alone, so that a search adds one number. A repeated call embeds only what is missing, and takes out samples and
captions that are no longer in the dataset; other pixels under an old name are not noticed.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch

from ucore.alignment import SegmentBranch, SegmentPool, SegmentSets, present_of
from ucore.checkpoint import load_bank, load_checkpoint
from ucore.checkpoint_files import WEIGHTS
from ucore.config import TrainConfig
from ucore.crop_features import segment_features
from ucore.errors import ConfigError
from ucore.features import embed_images, embed_texts
from ucore.files import file_hash, write_json
from ucore.fusion import segment_vectors
from ucore.hubness import Bank, hub_bias
from ucore.index import GalleryIndex
from ucore.index_files import NAME as INDEX_FILE
from ucore.manifest import Manifest
from ucore.model import DualEncoder
from ucore.segment_store import SegmentStore
from ucore.selection import select_segments
from ucore.sureness import MOST, SURENESS, Sureness, fit_sureness

AT_ONCE = 1024  # images that are embedded and added together: what a stop can cost
TEXTS_AT_ONCE = 2**16
MOST_QUERIES = 5000  # of the validation split, for `sureness`
KINDS = ("image", "text", "segment")


def build_index(
    checkpoint: str | Path,
    manifest: Manifest,
    out: str | Path,
    segments: SegmentStore | None = None,
    segment_count: int = 10,
    engine: str = "flat",
    device: str = "cpu",
    progress: bool = True,
) -> GalleryIndex:
    """Embed `manifest` with the checkpoint in a folder into an index in the folder `out`, or bring that up to date.

    segments: masks of these images; their best `segment_count` crops an image are searched, too. A checkpoint that was
    trained without segments embeds them with its image tower.
    Raises what `load_checkpoint`, `segment_features` and `GalleryIndex` raise; ConfigError where `out` holds an index
    of another encoder.
    """
    if segments is not None and segment_count < 1:
        raise ConfigError(f"segment_count is {segment_count}; give at least 1, or leave the segments out")
    encoder, trained = load_checkpoint(checkpoint, device)
    config, bank = TrainConfig.from_dict(trained["train"]), load_bank(checkpoint)
    card = index_card(encoder, Path(checkpoint), manifest, Path(out), config)
    index = _open_or_create(Path(out), card, encoder.embed_dim, engine)
    known = known_items(index)
    for item in (stale := _stale(manifest, known)):
        del known[item]
    index.delete(stale)
    maker = _Maker(index, encoder, manifest, known, bank, config, progress)
    maker.add_images()
    maker.add_texts()
    if segments is not None:
        maker.add_segments(segments, segment_count)
    sure = measure_sureness(index, bank, card["temperature"])
    write_json(Path(out) / SURENESS, None if sure is None else sure.to_dict())
    return index


def index_card(
    encoder: DualEncoder, checkpoint: Path, manifest: Manifest, out: Path, config: TrainConfig
) -> dict[str, Any]:
    """Who made the features, of what: `GalleryIndex.require` compares the first lines."""
    return {
        "name": encoder.name,
        "pretrained": encoder.pretrained,
        "embed_dim": encoder.embed_dim,
        "fingerprint": f"{encoder.fingerprint('image')}-{encoder.fingerprint('text')}-{config.test_views}",
        "weights": file_hash(checkpoint / WEIGHTS),
        "temperature": float(np.exp(-float(encoder.logit_scale.detach()))),
        "views": config.test_views,
        "checkpoint": os.path.relpath(checkpoint.resolve(), out.resolve()),
        "absolute_checkpoint": str(checkpoint.resolve()),
        "root": str(manifest.root.resolve()),
        "relative_root": os.path.relpath(manifest.root.resolve(), out.resolve()),
        "dataset": manifest.name,
        "simulated": manifest.simulated,
        "segments": {
            "pooling": config.segments,
            "share": config.segment_share,
            "background": config.segment_background,
        },
    }


def _open_or_create(out: Path, card: dict[str, Any], dim: int, engine: str) -> GalleryIndex:
    if (out / INDEX_FILE).is_file() or (out / "about.lance").exists():
        index = GalleryIndex.open(out)
        index.require(card)
        return index
    return GalleryIndex.create(out, card, dim, engine)


def known_items(index: GalleryIndex) -> dict[str, str]:
    """Item id -> text of all that is in an index."""
    parts = [index.rows(index.select(kind)) for kind in KINDS]
    return {name: text for part in parts for name, text in zip(part["item_id"], part["text"], strict=True)}


def _stale(manifest: Manifest, known: dict[str, str]) -> list[str]:
    """Item ids of what is not in the manifest any more: samples, and captions that are others now."""
    samples = {str(name) for name in manifest.frame["sample_id"]}
    texts = dict(zip((f"text:{name}" for name in manifest.text_ids), manifest.texts[0], strict=True))
    gone = []
    for item, text in known.items():
        kind, _, rest = item.partition(":")
        name = rest if kind == "image" else rest.rpartition("#")[0]
        if name not in samples or (kind == "text" and texts.get(item) != text):
            gone.append(item)
    return gone


def _rows(frame: Any, rows: Any, kind: str, item_ids: list[str], texts: list[str] | None = None) -> pd.DataFrame:
    """Metadata of items as the index keeps it. rows: of `frame`, one an item."""
    chosen = frame.iloc[list(rows)]
    table = {name: list(chosen[name]) for name in ("sample_id", "image", "domain", "source", "split")}
    table |= {name: chosen[name].to_numpy(float) for name in ("lon", "lat", "gsd_m")}
    table |= {"tags": [list(tags) for tags in chosen["tags"]], "item_id": item_ids, "kind": [kind] * len(item_ids)}
    table["text"] = (
        texts if texts is not None else [captions[0] if len(captions) else "" for captions in chosen["captions"]]
    )
    shapes = chosen["footprint"]
    table["footprint"] = [b"" if shape is None else shapely.to_wkb(shape) for shape in shapes]
    return pd.DataFrame(table)


@dataclass
class _Maker:
    """Adds to an index what it lacks, in parts. known: what it has."""

    index: GalleryIndex
    encoder: DualEncoder
    manifest: Manifest
    known: Collection[str]
    bank: Bank | None
    config: TrainConfig
    progress: bool

    def add_images(self) -> None:
        frame = self.manifest.frame
        lacking = [row for row, name in enumerate(frame["sample_id"]) if f"image:{name}" not in self.known]
        for start in range(0, len(lacking), AT_ONCE):
            rows: Any = frame.iloc[lacking[start : start + AT_ONCE]].reset_index(drop=True)
            part = Manifest(rows, self.manifest.root)
            features = embed_images(self.encoder, part, self.config.test_views, self.progress)
            names = [f"image:{name}" for name in rows["sample_id"]]
            self._add(features, _rows(rows, range(len(rows)), "image", names), "texts")

    def add_texts(self) -> None:
        (texts, image_of), names = self.manifest.texts, [f"text:{name}" for name in self.manifest.text_ids]
        lacking = [number for number, name in enumerate(names) if name not in self.known]
        for start in range(0, len(lacking), TEXTS_AT_ONCE):
            some = lacking[start : start + TEXTS_AT_ONCE]
            told = [texts[number] for number in some]
            table = _rows(self.manifest.frame, image_of[some], "text", [names[number] for number in some], told)
            self._add(embed_texts(self.encoder, told, self.progress), table, "images")

    def add_segments(self, store: SegmentStore, count: int) -> None:
        """Crops are chosen and cut as in training (`crop_features`), whose files a repeated call reads."""
        frame, encoder = self.manifest.frame, self.encoder
        background = self.config.segment_background
        towers, counts = segment_features(encoder, self.manifest, store, count, background, progress=self.progress)
        branch = encoder.segments
        if branch is None:  # trained without: the image's own tower and head
            branch = SegmentBranch(encoder.clip.visual, encoder.image_head, SegmentPool("mean"))
        sets = SegmentSets(torch.from_numpy(towers), present_of(torch.from_numpy(counts), count))
        vectors = segment_vectors(branch, sets, encoder.device)
        lacking = [
            row for row, name in enumerate(frame["sample_id"]) if counts[row] and f"segment:{name}#0" not in self.known
        ]
        for start in range(0, len(lacking), AT_ONCE):
            some = lacking[start : start + AT_ONCE]
            pairs = [(row, number) for row in some for number in range(counts[row])]
            names = [f"segment:{frame['sample_id'].iloc[row]}#{number}" for row, number in pairs]
            table = _rows(frame, [row for row, _ in pairs], "segment", names)
            masks = [_mask_columns(store, str(frame["sample_id"].iloc[row]), count) for row in some]
            table = table.assign(**{name: [one for of in masks for one in of[name]] for name in masks[0]})
            self._add(np.stack([vectors[pair] for pair in pairs]), table, "texts")

    def _add(self, features: np.ndarray, table: pd.DataFrame, other: str) -> None:
        """other: which features of the bank the items are compared with, for their hub_bias."""
        if self.bank is not None:
            temperature = self.index.card["temperature"]
            table = table.assign(hub_bias=hub_bias(features, getattr(self.bank, other), temperature))
        self.index.add(features, table)


def _mask_columns(store: SegmentStore, sample_id: str, count: int) -> dict[str, list[Any]]:
    """Masks and areas of the segments whose features `segment_features` gives, in its order."""
    found = store.load(sample_id)
    chosen = found.take(select_segments(found, k=count, diversity=0.5))
    (height, width), shares = chosen.size, chosen.areas / max(chosen.size[0] * chosen.size[1], 1)
    sizes = {"mask_height": [height] * len(chosen), "mask_width": [width] * len(chosen)}
    return {"mask": list(chosen.rles), **sizes, "area": shares.tolist()}


def measure_sureness(index: GalleryIndex, bank: Bank | None, temperature: float) -> Sureness | None:
    """How sure a hit is, from the validation captions in the index, asked of all its images; None where it has too few.

    At most MOST_QUERIES of them, evenly spread. An image with the very same caption is right, too.
    """
    rows = index.rows(index.select("text"))
    queries = rows[(rows["split"] == "val").to_numpy()]
    if not len(queries):
        return None
    spread = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).round().astype(int))
    queries = queries.iloc[spread]
    features = index.features(index.find(list(queries["item_id"])))
    hits = index.search(features, MOST, bias=bank is not None)
    bias = np.zeros(len(features)) if bank is None else hub_bias(features, bank.images, temperature)
    owners: dict[str, set[str]] = {}
    for text, name in zip(rows["text"], rows["sample_id"], strict=True):
        owners.setdefault(text, set()).add(name)
    found = hits.positions
    names = np.full(found.shape, "", object)
    names[found >= 0] = index.rows(found[found >= 0])["sample_id"].to_numpy()
    right = np.array([[name in owners[text] for name in of] for text, of in zip(queries["text"], names, strict=True)])
    return fit_sureness(hits.scores, bias, right)
