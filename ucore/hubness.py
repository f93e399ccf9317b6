"""Generic texts fit every image a little and crowd out the right ones; a bank of training images tells which they are.

For image i and text t with cosine s(i, t), temperature T and training images b,

    score(i, t) = s(i, t) - T log mean_b exp(s(b, t) / T)

ranks the texts of an image by the probability that t was written for i rather than for a training image (inverted
softmax, Smith et al. 2017, https://arxiv.org/abs/1702.03859; with a bank of training data, as QB-Norm,
https://arxiv.org/abs/2112.12777). The correction belongs to the text alone: it changes image -> text, leaves the
ranking of images for a text as it is, and never sees the gallery that is searched.
"""

import numpy as np

from ucore.errors import DataError

MOST_BANK = 10_000  # training images in a bank: the mean over more would not change noticeably
CHUNK = 2048  # texts at a time: 2048 x 10,000 float64 scores are 160 MB


def text_bias(text_features: np.ndarray, bank_features: np.ndarray, temperature: float) -> np.ndarray:
    """What to add to every score of a text, float32 (T,): -T log mean_b exp(s(b, t) / T).

    text_features: float (T, D); bank_features: float (B, D), of training images; both L2-normalised. Identical
    rows get identical values, so that exact ties stay ties. Raises DataError when the widths differ.
    """
    if text_features.shape[1] != bank_features.shape[1]:
        raise DataError(
            f"The bank has {bank_features.shape[1]} dimensions, the texts {text_features.shape[1]}; "
            "use the bank of the same checkpoint."
        )
    distinct, place = np.unique(text_features, axis=0, return_inverse=True)
    bank = bank_features.astype(np.float64)
    bias = np.empty(len(distinct))
    for start in range(0, len(distinct), CHUNK):
        scores = distinct[start : start + CHUNK].astype(np.float64) @ bank.T / temperature
        top = scores.max(axis=1)
        bias[start : start + CHUNK] = -temperature * (top + np.log(np.exp(scores - top[:, None]).mean(axis=1)))
    return bias.astype(np.float32)[place.reshape(-1)]
