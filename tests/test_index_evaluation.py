"""Evaluation through the index is evaluation from arrays, ties and all."""

import numpy as np
import pandas as pd
import pytest
from makers_index import CARD, DIM, make_features, make_rows

import ucore.index_evaluation as ie
from ucore import index_flat, sketch
from ucore.checkpoint import load_bank
from ucore.errors import DataError
from ucore.evaluate import best_ranks, instance_relevance, retrieval_ranks, similarity_matrix
from ucore.found_figures import plot_failures, plot_reliability
from ucore.hubness import correct_hubs
from ucore.index import GalleryIndex
from ucore.readers import caption_groups
from ucore.retrieve import Searcher


@pytest.fixture(scope="module")
def searcher(search_place) -> Searcher:
    return Searcher(search_place.index)


@pytest.fixture(params=[None, "val"])
def parts(request, searcher):
    gallery = ie.Gallery(searcher.index, request.param)
    images, texts = (searcher.index.features(positions) for positions in (gallery.images, gallery.texts))
    return request.param, gallery, images, texts


@pytest.fixture(autouse=True, params=[2, 64])
def first(request, monkeypatch):
    """Also with so few hits at first that most ranks need another look."""
    monkeypatch.setattr(ie, "FIRST", request.param)


def same(ranks, expected) -> None:
    for ours, theirs in zip(ranks, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tile_ranks_are_those_of_arrays(searcher, parts):
    split, gallery, images, texts = parts
    similarity = similarity_matrix(images, texts)
    same(ie.index_ranks(searcher, split), retrieval_ranks(similarity, gallery.image_of))
    groups = caption_groups(list(gallery.text_rows["text"]))
    aware = ie.index_ranks(searcher, split, same_caption=True)
    same(aware, retrieval_ranks(similarity, gallery.image_of, groups))


def test_ranks_with_hubs_corrected_are_those_of_arrays(searcher, search_place, parts):
    split, gallery, images, texts = parts
    bank = load_bank(search_place.checkpoint)
    similarity = correct_hubs(similarity_matrix(images, texts), images, texts, bank, searcher.temperature)
    same(ie.index_ranks(searcher, split, correct_hubs=True), retrieval_ranks(similarity, gallery.image_of))


def test_segment_ranks_are_those_of_arrays(searcher, parts):
    split, gallery, images, texts = parts
    similarity = similarity_matrix(texts, searcher.index.features(gallery.segments))
    best = np.full((len(texts), len(images)), -10.0, np.float32)
    for column, image in enumerate(gallery.image_of_segment):
        best[:, image] = np.maximum(best[:, image], similarity[:, column])
    expected = best_ranks(best, instance_relevance(gallery.image_of, len(images)))
    np.testing.assert_array_equal(ie.segment_ranks(searcher, split), expected)


def made_up(folder, tags: list[list[str]], angles: list[float]) -> Searcher:
    """Images at angles on a circle; one text, of the first image, at angle 0."""
    index = GalleryIndex.create(folder, {"root": "."}, 2)
    features = np.array([[np.cos(a), np.sin(a)] for a in [*angles, 0.0]], np.float32)
    names = [f"i{number}" for number in range(len(angles))]
    rows = pd.DataFrame({
        "item_id": [*(f"image:{name}" for name in names), "text:i0#0"], "kind": ["image"] * len(angles) + ["text"],
        "sample_id": [*names, "i0"], "tags": [*tags, tags[0]], "text": [""] * len(angles) + ["a caption"],
    })  # fmt: skip
    index.add(features, rows)
    searcher = Searcher.__new__(Searcher)
    searcher.index, searcher.place = index, index.place
    return searcher


def test_ndcg_by_hand(tmp_path):
    # Found in the order i2, i0, i1; gains 1/3 (one of three tags), 1, 0.
    searcher = made_up(tmp_path / "a", [["a=1", "b=1"], ["c=1"], ["a=1", "d=1"]], [0.2, 0.9, 0.1])
    expected = (1 / 3 + 1 / np.log2(3)) / (1 + (1 / 3) / np.log2(3))
    assert ie.semantic_ndcg(searcher) == pytest.approx([expected])
    assert len(ie.semantic_ndcg(made_up(tmp_path / "b", [[], ["c=1"]], [0.2, 0.9]))) == 0


def test_ties_count_against_the_model(tmp_path):
    searcher = made_up(tmp_path / "a", [["a=1"]] * 3, [0.2, 0.2, 0.9])
    assert ie.index_ranks(searcher)[1].tolist() == [2]


@pytest.mark.timeout(60)
def test_an_image_without_segments_comes_last(tmp_path):
    index = GalleryIndex.create(tmp_path, {"root": "."}, 2)
    rows = [
        ("image:a", "image", "a"),
        ("image:b", "image", "b"),
        ("text:a#0", "text", "a"),
        ("segment:b#0", "segment", "b"),
    ]
    frame = pd.DataFrame(rows, columns=["item_id", "kind", "sample_id"]).assign(tags=[[]] * 4, text="")
    index.add(np.tile(np.array([[1, 0]], np.float32), (4, 1)), frame)
    searcher = Searcher.__new__(Searcher)
    searcher.index, searcher.place = index, index.place
    assert ie.segment_ranks(searcher).tolist() == [2]


def test_the_worst_queries_are_the_last_ranked_of_different_images(searcher):
    ranks = ie.index_ranks(searcher)[1]
    worst = ie.worst_queries(searcher, ranks, n=3)
    assert worst[0]["rank"] == ranks.max() and len({failure["own"].sample_id for failure in worst}) == 3
    assert all(failure["why"] for failure in worst)
    for failure in worst:  # one kind of score on both sides
        found = [hit.score for hit in failure["found"]]
        assert found == sorted(found, reverse=True) and failure["own"].score < found[0] + 1e-6
        assert failure["rank"] > 1 and len(found) == 3
    assert plot_failures(searcher, worst).png().startswith(b"\x89PNG")


def test_reliability_is_drawn_with_what_was_said_and_what_was_so():
    picture = plot_reliability({"test captions": (0.05, ((0.1, 0.2, 10), (0.5, 0.5, 10)))})
    said, so = picture.axes[0].get_lines()[1].get_data()
    assert (list(said), list(so)) == ([0.1, 0.5], [0.2, 0.5])
    assert picture.alt == "test captions: off by 5.0 %" and picture.png().startswith(b"\x89PNG")
    assert plot_reliability({}, simulated=True).axes[0].get_title() == "simulated data"
    assert plot_reliability({"none": (0.05, ())}).png().startswith(b"\x89PNG")
    assert plot_reliability({}).png().startswith(b"\x89PNG")


def test_what_is_not_in_the_index_is_told(searcher):
    with pytest.raises(DataError, match="no captions of the split 'nothing'"):
        ie.index_ranks(searcher, "nothing")


# --- what an approximate search finds -------------------------------------------------------------------------------


def test_the_recall_of_approximate_searches_is_that_of_the_indexs_own_captions(tmp_path, monkeypatch):
    for name, value in (("FROM", 30), ("WORTH", 0), ("CANDIDATES", 12), ("A_HIT", 1), ("FEWEST", 1), ("VARIANCE", 0.3)):
        monkeypatch.setattr(sketch, name, value)  # a sketch of so few directions that it misses some
    monkeypatch.setattr(index_flat, "FROM", 30)
    rows = make_rows(500).assign(kind=["image"] * 400 + ["text"] * 100)
    features = make_features(500, 1, 64)
    index = GalleryIndex.create(tmp_path / "i", CARD, 64)
    index.add(features, rows)
    assert ie.approximate_recall(index) is None  # there is no sketch yet
    index.compact()
    percent, asked = ie.approximate_recall(index) or (0, 0)
    near = index.search(features[400:], 10, exact=False).positions
    found = index.rows(near.ravel())["item_id"].to_numpy().reshape(100, 10)
    right = np.argsort(-(features[400:] @ features[:400].T), axis=1)[:, :10]
    share = np.mean([len(set(own) & {f"i{n}" for n in of}) / 10 for own, of in zip(found, right, strict=True)])
    assert asked == 100 and percent == pytest.approx(100 * share) and 20 < percent < 99
    some = ie.approximate_recall(index, most=7)
    assert some and some[1] == 7 and ie.approximate_recall(index, most=7) == some
    monkeypatch.setattr(sketch, "CANDIDATES", 400)
    assert ie.approximate_recall(index) == (100, 100)


def test_an_index_without_captions_has_no_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(index_flat, "FROM", 30)
    monkeypatch.setattr(sketch, "WORTH", 0)
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(50), make_rows(50).assign(kind="image"))
    index.compact()
    assert not index.search(make_features(1), 3, exact=False).exact and ie.approximate_recall(index) is None
