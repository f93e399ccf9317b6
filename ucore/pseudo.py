"""Pairs that a model finds itself among images and texts of a domain whose pairs nobody knows."""

import numpy as np
from scipy.special import logsumexp

ROUNDS = 20


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


def mutual_pairs(matching: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, texts, confidences) that choose each other: int64 (P,), int64 (P,), float64 (P,).

    matching: as of `balanced_matching`; groups: int64 (M,), equal for equal texts, which choose as one. The confidence
    is the chance of the chosen kind of text.
    """
    kinds, first, kind = np.unique(groups, return_index=True, return_inverse=True)
    chances = np.zeros((len(matching), len(kinds)))
    np.add.at(chances.T, kind, matching.T)
    chosen = chances.argmax(axis=1)
    images = np.arange(len(matching))
    # A text has several places: as many images may be chosen by it as there are copies.
    places = np.bincount(kind, minlength=len(kinds))
    rank = (chances[:, chosen] > chances[images, chosen]).sum(axis=0)
    mutual = rank < places[chosen]
    return images[mutual], first[chosen[mutual]], chances[images, chosen][mutual]


def return_probability(similarity: np.ndarray, temperature: float = 0.05) -> float:
    """Percent of a walk from a random image to a text and back, by softmax of the cosines, that ends where it began.

    A measure of alignment that needs no pairs (Haeusser et al. 2017, association by walks): high where images and texts
    single each other out. The temperature is fixed: a model that lowers its own does not thereby look better.
    """
    logits = similarity.astype(np.float64) / temperature
    forth = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    back = np.exp(logits - logsumexp(logits, axis=0, keepdims=True))
    return 100 * float((forth * back).sum(axis=1).mean())
