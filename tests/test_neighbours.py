"""Soft positives and batches of hard negatives, against what can be worked out by hand or by brute force."""

import numpy as np
import pytest
import torch

from ucore.errors import ConfigError
from ucore.losses import contrastive_loss, hinge_loss
from ucore.manifest import Manifest
from ucore.neighbours import CaptionLikeness, HardBatches, soft_positives, tag_vectors
from ucore.pairs import TrainingTexts

LIKENESS = np.array([[1.0, 0.9, 0.1, 0.0], [0.9, 1.0, 0.2, 0.3], [0.1, 0.2, 1.0, 1.0], [0.0, 0.3, 1.0, 1.0]])
OWN = np.eye(4, dtype=bool)


def test_other_texts_share_what_is_asked_by_their_likeness():
    weights = soft_positives(OWN, LIKENESS, 0.2, 0.5)
    targets = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(targets[OWN], 0.8, atol=1e-6)
    others = np.exp(np.array([0.9, 0.1, 0.0]) / 0.5)
    np.testing.assert_allclose(targets[0, 1:], 0.2 * others / others.sum(), atol=1e-6)


def test_the_share_stays_when_an_image_has_several_texts():
    positives = OWN.copy()
    positives[2, 3] = positives[3, 2] = True
    weights = soft_positives(positives, LIKENESS, 0.3, 0.1)
    targets = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(targets[2, 2:], 0.35, atol=1e-6)
    np.testing.assert_allclose((targets * ~positives).sum(axis=1), 0.3, atol=1e-6)


def test_no_share_is_the_hard_target_and_weights_stay_within_one():
    np.testing.assert_array_equal(soft_positives(OWN, LIKENESS, 0.0, 0.1), OWN)
    crowded = np.array([[True, True, True, False]])
    assert soft_positives(crowded, np.array([[1.0, 1.0, 1.0, 0.9]]), 0.5, 0.01).max() == 1
    assert soft_positives(np.ones((1, 3), bool), np.ones((1, 3)), 0.2, 0.1).tolist() == [[1, 1, 1]]
    assert soft_positives(np.zeros((1, 3), bool), np.ones((1, 3)), 0.2, 0.1).tolist() == [[0, 0, 0]]


def test_a_like_text_is_pushed_away_less_than_an_unlike_one():
    soft = torch.from_numpy(soft_positives(OWN, LIKENESS, 0.3, 0.1))
    for loss in (lambda s, p: contrastive_loss(s, torch.tensor(2.0), p), hinge_loss):
        pushes = []
        for positives in (torch.from_numpy(OWN), soft):
            scores = torch.zeros(4, 4, requires_grad=True)
            loss(scores, positives).backward()
            assert scores.grad is not None
            pushes.append(scores.grad[0, 1] - scores.grad[0, 3])
        assert pushes[0] == pytest.approx(0, abs=1e-7)
        assert pushes[1] < -1e-3


def clustered(groups: int = 12, size: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(groups, 16)), size, axis=0) + 0.1 * rng.normal(size=(groups * size, 16))


def test_every_image_comes_once_and_batches_hold_more_neighbours():
    features, order = clustered(), np.random.default_rng(1).permutation(60)
    hard = HardBatches(features, 0.5)(order, 10)
    assert sorted(hard.tolist()) == list(range(60))

    def relatives(batches: np.ndarray) -> int:
        clusters = batches.reshape(-1, 10) // 5
        return sum(len(batch) - len(set(batch)) for batch in clusters.tolist())

    assert relatives(hard) > 1.5 * relatives(order)


def test_the_first_of_a_batch_keep_their_order_and_the_rest_are_nearest_to_any_of_them():
    features, order = clustered(4, 4), np.random.default_rng(2).permutation(16)
    hard = HardBatches(features, 0.5)(order, 4)
    first = order[:2]
    np.testing.assert_array_equal(hard[:2], first)
    scaled = (features - features.mean(0)) / features.std(0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    best = (scaled[first] @ scaled.T).max(axis=0)
    best[first] = -np.inf
    assert hard[2:4].tolist() == np.argsort(-best)[:2].tolist()
    second = [image for image in order if image not in hard[:4]][:2]
    assert hard[4:6].tolist() == second


def test_no_share_is_the_given_order_and_few_neighbours_are_enough():
    order = np.random.default_rng(3).permutation(23)
    np.testing.assert_array_equal(HardBatches(clustered(5, 5)[:23], 0.0)(order, 5), order)
    assert sorted(HardBatches(clustered(5, 5)[:23], 0.8, nearest=1)(order, 10)) == list(range(23))
    assert sorted(HardBatches(clustered(5, 5)[:23], 0.9)(order, 50)) == list(range(23))


def test_rare_tags_that_two_images_share_make_them_alike():
    tags = [["a", "b"], ["b", "a", "a"], ["a", "c"], [], ["a"], ["c", "d"]]
    vectors = tag_vectors(tags).toarray()
    rare = {"a": np.log(6 / 4), "b": np.log(6 / 2), "c": np.log(6 / 2), "d": np.log(6)}
    lengths = [np.hypot(rare["a"], rare["b"]), 0, np.hypot(rare["a"], rare["c"])]
    likeness = vectors @ vectors.T
    assert likeness[0, 1] == pytest.approx(1)
    assert likeness[0, 2] == pytest.approx(rare["a"] ** 2 / lengths[0] / lengths[2])
    assert not likeness[3].any() and likeness[0, 5] == 0 and likeness[4, 4] == pytest.approx(1)
    assert tag_vectors([["a"], ["a"]]).nnz == 0 and tag_vectors([[], []]).nnz == 0  # of all images: says nothing


def test_likeness_of_an_image_and_a_text_counts_tags_by_their_share(tiny_clip_factory, tmp_path):
    rows = [
        {"sample_id": name, "image": f"{name}.png", "captions": of, "split": "train", "domain": "a", "tags": tags}
        for name, of, tags in (("x", ["a lake", "water"], ["b"]), ("y", ["a road"], ["b"]), ("z", ["trees"], ["c"]))
    ]
    train = Manifest.from_rows(rows, tmp_path)
    pairs, which = TrainingTexts(train), (np.array([0, 2]), np.array([0, 1, 2, 3]))
    alone, half, tags = (CaptionLikeness(tiny_clip_factory(), train, pairs, share, None, False)(*which)
                         for share in (0.0, 0.5, 1.0))  # fmt: skip
    np.testing.assert_allclose(tags, [[1, 1, 1, 0], [0, 0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(half, (alone + tags) / 2, atol=1e-6)
    untagged = Manifest.from_rows([{**row, "tags": []} for row in rows], tmp_path)
    with pytest.raises(ConfigError, match="no training image has one"):
        CaptionLikeness(tiny_clip_factory(), untagged, pairs, 0.5, None, False)
