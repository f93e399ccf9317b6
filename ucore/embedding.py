"""A dataset embedded once into a `GalleryIndex`: its images, its captions and, where there are masks, its segments.

    index = build_index("runs/rsicd", read_dataset("data/rsicd"), "runs/index")

Every item keeps, beside its features, what `hubness` adds to its score: that depends on the item and the checkpoint's
bank alone, so that a search adds one number. A repeated call embeds only what is missing or has changed, pixels under
an old name included (files are compared by their bytes), and takes out what is no longer in the dataset.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
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
from ucore.crop_features import UNHASHED, image_keys, require_same_pictures, segment_features
from ucore.errors import ConfigError, DataError, UserError
from ucore.features import embed_images, embed_texts
from ucore.files import content_hash, file_hash, only_writer, require_writable
from ucore.fusion import segment_vectors
from ucore.hubness import Bank, hub_bias
from ucore.index import GalleryIndex
from ucore.manifest import Manifest, few
from ucore.model import DualEncoder
from ucore.places import Place, place_of
from ucore.segment_store import SegmentStore
from ucore.selection import select_segments
from ucore.sketch import FROM
from ucore.sureness import SURENESS, measure_sureness

AT_ONCE = 1024  # images that are embedded and added together: what a stop can cost
TEXTS_AT_ONCE = 2**16
CHANGED = "changed"  # under which an index notes how many rows have changed since it was compacted, or None
REBUILT = 0.1  # share of the rows that must have changed for a sketch to be made anew
KINDS = ("image", "text", "segment")


def build_index(
    checkpoint: str | Path,
    manifest: Manifest,
    out: str | Path,
    segments: SegmentStore | None = None,
    segment_count: int = 10,
    engine: str = "auto",
    device: str = "cpu",
    progress: bool = True,
) -> GalleryIndex:
    """Embed `manifest` with the checkpoint in a folder into an index in the folder `out`, or bring that up to date.

    out: with the engine lance also an address (s3://bucket/index); checkpoint and images are in folders. engine: of a
    new index; auto: flat in a folder, lance in an object store.
    segments: masks of these images; their best `segment_count` crops an image are searched, too. A checkpoint that was
    trained without segments embeds them with its image tower.
    Raises what `load_checkpoint`, `segment_features` and `GalleryIndex` raise; ConfigError where `out` holds an index
    of another encoder.
    """
    if segments is not None and segment_count < 1:
        raise ConfigError(f"segment_count is {segment_count}; give at least 1, or leave the segments out")
    encoder, trained = load_checkpoint(checkpoint, device)
    config, bank = TrainConfig.from_dict(trained["train"]), load_bank(checkpoint)
    place = place_of(out)
    card = index_card(encoder, Path(checkpoint), manifest, place, config)
    index = _opened(place, card, engine)  # before images are hashed, for minutes
    contents = Contents(manifest, segments, segment_count, config.segment_background)
    with _one_builder(place):
        if index is None:
            kind = "lance" if isinstance(place, str) else "flat"
            index = GalleryIndex.create(place, card, encoder.embed_dim, kind if engine == "auto" else engine)
        index.refresh()  # another builder may have been at work while images were hashed
        index.describe(card)  # checkpoint and images may have moved
        return _fill(index, encoder, manifest, contents, bank, config, segments, segment_count, progress)


def _fill(
    index: GalleryIndex,
    encoder: DualEncoder,
    manifest: Manifest,
    contents: "Contents",
    bank: Bank | None,
    config: TrainConfig,
    segments: SegmentStore | None,
    segment_count: int,
    progress: bool,
) -> GalleryIndex:
    """Take out what is no longer so, and add what is missing."""
    before = index.note(CHANGED)
    index.keep(CHANGED, None)  # how many is unknown, should this build be stopped
    known = known_items(index)
    stale = [item for item, content in known.items() if not contents.still(item, content)]
    index.delete(stale)
    maker = _Maker(index, encoder, manifest, known.keys() - set(stale), contents, bank, config, progress)
    maker.add_images()
    maker.add_texts()
    if segments is not None:
        maker.add_segments(segments, segment_count)
    changed = len(index)
    if type(before) is int and before >= 0:
        changed = min(changed, before + len(index) - len(known) + 2 * len(stale))
    index.keep(CHANGED, changed)
    if len(index) >= FROM and REBUILT * len(index) <= changed:
        index.compact()  # makes the sketch of an approximate search
        index.keep(CHANGED, 0)
    sure = measure_sureness(index, bank, index.card["temperature"])
    index.keep(SURENESS, None if sure is None else sure.to_dict())
    return index


def index_card(
    encoder: DualEncoder, checkpoint: Path, manifest: Manifest, place: Place, config: TrainConfig
) -> dict[str, Any]:
    """Who made the features, of what: `GalleryIndex.require` compares the first lines."""
    near = None if isinstance(place, str) else place.resolve()  # of folders: they may be moved together
    return {
        "name": encoder.name,
        "pretrained": encoder.pretrained,
        "embed_dim": encoder.embed_dim,
        "fingerprint": f"{encoder.fingerprint('image')}-{encoder.fingerprint('text')}-{config.test_views}",
        "weights": file_hash(checkpoint / WEIGHTS),
        "temperature": float(np.exp(-float(encoder.logit_scale.detach()))),
        "views": config.test_views,
        "checkpoint": "" if near is None else os.path.relpath(checkpoint.resolve(), near),
        "absolute_checkpoint": str(checkpoint.resolve()),
        "root": str(manifest.root.resolve()),
        "relative_root": "" if near is None else os.path.relpath(manifest.root.resolve(), near),
        "dataset": manifest.name,
        "simulated": manifest.simulated,
        "segments": {
            "pooling": config.segments,
            "share": config.segment_share,
            "count": config.segment_count,
            "background": config.segment_background,
        },
    }


def _opened(place: Place, card: dict[str, Any], engine: str) -> GalleryIndex | None:
    """The index that is there; None where there is none. Raises what makes it unfit."""
    if not GalleryIndex.exists(place):
        return None
    index = GalleryIndex.open(place)
    index.require(card)
    if engine not in ("auto", index.engine):
        raise ConfigError(f"The index in {place} is of the engine {index.engine}; leave --engine out, or remove it")
    return index


@contextmanager
def _one_builder(place: Place) -> Iterator[None]:
    """Within, no other process builds an index in the same folder; single additions have a lock of their own."""
    if isinstance(place, str):
        yield
        return
    lock = place / ".building"
    with ExitStack() as held:
        while True:
            require_writable(lock)
            lock.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(only_writer(lock))
                break
            except FileNotFoundError:
                continue  # another one was done in this moment, and removed it
            except UserError as error:
                raise UserError(
                    f"Another process is building {place}. Wait for it, or choose another --out."
                ) from error
        held.callback(lambda: lock.rmdir() if lock.is_dir() else None)
        yield


def known_items(index: GalleryIndex) -> dict[str, str]:
    """Item id -> content of all that is in an index."""
    parts = [index.rows(index.select(kind)) for kind in KINDS]
    return {name: content for part in parts for name, content in zip(part["item_id"], part["content"], strict=True)}


class Contents:
    """Keys of what the items of a manifest are made of: bytes of the image or words, with all that the index says of
    them; of segments also how they were cut.

    Raises DataError where an image is not there, or has changed since `store` was made.
    """

    def __init__(self, manifest: Manifest, store: SegmentStore | None, count: int, background: str) -> None:
        frame, keys = manifest.frame, image_keys(manifest)
        names = [str(name) for name in frame["sample_id"]]
        absent = [name for name, key in zip(names, keys, strict=True) if key.startswith(UNHASHED)]
        if absent:
            raise DataError(f"The images of {few(absent)} are not in {manifest.root} any more. Read the dataset again.")
        self.cut = None
        if store is not None:
            require_same_pictures(store, names, keys)
            self.cut = content_hash(store.parts.settings, count, background)
        told = _told(frame)
        firsts = [list(captions[:1]) for captions in frame["captions"]]
        self.image = {name: content_hash(*parts) for name, *parts in zip(names, keys, told, firsts, strict=True)}
        texts, owner = manifest.texts
        pairs = zip(manifest.text_ids, texts, owner.tolist(), strict=True)
        self.text = {name: content_hash(text, told[row]) for name, text, row in pairs}

    def of(self, item: str) -> str | None:
        """Content of an item; None where it is not in the manifest."""
        kind, _, name = item.partition(":")
        if kind == "text":
            return self.text.get(name)
        image = self.image.get(name if kind == "image" else name.rpartition("#")[0])
        return image if kind == "image" or image is None else f"{image}-{self.cut}"

    def still(self, item: str, content: str) -> bool:
        """Whether an item of the index is what it would be made of now. Without masks, segments stay as they were."""
        now = self.of(item)
        if item.startswith("segment:") and self.cut is None and now is not None:
            return content.partition("-")[0] == now.partition("-")[0]
        return now == content


def _told(frame: Any) -> list[str]:
    """Keys of what an index says of samples, beside their captions."""
    columns = [frame[name].tolist() for name in ("image", "domain", "source", "split", "lon", "lat", "gsd_m", "tags")]
    shapes = ["" if shape is None else shapely.to_wkb(shape, hex=True) for shape in frame["footprint"]]
    return [content_hash(*values) for values in zip(*columns, shapes, strict=True)]


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
    """Adds to an index what it lacks, in parts. known: the items it has, as they would be made now."""

    index: GalleryIndex
    encoder: DualEncoder
    manifest: Manifest
    known: Collection[str]
    contents: Contents
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
        self.index.add(features, table.assign(content=[self.contents.of(item) for item in table["item_id"]]))


def _mask_columns(store: SegmentStore, sample_id: str, count: int) -> dict[str, list[Any]]:
    """Masks and areas of the segments whose features `segment_features` gives, in its order."""
    found = store.load(sample_id)
    chosen = found.take(select_segments(found, k=count, diversity=0.5))
    (height, width), shares = chosen.size, chosen.areas / max(chosen.size[0] * chosen.size[1], 1)
    sizes = {"mask_height": [height] * len(chosen), "mask_width": [width] * len(chosen)}
    return {"mask": list(chosen.rles), **sizes, "area": shares.tolist()}
