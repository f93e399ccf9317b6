"""Ties broken at random, in expectation: against drawing them, and against the strict count where there are none."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from ucore.errors import DataError
from ucore.evaluate import RECALLS, bootstrap_ci, retrieval_metrics, retrieval_ranks, tie_counts
from ucore.ties import hit_chances, random_tie_metrics


def test_chances_of_a_hand_checked_query():
    # One item above; the relevant one shares its score with three others: places 2 to 5, each as likely.
    similarity = np.array([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    relevant = np.array([[False, True, False, False, False, False]])
    assert hit_chances(similarity, relevant).tolist() == [[0.0, 1.0, 1.0]]
    relevant[0, 5] = True  # a worse relevant one changes nothing
    assert hit_chances(similarity[:, 1:], relevant[:, 1:])[0].tolist() == [0.25, 1.0, 1.0]
    assert hit_chances(similarity, np.zeros((1, 6), bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_chances_are_those_of_drawing_without_replacement():
    rng = np.random.default_rng(0)
    similarity, relevant = rng.integers(0, 3, (200, 40)) / 2, rng.random((200, 40)) < 0.1
    relevant[:, 0] = True
    found = hit_chances(similarity, relevant)
    for row in range(200):
        best = similarity[row, relevant[row]].max()
        above, tied = (similarity[row] > best).sum(), similarity[row] == best
        for column, k in enumerate((1, 5, 10)):
            drawn = min(max(k - above, 0), tied.sum())
            miss = hypergeom.pmf(0, tied.sum(), (tied & relevant[row]).sum(), drawn)
            assert found[row, column] == pytest.approx(1 - miss)


def test_blocks_of_scores_change_nothing():
    rng = np.random.default_rng(4)
    similarity, relevant = rng.integers(0, 4, (50, 9)).astype(np.float32), rng.random((50, 9)) < 0.2
    relevant[7] = False
    whole, parts = (tie_counts(similarity, relevant, chunk_bytes=size) for size in (2**20, 40))
    assert whole.tolist() == parts.tolist()
    assert whole[:, 7].tolist() == [0, 0, 0]


def test_scores_without_a_meaning_are_refused():
    similarity, index = np.ones((4, 8)), np.repeat(np.arange(4), 2)
    similarity[2, 3] = np.nan
    with pytest.raises(DataError, match="Row 2"):
        random_tie_metrics(similarity, index, seed=0)
    with pytest.raises(DataError, match="queries x gallery"):
        random_tie_metrics(np.ones((4, 8)), index[:6], seed=0)


def test_metrics_are_the_mean_over_many_orders():
    rng = np.random.default_rng(1)
    index = np.repeat(np.arange(30), 3)[rng.permutation(90)]
    similarity = rng.integers(0, 12, (30, 90)).astype(np.float32)
    metrics, intervals = random_tie_metrics(similarity, index, seed=0, n_resamples=200)
    draws = [retrieval_metrics(similarity + rng.random(similarity.shape) * 0.5, index) for _ in range(400)]
    for name in (*RECALLS, "mR"):
        assert metrics[name] == pytest.approx(np.mean([draw[name] for draw in draws]), abs=1.0)
        assert intervals[name][0] <= metrics[name] <= intervals[name][1]
    assert metrics["mR"] > retrieval_metrics(similarity, index)["mR"] + 5  # which counts ties against the model


def test_without_ties_it_is_the_standard_protocol_intervals_included():
    rng = np.random.default_rng(2)
    index = np.array([0, 0, 1, 3, 3, 3, 4, 4] * 5 + [5] * 3)  # image 2 has no caption: it is found, and asks nothing
    similarity = rng.standard_normal((6, len(index)))
    metrics, intervals = random_tie_metrics(similarity, index, seed=3)
    ranks = retrieval_ranks(similarity, index)
    expected = bootstrap_ci(*ranks, index, seed=3)
    for name, value in metrics.items():
        assert value == pytest.approx(retrieval_metrics(similarity, index)[name])
        assert intervals[name] == pytest.approx(expected[name])


def test_a_model_that_scores_everything_alike_is_at_chance():
    metrics, _ = random_tie_metrics(np.ones((20, 40)), np.repeat(np.arange(20), 2), seed=0, n_resamples=10)
    assert metrics["text_to_image_R@5"] == pytest.approx(100 * 5 / 20)
    assert metrics["image_to_text_R@1"] == pytest.approx(100 * 2 / 40)
