"""Texts that are unlike their images are no good to learn from: filtering by similarity, as in the paper.

trained_on, report = filter_captions(manifest, encoder, quantile=0.1)
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest
from ucore.refining import TRAINED, mean

if TYPE_CHECKING:
    from ucore.model import DualEncoder

EXAMPLES = 6  # of dropped texts, the least similar
ROWS = 65_536  # of features compared at once


class Filtered(NamedTuple):
    """keep: bool (T,). similarity: float32 (T,), the cosine of each text and its image. threshold: NaN if unused."""

    keep: np.ndarray
    similarity: np.ndarray
    threshold: float


def filter_by_similarity(
    image_features: np.ndarray,
    text_features: np.ndarray,
    text_image_index: np.ndarray,
    splits: Sequence[str],
    quantile: float = 0.1,
    threshold: float | None = None,
    filtered: Sequence[str] = ("train",),
) -> Filtered:
    """Which texts are like their images; the paper drops the others.

    image_features: float (N, D), text_features: float (T, D), both L2-normalised. text_image_index: int (T,), the
    image of each text. splits: of each image (N). The least similar `quantile` of the filtered splits' texts is
    dropped (at most; equal ones stay), or all below `threshold`, a cosine.

    Only splits that are trained on may be filtered: a hard pair of a split that is measured on is a hard question, and
    to drop it would flatter every model, most of all the one that filters. Others raise ConfigError.
    """
    wrong = [name for name in filtered if name not in TRAINED]
    if wrong:
        raise ConfigError(
            f"The split {wrong[0]!r} is measured on: dropping its hard pairs would flatter the result. "
            f"Filter {' or '.join(TRAINED)} only."
        )
    if not 0 <= quantile < 1 or (threshold is not None and not -1 <= threshold <= 1):
        raise ConfigError(f"quantile ({quantile}) must be in [0, 1) and threshold ({threshold}) in [-1, 1].")
    owner = np.asarray(text_image_index, np.int64)
    fits = image_features.ndim == 2 and len(splits) == len(image_features)
    fits = fits and text_features.shape == (len(owner), image_features.shape[1])
    if not fits or (len(owner) and not 0 <= owner.min() <= owner.max() < len(splits)):
        raise ConfigError(
            f"Features of {image_features.shape} images and {text_features.shape} texts do not fit {len(splits)} "
            f"splits and {len(owner)} owners: give one row an image, and one row and one owner a text."
        )
    similarity = np.empty(len(owner), np.float32)
    for start in range(0, len(owner), ROWS):
        texts = np.asarray(text_features[start : start + ROWS], np.float32)
        images = np.asarray(image_features[owner[start : start + ROWS]], np.float32)
        norms = np.stack([np.linalg.norm(texts, axis=1), np.linalg.norm(images, axis=1)])
        if not np.allclose(norms, 1, atol=1e-2):  # NaN is not close either
            raise ConfigError("The features are not L2-normalised: divide each row by its length first.")
        similarity[start : start + ROWS] = np.einsum("td,td->t", texts, images)
    may_go = np.isin(np.asarray(splits, dtype=object)[owner], list(filtered)) if len(owner) else np.zeros(0, bool)
    if threshold is None:
        ranked = np.sort(similarity[may_go])
        threshold = float(ranked[int(quantile * len(ranked))]) if len(ranked) else float("nan")
    return Filtered(~may_go | ~(similarity < threshold), similarity, threshold)


def filter_captions(
    manifest: Manifest,
    encoder: "DualEncoder",
    column: Literal["captions", "description"] = "description",
    quantile: float = 0.1,
    threshold: float | None = None,
    filtered: Sequence[str] = ("train",),
    progress: bool = True,
) -> tuple[Manifest, dict[str, Any]]:
    """`filter_by_similarity` with an encoder's features, long texts compared by their parts; and a report (JSON-able).

    A dropped description becomes ""; an image of a filtered split that loses all its captions leaves the manifest.
    The encoder must have seen image-text pairs, as a checkpoint of ours or a pretrained CLIP has: the bundled one has
    not before training, and its likeness means nothing.
    """
    from functools import partial

    from ucore.features import embed_images, embed_texts
    from ucore.selection import part_features

    if column not in ("captions", "description"):
        raise ConfigError(f"column is {column!r}; choose captions or description.")
    values = list(manifest.frame[column])
    listed = [list(of) if column == "captions" else [of] * bool(of) for of in values]
    texts = [text for of in listed for text in of]
    owner = np.repeat(np.arange(len(manifest)), [len(of) for of in listed])
    splits = list(manifest.frame["split"])
    if not texts:
        raise DataError(f"No image has a text in the column {column}. Make some first: ucore caption --data DATA.")
    image_features = embed_images(encoder, manifest, progress=progress)
    text_features = part_features(partial(embed_texts, encoder, progress=progress), texts)
    result = filter_by_similarity(image_features, text_features, owner, splits, quantile, threshold, filtered)
    left: list[list[str]] = [[] for _ in listed]
    for text, row, keep in zip(texts, owner, result.keep, strict=True):
        if keep:
            left[row].append(text)
    frame: Any = manifest.frame.copy()
    frame[column] = left if column == "captions" else ["".join(of) for of in left]
    emptied = [column == "captions" and bool(of) and not kept for of, kept in zip(listed, left, strict=True)]
    frame = frame.loc[~np.array(emptied)].reset_index(drop=True)
    report = _report(manifest, column, texts, owner, filtered, result)
    return Manifest(frame, manifest.root), {**report, "images_left_out": sum(emptied)}


def _report(
    manifest: Manifest, column: str, texts: list[str], owner: np.ndarray, filtered: Sequence[str], result: Filtered
) -> dict[str, Any]:
    columns = ("split", "domain", "sample_id")
    splits, domains, samples = (np.array(manifest.frame[name], dtype=object) for name in columns)
    dropped = np.flatnonzero(~result.keep)
    worst = dropped[np.argsort(result.similarity[dropped], kind="stable")][:EXAMPLES]
    return {
        "column": column,
        "texts": len(texts),
        "compared": int(np.isin(splits[owner], list(filtered)).sum()),
        "dropped": len(dropped),
        "threshold": None if np.isnan(result.threshold) else round(result.threshold, 4),
        "similarity": {split: mean(list(result.similarity[splits[owner] == split])) for split in dict.fromkeys(splits)},
        "dropped_by_domain": dict(sorted(Counter(domains[owner[dropped]]).items())),
        "examples": [
            {
                "sample_id": samples[owner[text]],
                "text": texts[text],
                "similarity": round(float(result.similarity[text]), 4),
            }
            for text in worst
        ],
    }
