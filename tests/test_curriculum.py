"""Which source samples are shown, which pairs a model finds itself, and how alignment is judged without pairs."""

import numpy as np
import pytest

from ucore.curriculum import CurriculumSampler, density_ratio, scaled, share_of
from ucore.errors import ConfigError
from ucore.pseudo import balanced_matching, bridged_similarity, return_probability


def unit(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_kept_share_grows_with_the_cycles_as_in_the_paper() -> None:
    assert [share_of(cycle) for cycle in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_the_rows_nearest_to_the_batchs_target_are_kept_in_their_order() -> None:
    sampler = CurriculumSampler(unit([90, 10, 180, 350, 20, 60, 120, 5, 40, 80]), unit([0, 10, 90]))
    kept, weights = sampler.keep(np.arange(10), np.array([0, 1]), cycle=0)
    assert kept.tolist() == [1, 7]  # 10 and 5 degrees are nearest to 0 and 10 degrees
    assert weights.sum() == pytest.approx(1)
    kept, _ = sampler.keep(np.arange(10), np.array([0, 1]), cycle=1)
    assert kept.tolist() == [1, 3, 4, 7]
    kept, _ = sampler.keep(np.arange(10), np.array([2]), cycle=0)
    assert kept.tolist() == [0, 9]
    kept, _ = sampler.keep(np.arange(10), np.array([2]), cycle=9)
    assert kept.tolist() == list(range(10))
    assert sampler.keep(np.array([2, 6]), np.array([0]), cycle=0)[0].tolist() == [0, 1]  # never fewer than two


def test_weights_are_min_max_scaled_and_sum_to_1() -> None:
    assert scaled(np.array([2.0, 4.0, 3.0])).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert scaled(np.array([5.0, 5.0])).tolist() == [0.5, 0.5]


def test_target_rows_count_by_their_nearest_source_rows() -> None:
    sampler = CurriculumSampler(unit([0, 0, 180]), unit([0, 180, 90]))
    cosines = np.array([2.0, 0.0, 0.0])  # sums of the two largest: 1 + 1, 1 - 1, 0 + 0
    assert sampler.target_weights(np.arange(3), np.arange(3), top=2) == pytest.approx(scaled(cosines), abs=1e-12)


def test_none_keeps_everything_and_weighs_it_all_the_same() -> None:
    sampler = CurriculumSampler(unit([0, 90, 180, 270]), unit([0]), "none")
    kept, weights = sampler.keep(np.array([3, 0, 2]), np.array([0]), 0)
    assert kept.tolist() == [0, 1, 2] and weights.tolist() == pytest.approx([1 / 3, 2 / 3, 0])  # 0, 1 and -1
    whole = CurriculumSampler(unit([0, 90, 180, 270]), unit([0])).keep(np.array([3, 0, 2]), np.array([0]), 4)
    assert weights.tolist() == whole[1].tolist()


def test_the_density_ratio_finds_source_rows_like_the_target() -> None:
    rng = np.random.default_rng(0)
    like, unlike = rng.normal([2, 0, 0], 0.5, (40, 3)), rng.normal([-2, 0, 0], 0.5, (160, 3))
    source = rng.permutation(np.concatenate([like, unlike]))
    target = rng.normal([2, 0, 0], 0.5, (30, 3))
    ratio = density_ratio(source, target)
    best = np.argsort(-ratio)[:40]
    assert (source[best, 0] > 0).mean() > 0.95
    sampler = CurriculumSampler(source, target, "density")
    kept, _ = sampler.keep(np.arange(200), np.array([0]), cycle=0)
    assert (source[kept, 0] > 0).all()


def test_features_of_two_encoders_are_refused() -> None:
    with pytest.raises(ConfigError, match="use one encoder"):
        CurriculumSampler(np.zeros((2, 3)), np.zeros((2, 4)))


def test_matching_gives_every_text_its_share() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.9, 0.1, 0.2], [0.9, 0.2, 0.3]])  # text 0 is a hub
    matching = balanced_matching(similarity, 0.02)
    assert matching.sum(axis=1) == pytest.approx(np.ones(3))
    assert matching.sum(axis=0) == pytest.approx(np.ones(3), abs=0.05)
    assert matching.argmax(axis=1).tolist() == [1, 0, 2]
    shares = balanced_matching(np.zeros((4, 2)), 1.0, np.array([0.75, 0.25]))
    assert shares[0] == pytest.approx([0.75, 0.25])


def test_walks_return_where_images_and_texts_single_each_other_out() -> None:
    aligned, blurred = return_probability(np.eye(4)), return_probability(np.zeros((4, 4)))
    assert aligned > 99 and blurred == pytest.approx(25)
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-1, 1, (5, 7))
    forth = np.exp(similarity / 0.1) / np.exp(similarity / 0.1).sum(1, keepdims=True)
    back = np.exp(similarity / 0.1) / np.exp(similarity / 0.1).sum(0)
    assert return_probability(similarity, 0.1) == pytest.approx(100 * np.trace(forth @ back.T) / 5)


def test_a_bridge_says_of_an_image_what_is_said_of_images_like_it():
    """Three kinds of scenes; the target's images are shifted by its camera, its texts by its style of writing."""
    rng = np.random.default_rng(0)
    looks, words = rng.normal(size=(3, 12)), rng.normal(size=(3, 9))
    kind, owner = np.repeat([0, 1, 2], 20), np.repeat(np.arange(60), 2)
    source_images = looks[kind] + 0.3 * rng.normal(size=(60, 12))
    source_texts = words[kind[owner]] + 0.3 * rng.normal(size=(120, 9))
    asked = np.array([0, 1, 2, 2, 1, 0])
    images = looks[asked] + 0.1 * rng.normal(size=(6, 12)) + 5
    texts = words[asked] + 0.1 * rng.normal(size=(6, 9)) - 3
    found = bridged_similarity(images, texts, source_images, source_texts, owner)
    assert found.shape == (6, 6) and np.abs(found).max() <= 1 + 1e-5
    same = asked[:, None] == asked[None, :]
    assert found[same].min() > found[~same].max()
    shuffled = rng.permutation(120)
    again = bridged_similarity(images, texts, source_images, source_texts[shuffled], owner[shuffled])
    assert np.allclose(found, again, atol=1e-5)  # the order of the source's texts says nothing


def test_a_bridge_over_many_images_rests_on_some_of_them(monkeypatch):
    monkeypatch.setattr("ucore.pseudo.MOST_BRIDGE", 10)
    rng = np.random.default_rng(1)
    source_images, source_texts = rng.normal(size=(19, 4)), rng.normal(size=(38, 5))
    owner, kept = np.repeat(np.arange(19), 2), np.arange(0, 19, 2)
    images, texts = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
    found = bridged_similarity(images, texts, source_images, source_texts, owner)
    held = np.isin(owner, kept)
    expected = bridged_similarity(images, texts, source_images[kept], source_texts[held], owner[held] // 2)
    assert np.allclose(found, expected)
