"""Embedding many images and texts: batched, cached by content, resumable.

Tower features depend only on the frozen towers and the data, so they are computed once and kept under a key
made of both. Work is stored in shards, each whole or absent; a repeated call computes only what is missing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from ucore import distributed
from ucore.device import freed_memory_kept
from ucore.files import atomic_path, content_hash
from ucore.images import load_image
from ucore.manifest import Manifest
from ucore.model import DualEncoder, dihedral

SHARD = 1024  # images a shard: about a minute's work on two cores, so little is lost to a kill
BATCH = 64


def pixel_batches(
    encoder: DualEncoder,
    paths: Sequence[Path],
    batches: Sequence[Sequence[int]],
    augment: Callable[[Tensor, int], Tensor] | None = None,
) -> Iterator[Tensor]:
    """For each list of positions, the images as uint8 (B, 3, H, W), decoded in threads while the last is used.

    augment: from an image uint8 (3, H, W) and its position to the image to use.
    Raises DataError naming the file when one cannot be decoded.
    """

    def load(position: int) -> Tensor:
        image = encoder.resize(load_image(paths[position]))
        return image if augment is None else augment(image, position)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        waiting: list[list] = []
        for batch in batches:
            waiting.append([pool.submit(load, position) for position in batch])
            if len(waiting) > 2:
                yield torch.stack([future.result() for future in waiting.pop(0)])
        for futures in waiting:
            yield torch.stack([future.result() for future in futures])


def image_tower_features(
    encoder: DualEncoder,
    manifest: Manifest,
    views: int = 1,
    cache: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Tower features of the first `views` dihedral views of every image, float16 (N, views, image_width).

    With `cache`, kept in a folder under it that is named after the images, the weights and the precision;
    fewer views than are stored are read from there, and an interrupted call goes on where it stopped.
    """
    folder = None
    if cache is not None:
        key = content_hash(manifest.content_key(), encoder.fingerprint("image"), list(encoder.image_size))
        folder = Path(cache) / f"image-{key}"
    shards = range(0, len(manifest), SHARD)
    result = np.empty((len(manifest), views, encoder.image_width), dtype=np.float16)
    missing = []
    for start in shards[distributed.rank() :: distributed.size()]:
        for view in range(views):
            stored = _load_shard(folder, start, view, encoder.image_width, min(SHARD, len(manifest) - start))
            if stored is None:
                missing.append((start, view))
            else:
                result[start : start + SHARD, view] = stored
    bar = tqdm(total=sum(min(SHARD, len(manifest) - s) for s, _ in missing), desc="Image features", unit="img",
               disable=not progress or not missing)  # fmt: skip
    paths = manifest.image_paths
    with bar, freed_memory_kept(encoder.device):
        for start in dict.fromkeys(start for start, _ in missing):
            wanted = [view for first, view in missing if first == start]
            block = np.empty((len(wanted), min(SHARD, len(manifest) - start), encoder.image_width), np.float16)
            stop = start + block.shape[1]
            batches = [range(i, min(i + BATCH, stop)) for i in range(start, stop, BATCH)]
            for rows, pixels in zip(batches, pixel_batches(encoder, paths, batches), strict=True):
                for number, view in enumerate(wanted):
                    with encoder.evaluating():
                        features = encoder.image_tower(dihedral(pixels, view))
                    block[number, rows[0] - start : rows[-1] + 1 - start] = features.float().cpu().numpy()
                    bar.update(len(rows))
            for number, view in enumerate(wanted):
                result[start:stop, view] = block[number]
                if folder is not None:
                    with (
                        atomic_path(_shard(folder, start, view)) as temporary,
                        open(temporary, "wb") as stream,
                    ):
                        np.save(stream, block[number])
    distributed.exchange(result, [slice(start, start + SHARD) for start in shards])
    return result


def text_tower_features(
    encoder: DualEncoder, texts: Sequence[str], cache: str | Path | None = None, progress: bool = True
) -> np.ndarray:
    """Tower features float16 (T, text_width); each distinct text is computed once. Cached like the images'."""
    distinct = list(dict.fromkeys(texts))
    position = {text: number for number, text in enumerate(distinct)}
    path = None
    if cache is not None:
        key = content_hash(distinct, encoder.fingerprint("text"))
        path = Path(cache) / f"text-{key}" / "features.npy"
    features = _load_array(path, (len(distinct), encoder.text_width))
    known = distributed.agree(features is not None)  # they compute it together, or not at all
    if features is None or not known:
        features = _embed_texts(encoder, distinct, progress, tower_only=True).astype(np.float16)
        if path is not None and distributed.is_first():
            with atomic_path(path) as temporary, open(temporary, "wb") as stream:
                np.save(stream, features)
    return features[[position[text] for text in texts]]


def _embed_texts(encoder: DualEncoder, texts: Sequence[str], progress: bool, tower_only: bool) -> np.ndarray:
    """Texts sorted by length, so that a batch pads little; rows come back in the caller's order."""
    order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), number))
    tokens = encoder.tokenize(texts)
    width = encoder.text_width if tower_only else encoder.embed_dim
    by_length = np.empty((len(texts), width), dtype=np.float32)
    starts = range(0, len(texts), 256)
    own = starts[distributed.rank() :: distributed.size()]
    for start in tqdm(own, desc="Text features", unit="batch", disable=not progress):
        batch = encoder.trim(tokens[order[start : start + 256]])
        with encoder.evaluating():
            features = encoder.text_tower(batch) if tower_only else encoder.encode_text(batch)
        by_length[start : start + 256] = features.float().cpu().numpy()
    distributed.exchange(by_length, [slice(start, start + 256) for start in starts])
    result = np.empty_like(by_length)
    result[order] = by_length
    return result


def embed_images(
    encoder: DualEncoder, manifest: Manifest | Sequence[Path], views: int = 1, progress: bool = True
) -> np.ndarray:
    """Image features float32 (N, D), L2-normalised: the mean over `views` dihedral views, normalised again.

    manifest: or the paths of pictures.
    """
    paths = manifest.image_paths if isinstance(manifest, Manifest) else manifest
    result = np.empty((len(paths), encoder.embed_dim), dtype=np.float32)
    batches = [range(i, min(i + BATCH, len(paths))) for i in range(0, len(paths), BATCH)]
    own = batches[distributed.rank() :: distributed.size()]
    bar = tqdm(total=sum(map(len, own)), desc="Embedding images", unit="img", disable=not progress)
    kept = freed_memory_kept(encoder.device) if len(own) > 1 else nullcontext()
    with bar, kept, encoder.evaluating():
        for rows, pixels in zip(own, pixel_batches(encoder, paths, own), strict=True):
            seen = torch.stack([encoder.encode_image(dihedral(pixels, view)) for view in range(views)])
            result[rows[0] : rows[-1] + 1] = F.normalize(seen.mean(0), dim=1).cpu().numpy()
            bar.update(len(rows))
    distributed.exchange(result, [slice(rows[0], rows[-1] + 1) for rows in batches])
    return result


def embed_texts(encoder: DualEncoder, texts: Sequence[str], progress: bool = True) -> np.ndarray:
    """Text features float32 (T, D), L2-normalised; equal texts get equal features."""
    distinct = list(dict.fromkeys(texts))
    position = {text: number for number, text in enumerate(distinct)}
    features = _embed_texts(encoder, distinct, progress, tower_only=False)
    return features[[position[text] for text in texts]]


def _shard(folder: Path, start: int, view: int) -> Path:
    return folder / f"view{view}-{start:09d}.npy"


def _load_shard(folder: Path | None, start: int, view: int, width: int, rows: int) -> np.ndarray | None:
    return None if folder is None else _load_array(_shard(folder, start, view), (rows, width))


def _load_array(path: Path | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """The stored array, or None when it is absent, cut short or of another shape: then it is computed anew."""
    if path is None or not path.is_file():
        return None
    return stored_array(path, shape)


def stored_array(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
    """The floats of a .npy file; None where there is none, or a damaged one, or one of another shape."""
    try:
        mapped = np.load(path, "r", allow_pickle=False)  # takes no memory for what the file only claims to hold
        return np.array(mapped) if mapped.dtype.kind == "f" and shape in (None, mapped.shape) else None
    except Exception:  # numpy, tokenize and the system each raise their own on damaged headers
        return None
