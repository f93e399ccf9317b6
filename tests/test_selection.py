"""Choosing segments: filters, the paper's similarity, the rule without a text, and the leak that is refused."""

import numpy as np
import pytest

from ucore.errors import ConfigError
from ucore.masks import Segments
from ucore.selection import candidates, diverse, part_features, quality, select_segments, select_similar, text_parts


def boxes(*extents: tuple[int, int, int, int], **scores) -> Segments:
    """Rectangles (left, top, right, bottom) in an image of 20 x 20."""
    masks = np.zeros((len(extents), 20, 20), bool)
    for mask, (left, top, right, bottom) in zip(masks, extents, strict=True):
        mask[top:bottom, left:right] = True
    return Segments.from_masks(masks, **scores)


THREE = boxes((0, 0, 10, 10), (0, 0, 10, 8), (12, 12, 18, 18))  # areas 100, 80 (inside the first), 36


def test_texts_are_cut_as_in_the_paper():
    assert text_parts("amenity of school, road of residential; surrounded by road of service.") == [
        "amenity of school", "road of residential", "surrounded by road of service"]  # fmt: skip
    assert text_parts("a wall of 2.5 m, 1,000 trees.") == ["a wall of 2.5 m", "1,000 trees"]
    assert text_parts(" ;,. ") == text_parts("") == []


def test_a_long_text_is_the_mean_of_its_parts_and_parts_are_embedded_once():
    seen = []
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0], "": [0.6, 0.8]}

    def embed(texts):
        seen.extend(texts)
        return np.array([table[text] for text in texts])

    features = part_features(embed, ["a, b", "b", "a; a; b.", ""])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(features, [[half, half], [0, 1], [2 / 5**0.5, 1 / 5**0.5], [0.6, 0.8]], atol=1e-6)
    assert seen == ["a", "b", ""]


def test_area_and_overlap_filters():
    assert candidates(THREE).tolist() == [0, 2]  # the second is 0.8 of the first
    assert candidates(THREE, most_overlap=0.9).tolist() == [0, 1, 2]
    assert candidates(THREE, largest=2, most_overlap=0.9).tolist() == [0, 1]
    better = boxes((0, 0, 10, 10), (0, 0, 10, 8), (12, 12, 18, 18), predicted_iou=np.array([0.5, 0.9, 1]))
    np.testing.assert_allclose(quality(better), [0.25 * 0.5, 0.2 * 0.9, 0.09], atol=1e-6)
    assert candidates(better).tolist() == [1, 2]  # the better of the pair stays
    with pytest.raises(ConfigError, match="largest=0"):
        candidates(THREE, largest=0)


def test_quality_prefers_what_is_not_shown_yet():
    nested = boxes((0, 0, 12, 12), (0, 0, 12, 8), (12, 12, 20, 20))  # 144, 96 within it, 64
    assert select_segments(nested, 2, diversity=0.0).tolist() == [0, 1]
    assert select_segments(nested, 2, diversity=0.5).tolist() == [0, 2]
    assert select_segments(nested, 10).tolist() == [0, 2, 1]
    alike = np.array([[1, 0], [0, 1], [1, 0]])  # by features the third is the first again
    assert select_segments(nested, 2, features=alike).tolist() == [0, 1]


def test_diverse_is_the_greedy_rule_by_hand():
    likeness = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])
    # Then 0.5 * 0.8 - 0.5 * 0.9 < 0.5 * 0.2 - 0: the third comes second.
    assert diverse(np.array([1.0, 0.8, 0.2]), likeness, 3, 0.5).tolist() == [0, 2, 1]
    assert diverse(np.zeros(3), likeness, 2, 0.0).tolist() == [0, 1]
    assert diverse(np.zeros(0), np.zeros((0, 0)), 5, 0.5).tolist() == []


def test_similarity_takes_the_most_similar_crops_by_brute_force():
    chance = np.random.default_rng(0)
    features = chance.normal(size=(7, 12, 8))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    texts = chance.normal(size=(7, 8))
    counts = np.array([12, 3, 0, 5, 12, 1, 4])
    rows, kept = select_similar(features.astype(np.float16), counts, texts, 4, "train")
    for n in range(7):
        best = sorted(range(counts[n]), key=lambda row: -float(features[n, row] @ texts[n]))[:4]
        assert rows[n].tolist() == best + [-1] * (4 - len(best)) and kept[n] == len(best)
    assert select_similar(features[:, :2], np.full(7, 2), texts, 4, "train")[0].shape == (7, 4)
    apart = boxes(*[(4 * n, 0, 4 * n + 4, 10) for n in range(5)])
    chosen = select_segments(apart, 2, "similarity", features[0, :5], texts[0], split_role="train")
    assert set(chosen) == set(select_similar(features[:1, :5], np.array([5]), texts[:1], 2, "train")[0][0])


def test_the_leak_is_refused_unless_it_is_what_one_wants_to_show():
    apart = boxes((0, 0, 9, 9), (10, 10, 20, 20))
    features, text = np.eye(2), np.array([1.0, 0.0])
    with pytest.raises(ConfigError, match="carry the answer"):
        select_segments(apart, 1, "similarity", features, text, split_role="evaluate")
    with pytest.raises(ConfigError, match="needs split_role"):
        select_segments(apart, 1, "similarity", features, text)
    with pytest.raises(ConfigError, match="carry the answer"):
        select_similar(features[None], np.array([2]), text[None], 1, "evaluate")
    leaky = select_segments(apart, 1, "similarity", features, text, split_role="evaluate", allow_leak=True)
    assert leaky.tolist() == [0]
    assert select_segments(apart, 1, "similarity", features, text, split_role="side").tolist() == [0]
    assert select_segments(apart, 1).tolist() == [1]  # by quality: the larger, whatever the text


def test_no_segments_is_an_answer_and_wrong_settings_are_named():
    none = Segments.none((20, 20))
    assert select_segments(none).shape == (0,)
    assert select_segments(none, 3, "similarity", np.zeros((0, 2)), np.ones(2), split_role="train").shape == (0,)
    assert select_segments(THREE, 0).shape == (0,)
    for settings, message in (
        ({"rule": "best"}, "no rule 'best'"),
        ({"rule": "similarity", "split_role": "train"}, "give features"),
        ({"features": np.ones((2, 4))}, "2 features for 3"),
        ({"diversity": 2}, "diversity=2"),
    ):
        with pytest.raises(ConfigError, match=message):
            select_segments(THREE, 1, **settings)
