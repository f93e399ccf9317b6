"""A dataset embedded once into a `GalleryIndex`: its images, its captions and, where there are masks, its segments.

    index = build_index("runs/rsicd", read_dataset("data/rsicd"), "runs/index")

Every item keeps, beside its features, what `hubness` adds to its score: that depends on the item and the checkpoint's
bank alone, so that a search adds one number. A repeated call embeds only what is missing; samples that are no longer in
the dataset are taken out.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ucore.checkpoint import load_bank, load_checkpoint
from ucore.checkpoint_files import WEIGHTS
from ucore.config import TrainConfig
from ucore.crop_features import segment_features
from ucore.errors import ConfigError, DataError
from ucore.features import embed_images, embed_texts
from ucore.files import file_hash, write_json
from ucore.fusion import segment_vectors
from ucore.hubness import Bank, hub_bias
from ucore.index import GalleryIndex
from ucore.manifest import Manifest
from ucore.masks import Segments
from ucore.model import DualEncoder
from ucore.segment_store import SegmentStore
from ucore.selection import select_segments
from ucore.sureness import MOST, Sureness, fit_sureness

AT_ONCE = 1024  # images that are embedded and added together: what a stop can cost
TEXTS_AT_ONCE = 2**16
SURENESS = "sureness.json"  # beside the index
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
    known = set(index.item_ids)
    gone = sorted(known - set(_wanted(manifest, segments is not None, known)))
    if gone:
        index.delete(gone)
    lacking = [row for row, name in enumerate(manifest.frame["sample_id"]) if f"image:{name}" not in known]
    for start in range(0, len(lacking), AT_ONCE):
        rows: Any = manifest.frame.iloc[lacking[start : start + AT_ONCE]].reset_index(drop=True)
        part = Manifest(rows, manifest.root)
        features = embed_images(encoder, part, config.test_views, progress)
        table = _rows(part.frame, range(len(part)), "image", [f"image:{name}" for name in part.frame["sample_id"]])
        index.add(features, _with_bias(table, features, None if bank is None else bank.texts, card))
    _add_texts(index, encoder, manifest, known, bank, card, progress)
    if segments is not None:
        _add_segments(index, encoder, manifest, segments, segment_count, known, bank, config, card, progress)
    sure = measure_sureness(index, manifest, None if bank is None else bank)
    write_json(Path(out) / SURENESS, None if sure is None else sure.to_dict())
    return index


def index_card(
    encoder: DualEncoder, checkpoint: Path, manifest: Manifest, out: Path, config: TrainConfig
) -> dict[str, Any]:
    """Who made the features, of what: `GalleryIndex.require` compares the first part."""
    return {
        "encoder": {
            "name": encoder.name,
            "pretrained": encoder.pretrained,
            "embed_dim": encoder.embed_dim,
            "temperature": float(np.exp(-float(encoder.logit_scale.detach()))),
            "image": encoder.fingerprint("image"),
            "text": encoder.fingerprint("text"),
            "weights": file_hash(checkpoint / WEIGHTS),
            "views": config.test_views,
        },
        "checkpoint": os.path.relpath(checkpoint.resolve(), out.resolve()),
        "absolute_checkpoint": str(checkpoint.resolve()),
        "root": str(manifest.root.resolve()),
        "relative_root": os.path.relpath(manifest.root.resolve(), out.resolve()),
        "dataset": manifest.name,
        "simulated": manifest.simulated,
        "segments": {"pooling": config.segments, "share": config.segment_share, "background": config.segment_background},
    }


def _open_or_create(out: Path, card: dict[str, Any], dim: int, engine: str) -> GalleryIndex:
    if GalleryIndex.exists(out):
        index = GalleryIndex.open(out)
        index.require(card)
        return index
    return GalleryIndex.create(out, card, dim, engine)


def _wanted(manifest: Manifest, with_segments: bool, known: set[str]) -> Iterator[str]:
    """Item ids that may stay: of samples of the manifest, with the number of captions that they have now."""
    captions = dict(zip(manifest.frame["sample_id"], map(len, manifest.frame["captions"]), strict=True))
    for item in known:
        kind, _, rest = item.partition(":")
        name, _, number = rest.rpartition("#")
        if kind == "image" and rest in captions:
            yield item
        elif kind == "text" and int(number) < captions.get(name, 0):
            yield item
        elif kind == "segment" and (name in captions or not with_segments):
            yield item


def _rows(frame: Any, rows: Any, kind: str, item_ids: list[str], texts: list[str] | None = None) -> pd.DataFrame:
    """Metadata of items as the index keeps it. rows: of `frame`, one an item."""
    chosen = frame.iloc[list(rows)]
    table = {name: list(chosen[name]) for name in ("sample_id", "image", "domain", "source", "split")}
    table |= {name: chosen[name].to_numpy(float) for name in ("lon", "lat", "gsd_m")}
    table |= {"tags": [list(tags) for tags in chosen["tags"]], "item_id": item_ids, "kind": [kind] * len(item_ids)}
    table["text"] = texts if texts is not None else [""] * len(item_ids)
    return pd.DataFrame(table)


def _with_bias(table: pd.DataFrame, features: np.ndarray, bank: np.ndarray | None, card: dict[str, Any]) -> pd.DataFrame:
    """The rows with what `hubness` adds to the scores of each, 0 without a bank. bank: features of the other side."""
    none = np.zeros(len(features), np.float32)
    bias = none if bank is None else hub_bias(features, bank, card["encoder"]["temperature"])
    return table.assign(hub_bias=bias)


def _add_texts(
    index: GalleryIndex, encoder: DualEncoder, manifest: Manifest, known: set[str], bank: Bank | None,
    card: dict[str, Any], progress: bool,
) -> None:  # fmt: skip
    texts, image_of = manifest.texts
    item_ids = [f"text:{name}" for name in manifest.text_ids]
    lacking = [number for number, name in enumerate(item_ids) if name not in known]
    for start in range(0, len(lacking), TEXTS_AT_ONCE):
        some = lacking[start : start + TEXTS_AT_ONCE]
        told = [texts[number] for number in some]
        features = embed_texts(encoder, told, progress)
        table = _rows(manifest.frame, image_of[some], "text", [item_ids[number] for number in some], told)
        index.add(features, _with_bias(table, features, None if bank is None else bank.images, card))


def _add_segments(
    index: GalleryIndex, encoder: DualEncoder, manifest: Manifest, store: SegmentStore, count: int, known: set[str],
    bank: Bank | None, config: TrainConfig, card: dict[str, Any], progress: bool,
) -> None:  # fmt: skip
    """Crops are chosen and cut as in training (`crop_features`), whose files a repeated call reads."""
    import torch

    from ucore.alignment import SegmentBranch, SegmentPool, SegmentSets, present_of

    background = config.segment_background
    towers, counts = segment_features(encoder, manifest, store, count, background, progress=progress)
    branch = encoder.segments
    if branch is None:  # trained without: the image's own tower and head
        branch = SegmentBranch(encoder.clip.visual, encoder.image_head, SegmentPool("mean"))
    sets = SegmentSets(torch.from_numpy(towers), present_of(torch.from_numpy(counts), count))
    vectors = segment_vectors(branch, sets, encoder.device)
    for start in range(0, len(manifest), AT_ONCE):
        rows, features, item_ids, codes, areas = [], [], [], [], []
        for row in range(start, min(start + AT_ONCE, len(manifest))):
            name = str(manifest.frame["sample_id"].iloc[row])
            if f"segment:{name}#0" in known or not counts[row]:
                continue
            chosen = _chosen(store, name, count)
            shares = chosen.areas / max(chosen.size[0] * chosen.size[1], 1)
            for number in range(counts[row]):
                rows.append(row)
                features.append(vectors[row, number])
                item_ids.append(f"segment:{name}#{number}")
                codes.append(b"%d %d " % chosen.size + chosen.rles[number])
                areas.append(shares[number])
        if rows:
            table = _rows(manifest.frame, rows, "segment", item_ids).assign(mask=codes, area=np.float32(areas))
            stacked = np.stack(features).astype(np.float32)
            index.add(stacked, _with_bias(table, stacked, None if bank is None else bank.texts, card))


def _chosen(store: SegmentStore, sample_id: str, count: int) -> Segments:
    """The segments whose features `segment_features` gives, in its order."""
    found = store.load(sample_id)
    return found.take(select_segments(found, k=count, diversity=0.5))


def unpack_mask(code: bytes) -> tuple[tuple[int, int], bytes]:
    """Height and width, and the run-length code, of a segment's column mask. Raises DataError for a damaged one."""
    try:
        height, width, rle = bytes(code).split(b" ", 2)
        return (int(height), int(width)), rle
    except ValueError as error:
        raise DataError("A segment's mask in the index is damaged. Build the index again.") from error
