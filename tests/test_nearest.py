"""The exact search gives what sorting all scores gives, to the bit, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers_index import make_features

from ucore import cells, nearest


def brute_force(vectors, queries, k, rows=None):
    """Every score, summed in float64, in a stable order."""
    rows = np.arange(len(vectors)) if rows is None else rows
    scores = (queries.astype(np.float64) @ vectors[rows].astype(np.float64).T).astype(np.float32)
    positions = np.full((len(queries), k), -1)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for number, of_query in enumerate(scores):
        order = sorted(range(len(rows)), key=lambda row: (-of_query[row], rows[row]))[:k]
        positions[number, : len(order)], best[number, : len(order)] = rows[order], of_query[order]
    return positions, best


def assert_same(got, wanted):
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(got[1], wanted[1])
    assert got[0].dtype == np.int64 and got[1].dtype == np.float32


@pytest.fixture
def small_blocks(monkeypatch):
    """So that few rows take all the ways that many rows do."""
    monkeypatch.setattr(nearest, "BLOCK", 64)
    monkeypatch.setattr(nearest, "SEVERAL", 1000)


@pytest.mark.parametrize("count", [1, 3, 40], ids=["one query", "few", "many"])
@pytest.mark.parametrize("share", [None, 0.03, 0.3, 0.9])
def test_same_as_sorting_all_scores(small_blocks, count, share):
    vectors, queries = make_features(700, 1, 20), make_features(count, 2, 20)
    rows = None if share is None else np.flatnonzero(np.random.default_rng(3).random(700) < share)
    for k in (1, 10, 100, 800):
        assert_same(nearest.nearest(vectors, queries, k, rows), brute_force(vectors, queries, k, rows))


@pytest.mark.parametrize("count", [1, 40])
def test_equal_rows_come_in_their_order_however_many(small_blocks, count):
    vectors = make_features(900, 1, 24)
    vectors[100:400] = vectors[5]  # a caption that 300 pictures share
    vectors[450:460] = -vectors[5]
    queries = np.concatenate([vectors[5:6], make_features(count - 1, 2, 24)])
    found, scores = nearest.nearest(vectors, queries, 10)
    assert found[0].tolist() == [5, *range(100, 109)] and len(set(scores[0])) == 1
    odd = np.arange(1, 900, 2)
    assert_same(nearest.nearest(vectors, queries, 30, odd), brute_force(vectors, queries, 30, odd))


def test_many_rows_of_few_queries_are_scored_some_at_a_time(monkeypatch):
    vectors, queries = make_features(300, 1, 20), make_features(3, 2, 20)
    rows = np.random.default_rng(0).integers(0, 300, (3, 250))
    whole, seen = nearest.rescore(vectors, queries, rows), []
    monkeypatch.setattr(nearest, "AT_ONCE", 20 * 64)
    einsum = np.einsum
    monkeypatch.setattr(np, "einsum", lambda *given: (seen.append(given[1].shape[:2]), einsum(*given))[1])
    np.testing.assert_array_equal(nearest.rescore(vectors, queries, rows), whole)
    assert max(a * b for a, b in seen) <= 64 and sum(a * b for a, b in seen) == 750
    assert nearest.rescore(vectors, queries, rows[:, :0]).shape == (3, 0)


def test_rows_whose_scores_float32_confuses_are_told_apart():
    """Scores that differ by a part in 10^7: a sum in float32 may put them in another order."""
    rng = np.random.default_rng(0)
    base = make_features(1, 0, 512)
    vectors = (base + rng.standard_normal((2000, 512)) * 1e-7).astype(np.float32)
    assert_same(nearest.nearest(vectors, base, 10), brute_force(vectors, base, 10))


def test_nothing_to_find():
    queries = make_features(2)
    for rows in (np.zeros((0, 8), np.float32), make_features(5)):
        positions, scores = nearest.nearest(rows, queries, 3, np.zeros(0, np.int64))
        assert (positions == -1).all() and np.isneginf(scores).all()
    assert (nearest.nearest(np.zeros((0, 8), np.float32), queries, 3)[0] == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 30), st.integers(0, 10_000), st.booleans())
def test_any_size_with_few_distinct_values(count, queries, k, seed, filtered):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (count, 4)).astype(np.float32)  # many ties, all scores exact
    asked = rng.integers(-1, 2, (queries, 4)).astype(np.float32)
    rows = np.flatnonzero(rng.random(count) < 0.5) if filtered else None
    assert_same(nearest.nearest(vectors, asked, k, rows, scale=2.0), brute_force(vectors, asked, k, rows))


def test_cells_that_are_all_opened_are_exact_and_few_find_most(monkeypatch):
    centres = make_features(40, 1, 16)
    number = np.random.default_rng(2).integers(0, 40, 4000)
    vectors = centres[number] + 0.05 * np.random.default_rng(3).standard_normal((4000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[::100] + 0.01
    made = cells.Cells.learn(vectors, np.arange(4000))
    again = cells.Cells.learn(vectors, np.arange(4000))
    np.testing.assert_array_equal(made.cell, again.cell)
    assert made.cell.shape == (4000,) and abs(len(made.centroids) - 4 * 4000**0.5) < 10
    assert made.cell.min() >= 0 and made.cell.max() < len(made.centroids)
    more = vectors[::8] + 0.03 * np.random.default_rng(5).standard_normal((500, 16)).astype(np.float32)
    best = np.argmax(more @ made.centroids.T, axis=1)
    given = made.assign(more)
    assert np.mean(given == best) > 0.95  # of the nearest group, not of all cells
    near = np.einsum("nd,nd->n", more, made.centroids[given]), np.einsum("nd,nd->n", more, made.centroids[best])
    assert np.mean(near[1] - near[0]) < 0.05 and given.dtype == np.int32
    for share in (1.0, 0.25, 0.02):
        allowed = np.random.default_rng(4).random(4000) < share
        wanted = brute_force(vectors, queries, 10, np.flatnonzero(allowed))
        assert_same(made.search(vectors, queries, 10, allowed, look=4000), wanted)
        found = made.search(vectors, queries, 10, allowed, look=400)[0]
        assert np.mean([len(set(a) & set(b)) for a, b in zip(found, wanted[0], strict=True)]) >= 9.5
    assert_same(made.search(vectors, queries, 10, None, look=5000), brute_force(vectors, queries, 10))
    few = np.arange(4000) < 7  # fewer than k
    assert_same(made.search(vectors, queries, 10, few, look=1), brute_force(vectors, queries, 10, np.arange(7)))
    assert (made.search(vectors, queries, 3, np.zeros(4000, bool))[0] == -1).all()


def test_narrow_filters_open_more_cells():
    """What the filter lets through lies far from the query: the nearest cells hold nothing of it."""
    vectors = np.concatenate([make_features(3000, 1, 8) + [3] * 8, make_features(300, 2, 8) - [3] * 8])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    made = cells.Cells.learn(vectors, np.arange(3300))
    far = np.arange(3300) >= 3000
    found = made.search(vectors, vectors[:5], 10, far, look=300)
    assert_same(found, brute_force(vectors, vectors[:5], 10, np.flatnonzero(far)))
