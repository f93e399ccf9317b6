"""Pairs that a model finds itself among images and texts of a domain whose pairs nobody knows."""

import numpy as np
from scipy.special import logsumexp

ROUNDS = 20
MOST_BRIDGE = 20_000  # source images that a bridge rests on: with 1,832 numbers each, 147 MB
CHUNK = 1024


def bridged_similarity(
    images: np.ndarray,
    texts: np.ndarray,
    source_images: np.ndarray,
    source_texts: np.ndarray,
    owner: np.ndarray,
    temperature: float = 0.05,
) -> np.ndarray:
    """How well a target text says what is said of the source images that look like a target image; float32 (N, M).

    It needs no model that joins images and texts: images are compared with images and texts with texts, by features of
    towers that were trained on far more than the source's pairs. What is said of an image is the mean of the captions
    of source images, weighted by the softmax of cosines over `temperature`. All features are standardised by the
    deviation over the source and the mean of their own domain, so that a camera's colours or a style of writing that
    all of a domain share do not count.

    images: float (N, W) of the target, source_images: (S, W); texts: (M, V), source_texts: (C, V); owner: int (C,), the
    source image of each source text. Where there are many, evenly spaced source images are used.
    """
    if len(source_images) > MOST_BRIDGE:
        kept = np.linspace(0, len(source_images) - 1, MOST_BRIDGE).round().astype(int)
        place = np.full(len(source_images), -1)
        place[kept] = np.arange(MOST_BRIDGE)
        held = place[owner] >= 0
        source_images, source_texts, owner = source_images[kept], source_texts[held], place[owner[held]]
    known_images, seen = _standardised(source_images, images)
    known_texts, asked = _standardised(source_texts, texts)
    said = np.zeros((len(known_images), known_texts.shape[1]), np.float32)
    np.add.at(said, owner, known_texts)
    said = _unit(said)
    guessed = np.empty((len(seen), said.shape[1]), np.float32)
    for start in range(0, len(seen), CHUNK):
        logits = seen[start : start + CHUNK] @ known_images.T / temperature
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        guessed[start : start + CHUNK] = _unit(weights @ said)
    return _unit(guessed - guessed.mean(axis=0)) @ asked.T


def _standardised(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both, each around its own mean, over the source's deviation; L2-normalised float32."""
    deviation = source.std(axis=0, dtype=np.float64) + 1e-4
    return tuple(_unit(((part - part.mean(axis=0, dtype=np.float64)) / deviation).astype(np.float32))
                 for part in (source, target))  # type: ignore[return-value] # fmt: skip


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)


def balanced_matching(similarity: np.ndarray, temperature: float, shares: np.ndarray | None = None) -> np.ndarray:
    """Chance float64 (N, M) that a text is an image's; rows sum to 1, and each text is wanted as often as `shares` say.

    Entropic optimal transport (Sinkhorn; Cuturi 2013) of the cosines, so that no text that fits everything a little
    takes all images. similarity: (N, M); temperature: of the softmax; shares: float (M,), None: all alike.
    """
    logits = similarity.astype(np.float64) / temperature
    wanted = np.log(np.full(logits.shape[1], 1 / logits.shape[1]) if shares is None else shares)
    for _ in range(ROUNDS):
        logits = logits - logsumexp(logits, axis=0) + wanted + np.log(len(logits))
        logits = logits - logsumexp(logits, axis=1, keepdims=True)
    return np.exp(logits)


def return_probability(similarity: np.ndarray, temperature: float = 0.05) -> float:
    """Percent of a walk from a random image to a text and back, by softmax of the cosines, that ends where it began.

    A measure of alignment that needs no pairs (Haeusser et al. 2017, association by walks): high where images and texts
    single each other out. The temperature is fixed: a model that lowers its own does not thereby look better.
    """
    logits = similarity.astype(np.float64) / temperature
    forth = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    back = np.exp(logits - logsumexp(logits, axis=0, keepdims=True))
    return 100 * float((forth * back).sum(axis=1).mean())
