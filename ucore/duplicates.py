"""Images and captions that occur more than once, exactly or nearly."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ucore.errors import DataError
from ucore.files import file_hash
from ucore.images import load_image, map_files
from ucore.manifest import Manifest

# Of 64 bits. Of RSICD's 9,828 training and validation images, 5 pairs are within 4 bits: 4 show the same place, one
# two beaches that look alike. None of the 5 pairs at 6 bits shows the same place. Suspicion is cheap: it costs a
# training image.
MAX_DISTANCE = 4
# Of pictures saved anew as JPEG of quality 60 and four fifths of the size 97 % stay above it; of pairs of RSICD that
# are not one picture the closest has 0.93.
SAME = 0.99  # least correlation of the pixels of two small pictures that are one
SMALL = (32, 32)  # pixels that phash works on
TURNS = (None, *Image.Transpose)  # the eight ways to lay a square picture down


def normal_caption(text: str) -> str:
    """`text` without what does not change its words: case, spacing, and signs at its end."""
    return " ".join(text.lower().split()).rstrip(".,;:!? ")


def identical_groups(manifest: Manifest) -> np.ndarray:
    """Names str (n,) of groups of rows that share an image file's bytes, or the whole list of captions.

    A group is named after its smallest sample_id, whatever the order of the rows. Single shared captions do not
    join images: annotators repeat the same short sentence for much of a dataset.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(manifest)
    try:
        hashes = map_files(file_hash, manifest.image_paths, "Hashing images")
    except OSError as error:
        raise DataError(f"Cannot read {error.filename} ({error.strerror}). Read the dataset again.") from error
    pairs = list(enumerate(hashes))
    for row, captions in enumerate(manifest.frame["captions"]):
        if len(captions):
            pairs.append((row, "\n".join(normal_caption(text) for text in captions)))
    keys: dict[str, int] = {}
    rows = np.array([row for row, _ in pairs], int)
    columns = np.array([n + keys.setdefault(key, len(keys)) for _, key in pairs], int)
    size = n + len(keys)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(size, size))
    label = connected_components(graph, directed=False)[1][:n]
    names: dict[int, str] = {}
    for group, name in zip(label, manifest.frame["sample_id"], strict=True):
        names[group] = min(names.get(group, name), name)
    return np.array([names[group] for group in label], dtype=str)


def near_duplicates(images: Manifest | Sequence[Path], max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Pairs of images that look alike from above, turned or mirrored too: int64 (P, 3) of i, j, distance; i < j.

    i and j are positions in `images`, sorted. The distance is the number of bits, of 64, in which the perceptual
    hash of one (imagehash.phash) differs from that of the other in the best of its eight positions.
    """
    paths = images.image_paths if isinstance(images, Manifest) else list(images)
    return close_pairs(perceptual_hashes(paths), max_distance)


def perceptual_hashes(paths: Sequence[Path]) -> np.ndarray:
    """uint64 (n, 8): the perceptual hash of each image in its eight positions."""
    hashes = map_files(_hashes, paths, "Hashing what images show")
    return np.array(hashes, dtype=np.uint64).reshape(len(paths), len(TURNS))


def close_pairs(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """As `near_duplicates`, from `perceptual_hashes`; compares all with all, in memory that grows with n only."""
    n, found = len(hashes), [np.empty((0, 3), np.int64)]
    size = max(1, 2**20 // max(1, n))
    for start in range(0, n, size):
        upright = hashes[start : start + size, :1]
        distance = np.full((len(upright), n), 64, np.uint8)
        for turned in hashes.T:
            np.minimum(distance, np.bitwise_count(upright ^ turned), out=distance)
        i, j = np.nonzero(distance <= max_distance)
        pairs = np.stack([np.minimum(i + start, j), np.maximum(i + start, j), distance[i, j]], axis=1)
        found.append(pairs[pairs[:, 0] < pairs[:, 1]].astype(np.int64))
    # Each pair was met from both sides, at distances that may differ a little: the smaller one sorts first.
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[np.r_[True, (np.diff(pairs[:, :2], axis=0) != 0).any(axis=1)]] if len(pairs) else pairs


def same_pictures(ours: Sequence[Path], theirs: Sequence[Path]) -> list[tuple[int, int]]:
    """Positions (i, j), sorted, of one picture in both: copied, encoded anew, resized, turned or mirrored.

    Pictures within `MAX_DISTANCE` bits are suspects; they are one where the pixels agree as well (`SAME`). A picture of
    a single colour is never another's copy. Every file is read once; memory grows with n + m.
    """
    label = "Looking for pictures in both"
    mine = {i: look for i, look in enumerate(map_files(partial(_look, TURNS[:1]), ours, label)) if look is not None}
    others = {j: look for j, look in enumerate(map_files(partial(_look, TURNS), theirs, label)) if look is not None}
    rows, upright = list(mine), np.array([hashes[0] for hashes, _ in mine.values()], np.uint64)
    found = []
    for j, (turned, small) in others.items():
        distance = np.bitwise_count(upright[:, None] ^ np.array(turned, np.uint64)).min(axis=1, initial=64)
        suspects = [rows[place] for place in np.flatnonzero(distance <= MAX_DISTANCE)]
        found += [(i, j) for i in suspects if likeness(mine[i][1], small) >= SAME]
    return sorted(found)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two small pictures, uint8 (S, S, 3), colour by colour, in the best of eight positions; 0 for even
    ones."""
    picture = Image.fromarray(other)
    turned = [picture if turn is None else picture.transpose(turn) for turn in TURNS]
    rows = np.stack([np.asarray(position, np.float64) for position in (one, *turned)])
    rows -= rows.mean(axis=(1, 2), keepdims=True)
    deviations = rows.std(axis=(1, 2, 3))
    if deviations.min() < 1:  # of 255 levels
        return 0.0
    return float(((rows[1:] * rows[0]).mean(axis=(1, 2, 3)) / (deviations[0] * deviations[1:])).max())


def _look(turns: Sequence[Any], path: Path) -> tuple[list[int], np.ndarray] | None:
    """The hashes of a picture in some positions and the picture itself, small; None for a single colour."""
    picture = load_image(path).resize(SMALL, Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    return None if pixels.std(axis=(0, 1)).max() < 1 else (_positions(picture.convert("L"), turns), pixels)


def _hashes(path: Path) -> list[int]:
    return _positions(load_image(path).convert("L").resize(SMALL, Image.Resampling.LANCZOS))


def _positions(small: Image.Image, turns: Sequence[Any] = TURNS) -> list[int]:
    import imagehash

    return [int(str(imagehash.phash(small if turn is None else small.transpose(turn))), 16) for turn in turns]
