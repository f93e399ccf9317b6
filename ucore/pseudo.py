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


def return_probability(similarity: np.ndarray, temperature: float = 0.05) -> float:
    """Percent of a walk from a random image to a text and back, by softmax of the cosines, that ends where it began.

    A measure of alignment that needs no pairs (Haeusser et al. 2017, association by walks): high where images and texts
    single each other out. The temperature is fixed: a model that lowers its own does not thereby look better.
    """
    logits = similarity.astype(np.float64) / temperature
    forth = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    back = np.exp(logits - logsumexp(logits, axis=0, keepdims=True))
    return 100 * float((forth * back).sum(axis=1).mean())
