"""Which texts an image is trained with: captions, descriptions and their sentences."""

import numpy as np
import pytest

from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest
from ucore.pairs import TrainingTexts

CAPTIONS = [["a lake .", "water"], ["a field ."], ["A lake", "a wood", "trees"]]
DESCRIPTIONS = ["A round lake. It has two boats.", "", "One dense wood."]


@pytest.fixture
def manifest(tmp_path):
    rows = [
        {
            "sample_id": str(n),
            "image": f"{n}.png",
            "captions": texts,
            "description": more,
            "domain": "d",
            "split": "train",
        }
        for n, (texts, more) in enumerate(zip(CAPTIONS, DESCRIPTIONS, strict=True))
    ]
    return Manifest.from_rows(rows, tmp_path)


def drawn(pairs: TrainingTexts, share: float, draws: int = 200) -> np.ndarray:
    return np.stack([pairs.draw(np.random.default_rng(seed), share) for seed in range(draws)])


def test_captions_alone_are_the_manifests_texts(manifest):
    pairs = TrainingTexts(manifest)
    assert pairs.texts == manifest.texts[0]
    assert pairs.first.tolist() == [0, 2, 3, 6]
    seen = drawn(pairs, 0.0)
    assert [set(column) for column in seen.T.tolist()] == [{0, 1}, {2}, {3, 4, 5}]


def test_a_description_comes_whole_or_by_the_sentence_as_often_as_asked(manifest):
    pairs = TrainingTexts(manifest, with_descriptions=True)
    more = ["A round lake. It has two boats.", "A round lake.", "It has two boats.", "One dense wood."]
    assert pairs.texts == [*manifest.texts[0], *more]
    assert [set(column) for column in drawn(pairs, 1.0).T.tolist()] == [{6, 7, 8}, {2}, {9}]  # the second has none
    some = drawn(pairs, 0.3, 1000)
    assert 0.25 < (some[:, 0] >= 6).mean() < 0.35 and 0.25 < (some[:, 2] >= 6).mean() < 0.35


def test_no_share_draws_what_is_drawn_without_descriptions(manifest):
    plain, more = TrainingTexts(manifest), TrainingTexts(manifest, with_descriptions=True)
    np.testing.assert_array_equal(drawn(plain, 0.0), drawn(more, 0.0))


def test_positives_are_an_images_own_texts_and_equal_ones(manifest):
    pairs = TrainingTexts(manifest, with_descriptions=True)
    texts = np.arange(len(pairs.texts))
    expected = np.zeros((3, 10), bool)
    expected[0, [0, 1, 3, 6, 7, 8]] = expected[1, 2] = expected[2, [0, 3, 4, 5, 9]] = True  # "a lake ." is "A lake"
    np.testing.assert_array_equal(pairs.positives(np.arange(3), texts), expected)
    np.testing.assert_array_equal(pairs.positives(np.array([2, 0]), texts[[4, 8]]), [[True, False], [False, True]])


def test_descriptions_that_nobody_wrote_are_refused(manifest):
    manifest.frame["description"] = ""
    with pytest.raises(ConfigError, match=r"none of the 3 training images has one: run ucore caption"):
        TrainingTexts(manifest, with_descriptions=True)


def test_images_without_a_text_are_named_and_never_trained_with_a_neighbours(manifest):
    manifest.frame["captions"] = [["a"], [], []]
    with pytest.raises(DataError, match=r"2 of 3 training images of .* have no caption \(1, 2\)"):
        TrainingTexts(manifest)
    with pytest.raises(DataError, match=r"1 of 3 training images of .* have no caption \(1\)"):
        TrainingTexts(manifest, with_descriptions=True)
    manifest.frame["description"] = ["", "A field.", "A wood."]
    pairs = TrainingTexts(manifest, with_descriptions=True)  # what has no caption is shown with its description always
    assert [{pairs.texts[n] for n in column} for column in drawn(pairs, 0.1).T.tolist()] == [
        {"a"},
        {"A field."},
        {"A wood."},
    ]
