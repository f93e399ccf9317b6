"""The correction of hubs: its formula, what it leaves alone, and exact ties."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.nn import functional as F

from ucore.alignment import SegmentBranch, SegmentPool, SegmentSets
from ucore.errors import DataError
from ucore.evaluate import best_ranks, instance_relevance, similarity_matrix
from ucore.fusion import fused_biases, segment_vectors
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


# --- with segments ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["mean", "attention", "late"])
def encoder(request) -> Any:
    torch.manual_seed(0)
    pool = SegmentPool(request.param, 6)
    branch = SegmentBranch(torch.nn.Identity(), torch.nn.Linear(9, 6), pool).eval()  # pyright: ignore[reportArgumentType]
    return SimpleNamespace(segments=branch, device=torch.device("cpu"))


def sets_of(rng: np.random.Generator, n: int) -> SegmentSets:
    present = torch.from_numpy(np.arange(3) < rng.integers(0, 4, n)[:, None])
    return SegmentSets(torch.from_numpy(rng.normal(size=(n, 3, 9)).astype(np.float16)), present)


def one_score(branch: Any, image: np.ndarray, tower: torch.Tensor, text: np.ndarray, share: float) -> float:
    """Of one image with its segments, float (K, 9), and one text, straight from the definition."""
    if not len(tower):
        return float(image @ text)
    vectors = F.normalize(branch.head(tower.float()), dim=1)[None]
    here = torch.ones(1, len(tower), dtype=torch.bool)
    return (1 - share) * float(image @ text) + share * branch.pool(vectors, here, torch.from_numpy(text[None])).item()


@torch.inference_mode()
def test_with_segments_the_biases_are_of_the_scores_that_count(encoder):
    rng = np.random.default_rng(4)
    images, texts, sets = unit(rng, 5), unit(rng, 6), sets_of(rng, 5)
    texts[3] = texts[1]
    known, training = unit(rng, 7), sets_of(rng, 7)
    bank = Bank(known, unit(rng, 8), segment_vectors(encoder.segments, training))
    own = [sets.features[row][sets.present[row]] for row in range(5)]
    theirs = [training.features[row][training.present[row]] for row in range(7)]

    def bias(scores: list[float]) -> float:
        return -0.1 * (logsumexp(np.array(scores) / 0.1) - np.log(len(scores)))

    of_images = [bias([one_score(encoder.segments, images[i], own[i], c, 0.4) for c in bank.texts]) for i in range(5)]
    of_texts = [bias([one_score(encoder.segments, known[b], theirs[b], t, 0.4) for b in range(7)]) for t in texts]
    found = fused_biases(encoder, images, texts, sets, bank, 0.4, 0.1)
    np.testing.assert_allclose(found[0], of_images, atol=1e-5)
    np.testing.assert_allclose(found[1], of_texts, atol=1e-5)
    assert found[1][3] == found[1][1]  # equal texts stay exactly equal


def test_segments_without_a_share_leave_the_biases_of_images(encoder):
    rng = np.random.default_rng(5)
    images, texts, sets = unit(rng, 5), unit(rng, 6), sets_of(rng, 5)
    vectors = segment_vectors(encoder.segments, sets_of(rng, 7))
    bank = Bank(unit(rng, 7), unit(rng, 8), vectors)
    of_images, of_texts = fused_biases(encoder, images, texts, sets, bank, 0.0, 0.1)
    np.testing.assert_allclose(of_images, hub_bias(images, bank.texts, 0.1), atol=1e-6)
    np.testing.assert_allclose(of_texts, hub_bias(texts, bank.images, 0.1), atol=1e-6)
    with pytest.raises(DataError, match=r"knows no segments.*--no-correct-hubs"):
        fused_biases(encoder, images, texts, sets, Bank(bank.images, bank.texts), 0.5, 0.1)
