"""Retrieval metrics: ranks worked by hand, independent implementations, exact chance levels, bounded memory."""

import tracemalloc
from math import comb

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torchmetrics.functional.retrieval import retrieval_hit_rate

from ucore.errors import ConfigError, DataError
from ucore.evaluate import (
    METRICS,
    RECALLS,
    _Grid,
    best_ranks,
    bootstrap_ci,
    duplicate_aware_relevance,
    feature_ranks,
    instance_relevance,
    metrics_from_ranks,
    paired_difference,
    recall_at_k,
    retrieval_metrics,
    retrieval_metrics_from_features,
    retrieval_ranks,
    retrieval_ranks_from_features,
    similarity_matrix,
)

# Four images, eight texts in no particular order; ties in rows 1 and 3.
SIMILARITY = np.array(
    [
        [0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # own texts 1, 4: 0.8, one above -> 2
        [0.1, 0.2, 0.3, 0.7, 0.4, 0.5, 0.7, 0.7],  # own texts 3, 6: 0.7, text 7 ties -> 2
        [0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2],  # own texts 0, 5: 0.5, four above -> 5
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],  # own texts 2, 7: six others tie -> 7
    ]
)
TEXT_IMAGE = np.array([2, 0, 3, 1, 0, 2, 1, 3])
IMAGE_RANKS = [2, 2, 5, 7]
TEXT_RANKS = [3, 2, 2, 2, 4, 3, 1, 3]


def unit(rng: np.random.Generator, count: int, dimensions: int) -> np.ndarray:
    features = rng.standard_normal((count, dimensions), dtype=np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def sorted_rank(scores: np.ndarray, relevant: np.ndarray) -> int:
    """Independent of the implementation: sort, the irrelevant first among equals, find the first relevant."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], relevant[item]))
    return 1 + [bool(relevant[item]) for item in order].index(True)


def test_ranks_worked_by_hand() -> None:
    image_ranks, text_ranks = retrieval_ranks(SIMILARITY, TEXT_IMAGE)
    assert image_ranks.tolist() == IMAGE_RANKS
    assert text_ranks.tolist() == TEXT_RANKS
    assert image_ranks.dtype == text_ranks.dtype == np.int64


def test_metrics_worked_by_hand() -> None:
    metrics = retrieval_metrics(SIMILARITY, TEXT_IMAGE)
    assert tuple(metrics) == METRICS
    assert [metrics[name] for name in RECALLS] == [0, 75, 100, 12.5, 100, 100]
    assert metrics["mR"] == pytest.approx(387.5 / 6)
    assert metrics["image_to_text_median_rank"] == 3.5
    assert metrics["text_to_image_median_rank"] == 2.5
    assert recall_at_k(SIMILARITY, instance_relevance(TEXT_IMAGE, 4).T, 2) == 50
    assert recall_at_k(SIMILARITY, instance_relevance(TEXT_IMAGE, 4).T.toarray(), 5) == 75


def test_duplicate_aware_ranks_worked_by_hand() -> None:
    groups = np.array([7, 1, 2, 3, 7, 4, 5, 6])  # texts 0 (of image 2) and 4 (of image 0) are the same caption
    relevant = duplicate_aware_relevance(TEXT_IMAGE, groups, 4)
    assert relevant.toarray()[0].tolist() == relevant.toarray()[4].tolist() == [True, False, True, False]
    assert (
        relevant.toarray()[[1, 2, 3, 5, 6, 7]] == instance_relevance(TEXT_IMAGE, 4).toarray()[[1, 2, 3, 5, 6, 7]]
    ).all()
    image_ranks, text_ranks = retrieval_ranks(SIMILARITY, TEXT_IMAGE, groups)
    assert image_ranks.tolist() == [1, 2, 4, 7]
    assert text_ranks.tolist() == [1, 2, 2, 2, 1, 3, 1, 3]


def test_recall_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    scores, relevant = rng.random((40, 23)), rng.random((40, 23)) < 0.15
    relevant[np.arange(40), rng.integers(23, size=40)] = True
    for k in (1, 3, 5, 10, 23):
        hits = [
            float(retrieval_hit_rate(torch.tensor(s), torch.tensor(r), top_k=k))
            for s, r in zip(scores, relevant, strict=True)
        ]
        assert recall_at_k(scores, relevant, k) == pytest.approx(100 * np.mean(hits))
        assert recall_at_k(scores, sparse.csr_array(relevant), k) == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize("chunk_bytes", [1, 200, 2**20])
def test_ties_agree_with_sorting(chunk_bytes: int) -> None:
    rng = np.random.default_rng(1)
    scores, relevant = rng.integers(4, size=(60, 17)), rng.random((60, 17)) < 0.2
    relevant[:, 5] = True
    expected = [sorted_rank(s, r) for s, r in zip(scores, relevant, strict=True)]
    assert best_ranks(scores, relevant, chunk_bytes=chunk_bytes).tolist() == expected
    assert (
        best_ranks(scores.astype(np.float16), sparse.coo_array(relevant), chunk_bytes=chunk_bytes).tolist() == expected
    )


def test_duplicate_and_false_entries_of_sparse_relevance_are_ignored() -> None:
    relevant = sparse.csr_array(([True, True, False], [2, 2, 0], [0, 3]), shape=(1, 3))
    assert best_ranks(np.array([[0.9, 0.5, 0.5]]), relevant).tolist() == [3]
    assert relevant.nnz == 3  # the caller's matrix is left alone
    with pytest.raises(DataError, match="query 0"):
        best_ranks(np.array([[0.9, 0.5, 0.5]]), sparse.csr_array(([False], [2], [0, 1]), shape=(1, 3)))


@pytest.mark.parametrize("chunk_bytes", [1, 50_000, 10**6, 2**27])
def test_feature_ranks_equal_ranks_of_the_product_at_every_block_size(chunk_bytes: int) -> None:
    rng = np.random.default_rng(2)
    queries, gallery = unit(rng, 61, 32), unit(rng, 157, 32)
    gallery[rng.permutation(157)[:50]] = gallery[3]
    relevant = rng.random((61, 157)) < 0.05
    relevant[:, 3] = True
    expected = best_ranks(similarity_matrix(queries, gallery), relevant)
    assert feature_ranks(queries, gallery, relevant, chunk_bytes=chunk_bytes).tolist() == expected.tolist()
    assert (
        feature_ranks(queries, gallery, sparse.csr_array(relevant), chunk_bytes=chunk_bytes).tolist()
        == expected.tolist()
    )


@pytest.mark.parametrize("chunk_bytes", [100_000, 10**6, 2**27])
def test_equal_features_tie_wherever_they_stand(chunk_bytes: int) -> None:
    """Every item has a twin and one of the two is relevant: an exact tie makes every rank even."""
    rng = np.random.default_rng(3)
    queries, items = unit(rng, 101, 384), unit(rng, 203, 384)
    places = rng.permutation(406)
    gallery = np.concatenate([items, items])[np.argsort(places)]
    relevant = instance_relevance(places[rng.integers(406, size=101)], 406)
    ranks = feature_ranks(queries, gallery, relevant, chunk_bytes=chunk_bytes)
    assert (ranks % 2 == 0).all()
    assert (ranks == best_ranks(similarity_matrix(queries, gallery), relevant)).all()


@pytest.mark.parametrize("scale", [1.0, 1.0000005, 1e-3, 4.1])
def test_scores_are_accurate_and_independent_of_the_order_of_summation(scale: float) -> None:
    rng = np.random.default_rng(4)
    a, order = scale * unit(rng, 150, 512), rng.permutation(512)
    similarity = similarity_matrix(a, a[:70])
    assert similarity.dtype == np.float32
    np.testing.assert_allclose(similarity, a.astype(np.float64) @ a[:70].T.astype(np.float64), atol=6e-8 * scale**2)
    assert (similarity == similarity_matrix(a[:, order], a[:70, order])).all()
    # Rounding to float32 hides nearly every difference of order, so look before it.
    grid = _Grid(a, "features")[:]
    assert (grid @ grid[:70].T == grid[:, order] @ grid[:70, order].T).all()


def test_memory_is_bounded_by_the_chunk() -> None:
    rng = np.random.default_rng(5)
    queries, gallery = unit(rng, 1500, 64), unit(rng, 15000, 64)
    relevant = instance_relevance(np.arange(15000) % 1500, 1500).T.tocsr()
    similarity = queries @ gallery.T
    tracemalloc.start()
    feature_ranks(queries, gallery, relevant, chunk_bytes=2**22)
    feature_ranks(gallery, queries, relevant.T, chunk_bytes=2**22)
    best_ranks(similarity, relevant, chunk_bytes=2**22)
    best_ranks(similarity.T, relevant.T, chunk_bytes=2**22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22 + 2**21 < similarity.nbytes / 10


def test_perfect_and_constant_models() -> None:
    index = np.repeat(np.arange(30), 5)
    perfect = retrieval_metrics(np.eye(30)[:, index], index)
    assert all(perfect[name] == 100 for name in (*RECALLS, "mR"))
    assert perfect["image_to_text_median_rank"] == perfect["text_to_image_median_rank"] == 1
    constant = retrieval_metrics(np.full((30, 150), 0.3), index)
    assert all(constant[name] == 0 for name in (*RECALLS, "mR"))
    assert constant["image_to_text_median_rank"] == 146
    assert constant["text_to_image_median_rank"] == 30


def test_random_model_is_at_the_exact_chance_level() -> None:
    n_images, n_texts = 400, 2000
    index = np.repeat(np.arange(n_images), 5)
    metrics = retrieval_metrics(np.random.default_rng(6).random((n_images, n_texts)), index)
    for k in (1, 5, 10):
        miss = comb(n_texts - 5, k) / comb(n_texts, k)  # none of the five among the first k
        for name, chance, n in (("image_to_text", 1 - miss, n_images), ("text_to_image", k / n_images, n_texts)):
            spread = 100 * np.sqrt(chance * (1 - chance) / n)
            assert abs(metrics[f"{name}_R@{k}"] - 100 * chance) < 3.5 * spread


def test_order_of_images_and_texts_does_not_matter() -> None:
    rng = np.random.default_rng(7)
    images, texts, index = unit(rng, 40, 48), unit(rng, 130, 48), rng.integers(40, size=130)
    texts = unit(rng, 130, 48) + 2 * images[index]
    texts[90:] = texts[:40]
    groups = np.arange(130) % 90
    expected = retrieval_metrics(similarity_matrix(images, texts), index, groups)
    assert 0 < expected["mR"] < 100
    image_order, text_order = rng.permutation(40), rng.permutation(130)
    images, texts = images[image_order], texts[text_order]
    index, groups = np.argsort(image_order)[index[text_order]], groups[text_order]
    assert retrieval_metrics(similarity_matrix(images, texts), index, groups) == expected
    assert retrieval_metrics_from_features(images, texts, index, groups) == expected


def test_duplicate_aware_is_never_lower() -> None:
    rng = np.random.default_rng(8)
    similarity, index, groups = rng.random((50, 250)), np.repeat(np.arange(50), 5), rng.integers(120, size=250)
    standard, aware = (retrieval_ranks(similarity, index, g) for g in (None, groups))
    for plain, more in zip(standard, aware, strict=True):
        assert (more <= plain).all()
        assert (more < plain).any()


def test_image_without_captions_is_a_distractor_but_no_query() -> None:
    similarity = np.array([[0.9, 0.2, 0.3], [0.95, 0.1, 0.9], [0.1, 0.5, 0.8]])
    image_ranks, text_ranks = retrieval_ranks(similarity, np.array([0, 2, 2]))
    assert image_ranks.tolist() == [1, 1]
    assert text_ranks.tolist() == [2, 1, 2]
    interval = bootstrap_ci(image_ranks, text_ranks, np.array([0, 2, 2]), seed=0, n_resamples=50)
    assert interval["image_to_text_R@1"] == (100, 100)


def test_gallery_of_one_image() -> None:
    index = np.zeros(3, int)
    ranks = retrieval_ranks_from_features(np.ones((1, 4)), np.ones((3, 4)), index)
    assert [r.tolist() for r in ranks] == [[1], [1, 1, 1]]
    assert bootstrap_ci(*ranks, index, seed=0, n_resamples=10)["mR"] == (100, 100)


def test_bootstrap_of_a_bernoulli_recall_is_binomial() -> None:
    n, hits = 400, 120
    ranks = np.where(np.arange(n) < hits, 1, 50)
    low, high = bootstrap_ci(ranks, ranks, np.arange(n), seed=0, n_resamples=4000)["image_to_text_R@1"]
    expected = 100 * stats.binom.ppf([0.025, 0.975], n, hits / n) / n
    np.testing.assert_allclose([low, high], expected, atol=100 * 2 / n)


def test_bootstrap_counts_images_not_captions() -> None:
    """Five captions that always agree hold no more evidence than one."""
    ranks = np.where(np.arange(200) % 3, 50, 1)
    interval = bootstrap_ci(ranks, np.repeat(ranks, 5), np.repeat(np.arange(200), 5), seed=1, n_resamples=300)
    assert interval["text_to_image_R@1"] == pytest.approx(interval["image_to_text_R@1"])


def test_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(9)
    index = rng.permutation(np.concatenate([np.arange(120), rng.integers(120, size=300)]))
    i2t, t2i = rng.integers(1, 20, size=120), rng.integers(1, 30, size=420)

    def mean_recall(images: np.ndarray) -> float:
        texts = np.concatenate([np.flatnonzero(index == image) for image in images])
        return metrics_from_ranks(i2t[images], t2i[texts])["mR"]

    oracle = stats.bootstrap(
        (np.arange(120),), mean_recall, vectorized=False, n_resamples=1500, method="percentile", rng=0
    ).confidence_interval
    intervals = bootstrap_ci(i2t, t2i, index, seed=0, n_resamples=1500)
    assert tuple(intervals) == METRICS
    np.testing.assert_allclose(intervals["mR"], oracle, atol=0.1 * (oracle.high - oracle.low))
    narrower = bootstrap_ci(i2t, t2i, index, seed=0, n_resamples=1500, confidence=0.5)["mR"]
    assert intervals["mR"][0] < narrower[0] < metrics_from_ranks(i2t, t2i)["mR"] < narrower[1] < intervals["mR"][1]
    assert bootstrap_ci(i2t, t2i, index, seed=0, n_resamples=1500) == intervals
    assert bootstrap_ci(i2t, t2i, index, seed=1, n_resamples=1500) != intervals


def test_paired_difference_sees_what_separate_intervals_cannot() -> None:
    rng = np.random.default_rng(10)
    index = np.repeat(np.arange(150), 5)
    worse = rng.integers(1, 40, size=150), rng.integers(1, 40, size=750)
    better_images, better_texts = (np.where(rng.random(len(ranks)) < 0.03, 1, ranks) for ranks in worse)
    better = better_images, better_texts
    difference, low, high = paired_difference(better, worse, index, seed=0, n_resamples=400)
    assert difference == pytest.approx(metrics_from_ranks(*better)["mR"] - metrics_from_ranks(*worse)["mR"])
    assert 0 < low < difference < high
    separate = [bootstrap_ci(i, t, index, seed=0, n_resamples=400)["mR"] for i, t in (better, worse)]
    assert high - low < min(above - below for below, above in separate)
    assert paired_difference(worse, better, index, seed=0, n_resamples=400) == pytest.approx((-difference, -high, -low))
    assert paired_difference(worse, worse, index, seed=0, n_resamples=5) == (0, 0, 0)


EYE = np.eye(3, dtype=bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: best_ranks(np.array([[0.1, 0.2, 0.3], [0.1, np.nan, 0], [0, 0, 0]]), EYE), "Row 1 .*similarity.*NaN"),
        (lambda: best_ranks(np.diag([1, 1, -np.inf]), EYE), "Row 2 of the similarity"),
        (lambda: best_ranks(np.ones((3, 4)), EYE), r"bool array of \(3, 4\).*\(3, 3\)"),
        (lambda: best_ranks(np.ones((3, 3)), EYE.astype(float)), "bool"),
        (lambda: best_ranks(np.ones(3), EYE), "matrix"),
        (lambda: best_ranks(np.ones((3, 3), complex), EYE), "real"),
        (lambda: best_ranks(np.ones((3, 3)), EYE & [[1], [0], [1]] > 0), "relevant to query 1"),
        (lambda: feature_ranks(np.ones((3, 2)), np.ones((3, 2)), sparse.csr_array((3, 3), dtype=bool)), "to query 0"),
        (lambda: feature_ranks(np.ones((3, 2)), np.ones((3, 5)), EYE), "2 and 5 dimensions"),
        (lambda: feature_ranks(np.ones((3, 2)), np.diag([1, 1, np.inf])[:, 1:], EYE), "Row 2 of the gallery features"),
        (lambda: similarity_matrix(np.full((1, 2), 1e200), np.ones((1, 2))), "Row 0 of the query features"),
        (lambda: retrieval_metrics(np.ones((2, 3)), np.array([0, 1])), r"\(2,\) for 3 texts"),
        (lambda: retrieval_metrics(np.ones((2, 3)), np.array([0, 1, 2])), "Text 2 names image 2 of 2"),
        (lambda: retrieval_metrics(np.ones((2, 3)), np.array([0, -1, 1])), "Text 1 names image -1"),
        (lambda: retrieval_metrics(np.ones((2, 3)), np.array([0.0, 1.0, 1.0])), "float64"),
        (lambda: retrieval_metrics(np.ones((2, 3)), np.array([0, 1, 1]), np.array([0, 1])), r"caption_group is \(2,\)"),
        (lambda: instance_relevance(np.array([], int), 3), "every text"),
        (lambda: metrics_from_ranks(np.array([1, 0]), np.array([1])), "from 1"),
        (lambda: metrics_from_ranks(np.array([]), np.array([1])), "not empty"),
        (lambda: bootstrap_ci(np.array([1, 1]), np.array([1, 1]), np.array([0, 0]), seed=0), "1 captioned images"),
    ],
)
def test_unusable_arrays_are_refused_in_one_sentence(call, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"n_resamples": 0}, {"n_resamples": -3}, {"confidence": 95}, {"confidence": 0}])
def test_bootstrap_settings_out_of_range(settings: dict) -> None:
    one = np.array([1])
    with pytest.raises(ConfigError, match="n_resamples"):
        bootstrap_ci(one, one, np.array([0]), seed=0, **settings)


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_recall_needs_a_whole_k(k: float) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        recall_at_k(np.ones((3, 3)), EYE, k)  # pyright: ignore[reportArgumentType]


def test_k_beyond_the_gallery_finds_everything() -> None:
    assert recall_at_k(np.ones((3, 3)), EYE, 10) == 100
