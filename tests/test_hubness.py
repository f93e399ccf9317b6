"""The correction of hubs: its formula, what it leaves alone, and exact ties."""

import numpy as np
import pytest
from scipy.special import logsumexp

from ucore.errors import DataError
from ucore.evaluate import best_ranks, instance_relevance, similarity_matrix
from ucore.hubness import Bank, correct_hubs, hub_bias


def unit(rng: np.random.Generator, n: int, d: int = 6) -> np.ndarray:
    features = rng.normal(size=(n, d)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_it_is_the_formula():
    rng = np.random.default_rng(0)
    texts, bank = unit(rng, 9), unit(rng, 7)
    expected = [-0.1 * (logsumexp([float(t @ b) / 0.1 for b in bank]) - np.log(7)) for t in texts]
    np.testing.assert_allclose(hub_bias(texts, bank, 0.1), expected, atol=1e-6)


def test_a_text_that_fits_every_image_falls_behind_the_right_one():
    image, other = np.array([[1.0, 0, 0]]), np.array([[0.0, 1, 0]])
    generic, own = np.array([0.72, 0.69, 0]), np.array([0.7, 0, 0.714])
    texts = np.stack([generic / np.linalg.norm(generic), own / np.linalg.norm(own)])
    similarity = image @ texts.T
    assert similarity[0, 0] > similarity[0, 1]
    corrected = similarity + hub_bias(texts, np.concatenate([other, other, image]), 0.05)
    assert corrected[0, 1] > corrected[0, 0]


def test_text_to_image_ranks_and_exact_ties_stay():
    rng = np.random.default_rng(1)
    images, bank = unit(rng, 20), unit(rng, 30)
    texts = unit(rng, 40)[rng.integers(0, 15, 40)]  # many identical
    bias = hub_bias(texts, bank, 0.05)
    similarity = similarity_matrix(images, texts)
    relevant = instance_relevance(rng.integers(0, 20, 40), 20)
    np.testing.assert_array_equal(best_ranks(similarity.T, relevant), best_ranks((similarity + bias).T, relevant))
    for text in texts:
        same = (texts == text).all(axis=1)
        assert len(set(bias[same])) == 1


def test_the_bank_of_another_model_is_refused():
    rng = np.random.default_rng(2)
    with pytest.raises(DataError, match="6 dimensions, the features 5"):
        hub_bias(unit(rng, 3, 5), unit(rng, 3, 6), 0.05)


def test_each_correction_moves_one_direction_only():
    rng = np.random.default_rng(3)
    images, texts, bank = unit(rng, 12), unit(rng, 15), Bank(unit(rng, 20), unit(rng, 25))
    similarity = similarity_matrix(images, texts)
    corrected = correct_hubs(similarity, images, texts, bank, 0.1)
    for_text = similarity + hub_bias(images, bank.texts, 0.1)[:, None]
    for_image = similarity + hub_bias(texts, bank.images, 0.1)
    np.testing.assert_array_equal(np.argsort(corrected, axis=0), np.argsort(for_text, axis=0))
    np.testing.assert_array_equal(np.argsort(corrected, axis=1), np.argsort(for_image, axis=1))
    assert (np.argsort(corrected, axis=1) != np.argsort(similarity, axis=1)).any()
