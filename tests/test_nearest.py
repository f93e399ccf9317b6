"""The exact search gives what sorting all scores gives, to the bit, ties included."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers_index import make_features

from ucore import nearest, sketch


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


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    """Those of its parent are not there: a search that waited for them would never end."""
    monkeypatch.setattr(nearest, "SEVERAL", 1000)
    monkeypatch.setattr(nearest.faiss_module(), "omp_get_max_threads", lambda: 2)
    vectors, queries = make_features(700, 1, 20), make_features(1, 2, 20)
    wanted, context = nearest.nearest(vectors, queries, 10), multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(nearest.nearest(vectors, queries, 10)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert_same(answers.get(), wanted)


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


# --- sketches -----------------------------------------------------------------------------------------------------


def sketched(vectors, plain=None):
    made = sketch.Sketch.learn(vectors, np.arange(len(vectors)), plain or vectors.shape[1])
    return replace(made, codes=made.encode(vectors))


def in_few_directions(count, seed, width=96, directions=20):
    """Rows that differ in falling strength along a few directions, and a little in all others; around one mean."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((directions, width)) / np.arange(1, directions + 1)[:, None] ** 0.5
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, directions)) @ basis + 0.05 * rng.standard_normal((count, width)) + 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("share", [None, 0.5, 0.01])
def test_a_sketch_finds_what_all_rows_would_and_scores_it_the_same(monkeypatch, count, share):
    monkeypatch.setattr(sketch, "SEVERAL", 1000)  # so that several threads have a part each
    vectors = in_few_directions(20_001, 1)
    queries = -in_few_directions(count, 2) + 0.1 * make_features(count, 3, 96)  # far from every row
    allowed = None if share is None else np.random.default_rng(4).random(len(vectors)) < share
    made = sketched(vectors)
    found, scores = made.search(vectors, queries, 10, allowed)
    wanted, best = brute_force(vectors, queries, 10, None if allowed is None else np.flatnonzero(allowed))
    assert found.dtype == np.int64 and (allowed is None or allowed[found].all())
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)]) >= 9.9
    same = found == wanted
    np.testing.assert_array_equal(scores[same], best[same])
    assert made.axes.shape[1] == 64 and made.codes.dtype == np.uint8


def test_sketched_products_are_those_of_whole_numbers():
    """FAISS multiplies bytes: candidates are the largest sums of products of whole numbers, to the last."""
    vectors = in_few_directions(900, 1)
    made = sketched(vectors)
    asked = np.random.default_rng(2).integers(-127, 128, (3, 64)).astype(np.float32)
    sums = asked @ (made.codes.astype(np.float32) - 128).T
    made_up = made._asked(1e37 * make_features(3, 1, 96))  # does not overflow
    assert abs(made_up).max(axis=1).tolist() == [127] * 3 and (made_up == np.rint(made_up)).all()
    assert not made._asked(np.zeros((1, 96), np.float32)).any()
    for row, found in enumerate(made._candidates(asked, 50, None)):
        assert sorted(sums[row, found]) == sorted(np.sort(sums[row])[-50:])


def test_the_direction_of_the_mean_is_kept_though_rows_hardly_differ_along_it():
    """Queries of the other modality may weigh it most: 0.2 % of the rows are candidates, in a flat spectrum."""
    rng = np.random.default_rng(0)
    strength = np.append(0.4, np.arange(1, 151) ** -0.4 * 0.1)
    basis = np.linalg.qr(rng.standard_normal((256, 151)))[0].T

    def drawn(count, along):
        rows = rng.standard_normal((count, 151)) * strength
        rows[:, 0] = along
        rows = (rows @ basis).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    vectors, queries = drawn(20_000, 0.8), drawn(40, -2.0)
    made = sketched(vectors)
    assert made.axes.shape[1] < 128
    found = made._candidates(made._asked(queries), 40, None)
    wanted = brute_force(vectors, queries, 10)[0]
    assert np.mean([np.isin(best, of).mean() for best, of in zip(wanted, found, strict=True)]) > 0.95


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_of_equal_rows_the_first_are_found_however_many_threads_there_are(monkeypatch, parts):
    monkeypatch.setattr(sketch, "SEVERAL", 1 if parts > 1 else 2**60)
    monkeypatch.setattr(nearest.faiss_module(), "omp_get_max_threads", lambda: parts)
    vectors = in_few_directions(9000, 1)
    vectors[np.random.default_rng(0).choice(9000, 3000, replace=False)] = vectors[0]
    made = sketched(vectors)
    assert len(made._parts) == parts
    assert_same(made.search(vectors, vectors[:1], 5, None), brute_force(vectors, vectors[:1], 5))


def test_many_queries_are_asked_some_at_a_time(monkeypatch):
    vectors, queries = in_few_directions(3000, 1), in_few_directions(50, 2)
    made = sketched(vectors)
    whole = made.search(vectors, queries, 10, None)
    monkeypatch.setattr(sketch, "AT_ONCE", 7)
    assert_same(made.search(vectors, queries, 10, None), whole)
    assert sketch.Sketch.pays(25_001, 20) and not sketch.Sketch.pays(25_001, 21)


def test_a_sketch_needs_as_many_directions_as_hold_the_variance():
    assert 350 < sketched(make_features(4000, 1, 512)).axes.shape[1] <= 416  # alike in all directions
    few = sketched(in_few_directions(4000, 1, 512))
    assert few.axes.shape[1] == 64
    lengths = np.linalg.norm(few.axes, axis=0)
    np.testing.assert_allclose(few.axes.T @ few.axes, np.eye(64) * lengths[0] ** 2, atol=lengths[0] ** 2 * 1e-4)
    assert abs(few.codes.astype(int) - 128).max() == 127  # nothing is cut, and all of the byte is used
    poor = make_features(500, 1, 20) @ make_features(20, 2, 96) + 0.2  # its rows differ in 20 directions alone
    axes = sketched(poor).axes
    lengths = np.linalg.norm(axes, axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(64) * lengths[0] ** 2, atol=lengths[0] ** 2 * 1e-4)
    mean = poor.mean(axis=0)
    assert axes[:, 0] @ mean == pytest.approx(np.linalg.norm(mean) * lengths[0], rel=1e-4)
    narrow = sketched(make_features(500, 1, 5))
    assert narrow.axes.shape == (5, 64) and np.linalg.matrix_rank(narrow.axes) == 5


def test_fewer_rows_than_hits_and_none():
    vectors = in_few_directions(600, 1)
    made = sketched(vectors)
    few = np.arange(600) < 7
    found, scores = made.search(vectors, vectors[:2], 10, few)
    assert_same((found, scores), brute_force(vectors, vectors[:2], 10, np.arange(7)))
    found, scores = made.search(vectors, vectors[:2], 3, np.zeros(600, bool))
    assert (found == -1).all() and np.isneginf(scores).all()
    assert_same(made.search(vectors, vectors[:1], 600, None), brute_force(vectors, vectors[:1], 600))
    flat = np.ones((600, 8), np.float32)  # rows that do not differ at all
    assert sketched(flat).search(flat, flat[:1], 5, None)[0].tolist() == [[0, 1, 2, 3, 4]]


def test_the_bias_of_hubs_keeps_its_weight():
    """Behind the features: it differs less than any of them, and decides."""
    plain = in_few_directions(5000, 1)
    vectors = np.zeros((5000, 104), np.float32)
    vectors[:, :96] = plain
    vectors[:, 96] = np.random.default_rng(5).uniform(-0.2, 0, 5000)
    queries = np.zeros((20, 104), np.float32)
    queries[:, :96] = in_few_directions(20, 2)
    made = sketched(vectors, 96)
    for weight in (0, 1):
        queries[:, 96] = weight
        found = made.search(vectors, queries, 10, None)[0]
        wanted = brute_force(vectors, queries, 10)[0]
        assert np.mean([len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)]) >= 9.9
