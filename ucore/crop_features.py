"""Features of segments: the best crops of every image through an encoder's image tower, once, and kept."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ucore.crops import BACKGROUNDS, Background, crop_segments
from ucore.errors import ConfigError, DataError
from ucore.files import content_hash, file_hash
from ucore.images import load_image, map_files, someone_looks
from ucore.manifest import Manifest, few
from ucore.masks import Segments
from ucore.segment_store import SegmentStore
from ucore.selection import select_segments
from ucore.store import PartStore

if TYPE_CHECKING:
    from ucore.model import DualEncoder

GROUP, BATCH = 64, 32  # images whose crops are embedded together, and crops a batch
LARGE = 2**24  # pixels; images with more are cut one at a time, as each takes several times its size in memory
UNHASHED = "unreadable-"  # begins the key of an image whose bytes cannot be had
VERSION = 1  # of the way crops are chosen and cut

Cut = tuple[np.ndarray, np.ndarray]  # rows int64 (n,) of an image's segments, and their crops uint8 (n, S, S, 3)


class ImageFile(NamedTuple):
    """An image whose segments are wanted: key of its bytes, the first sample that has it, and where it lies."""

    key: str
    sample_id: str
    path: Path


def distinct_images(keys: Mapping[str, str], manifest: Manifest) -> list[ImageFile]:
    """Every image once, under its first sample, in order. keys: of the manifest's samples."""
    pairs = zip(manifest.frame["sample_id"], manifest.image_paths, strict=True)
    images = [ImageFile(keys[sample_id], sample_id, path) for sample_id, path in pairs]
    return list({image.key: image for image in reversed(images)}.values())[::-1]


def image_keys(manifest: Manifest) -> list[str]:
    """Key of every image, made of its bytes; of its name where there is no file."""
    return map_files(_key, manifest.image_paths, "Hashing images")


def require_same_pictures(store: SegmentStore, names: Sequence[str], keys: Sequence[str]) -> None:
    """Raise DataError naming samples whose image, of these `image_keys`, is not the one that `store` has segments of:
    it has changed, or the store was last used for another dataset with the same names."""
    changed = [name for name, key in zip(names, keys, strict=True) if store.key(name) != key]
    if changed:
        raise DataError(f"Changed since they were segmented: {few(changed)}. Run ucore segment on this data again; "
                        "where two datasets have the same names, into a folder for each.")  # fmt: skip


def _key(path: Path) -> str:
    try:
        return content_hash(file_hash(path))
    except OSError:
        return UNHASHED + content_hash(path.name)


def segment_features(
    encoder: "DualEncoder",
    manifest: Manifest,
    store: SegmentStore,
    k: int = 10,
    background: Background = "white",
    margin: float = 0.05,
    diversity: float = 0.5,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Tower features of each image's k best crops: float16 (N, k, encoder.image_width), and their counts int64 (N,).

    Crops are chosen by quality (`select_segments`, with `diversity`), which no text can leak into, and cut as
    `crop_segments` says. Rows from `counts[n]` on are zero, for images with fewer segments or none, and belong into no
    mean. Computed once: kept beside the store under a key of the encoder's weights and all settings; an interrupted
    call goes on where it stopped. `encoder.image_head` brings the features into the space of texts.
    Raises DataError where `store` lacks images of `manifest` that are not quarantined, or has others of these names.
    """
    if encoder.image_size[0] != encoder.image_size[1] or k < 1 or background not in BACKGROUNDS:
        raise ConfigError(
            f"Crops need an encoder of square images (this one's: {encoder.image_size}), k of at least 1 ({k}) and "
            f"a background among {', '.join(BACKGROUNDS)} ({background})"
        )
    samples, bad = list(manifest.frame["sample_id"]), store.quarantined()
    lacking = [sample_id for sample_id in samples if sample_id not in store and sample_id not in bad]
    if lacking:
        raise DataError(f"{store.folder} lacks the segments of {few(lacking)}. Run ucore segment on this data first.")
    crops: dict[str, Any] = {"background": background, "size": encoder.image_size[0], "margin": margin}
    chosen: dict[str, Any] = {"k": k, "diversity": diversity}
    settings = {"encoder": encoder.fingerprint("segment"), **crops, **chosen, "version": VERSION}
    keys = dict(zip(samples, image_keys(manifest), strict=True))
    for sample_id in samples:  # features that are there serve without their images
        keys[sample_id] = store.key(sample_id) if keys[sample_id].startswith(UNHASHED) else keys[sample_id]
    require_same_pictures(store, samples, list(keys.values()))
    parts = _kept(store, settings, {keys[sample_id] for sample_id in samples if sample_id not in bad})
    done = parts.done()
    todo = [image for image in distinct_images(keys, manifest) if image.sample_id in store and image.key not in done]

    one_large = Lock()

    def cut(image: ImageFile, segments: Segments) -> Cut:
        rows = select_segments(segments, **chosen)
        with one_large if segments.size[0] * segments.size[1] > LARGE else nullcontext():
            return rows, crop_segments(np.asarray(load_image(image.path)), segments.take(rows), **crops)

    if todo:
        from ucore.device import freed_memory_kept

        bar = tqdm(total=len(todo), desc="Segment features", unit="img", disable=not progress or not someone_looks())
        with parts.writing(), bar, freed_memory_kept(encoder.device):
            for images, cuts in _cut_ahead(store, todo, cut):
                _embed(encoder, parts, images, cuts)
                bar.update(len(images))
    features = np.zeros((len(samples), k, encoder.image_width), np.float16)
    counts = np.zeros(len(samples), np.int64)
    for number, sample_id in enumerate(samples):
        if sample_id not in bad:
            row = parts.row(keys[sample_id])
            counts[number] = min(len(row["rows"]), k)
            if len(row["features"]) != 2 * len(row["rows"]) * encoder.image_width:
                raise DataError(f"The features of {sample_id!r} in {parts.folder} are damaged. Delete that folder.")
            stored = np.frombuffer(row["features"], np.float16).reshape(-1, encoder.image_width)
            features[number, : counts[number]] = stored[:k]
    return features, counts


def _kept(store: SegmentStore, settings: dict[str, Any], keys: set[str]) -> PartStore:
    """Where features made with `settings` are kept; of more segments an image, if these are there for all `keys`.

    Segments are chosen best first, so that the best k of an image are the first k of more.
    """
    parts = store.feature_store(settings)
    if not keys <= parts.done():
        for other in store.feature_settings():
            if other.get("k", 0) > settings["k"] and {**other, "k": settings["k"]} == settings:
                more = store.feature_store(other)
                if keys <= more.done():
                    return more
    return parts


def _cut_ahead(
    store: SegmentStore, todo: list[ImageFile], cut: Callable[[ImageFile, Segments], Cut]
) -> Iterator[tuple[list[ImageFile], list[Cut]]]:
    """Groups of images with their crops, cut in threads while the group before is embedded."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        waiting: deque[tuple[list[ImageFile], list[Future[Cut]]]] = deque()
        for start in range(0, len(todo), GROUP):
            group = todo[start : start + GROUP]
            waiting.append((group, [pool.submit(cut, image, store.load(image.sample_id)) for image in group]))
            while len(waiting) > 1 or (waiting and start + GROUP >= len(todo)):
                images, futures = waiting.popleft()
                yield images, [future.result() for future in futures]


def _embed(encoder: "DualEncoder", parts: PartStore, images: list[ImageFile], cut: list[Cut]) -> None:
    """Embed the crops of some images and store their rows.

    All batches have one shape, the last one filled up: features then do not depend on what a crop is embedded with, and
    resuming gives what never stopping would have.
    """
    import torch

    crops = np.concatenate([of_image for _, of_image in cut])
    features = np.empty((len(crops), encoder.image_width), np.float16)
    for start in range(0, len(crops), BATCH):
        batch = crops[start : start + BATCH]
        filled = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), np.uint8)])
        with encoder.evaluating():
            output = encoder.segment_tower(torch.from_numpy(filled).permute(0, 3, 1, 2))
        features[start : start + BATCH] = output[: len(batch)].float().cpu().numpy()
    ends = np.cumsum([len(rows) for rows, _ in cut])
    own = np.split(features, ends[:-1])
    parts.append(
        [
            {"key": image.key, "rows": rows.tolist(), "features": some.tobytes()}
            for image, (rows, _), some in zip(images, cut, own, strict=True)
        ]
    )
