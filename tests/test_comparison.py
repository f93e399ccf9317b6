"""The interval of a difference over queries and seeds, against a slow computation query by query."""

import numpy as np
import pytest

from ucore.comparison import pooled_difference, seeded_difference
from ucore.errors import ConfigError, DataError
from ucore.evaluate import metrics_from_ranks, paired_difference

OWNER = np.array([0, 0, 1, 2, 2, 2, 4, 4, 5])  # the fourth image has no text


def made(seed: int, better: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(1 + np.floor(rng.exponential(8 - better, n)).astype(int) for n in (5, len(OWNER)))  # type: ignore[return-value]


def test_with_one_seed_it_is_the_paired_difference():
    expected = paired_difference(made(0), made(1), OWNER, seed=7, n_resamples=200)
    assert seeded_difference([made(0)], [made(1)], OWNER, seed=7, n_resamples=200) == pytest.approx(expected, abs=1e-9)


def test_images_and_seeds_are_drawn_again_together():
    ours, base = [made(n, better=4) for n in range(3)], [made(n + 10) for n in range(3)]
    owner = np.unique(OWNER, return_inverse=True)[1]
    rng, values = np.random.default_rng(0), []
    for _ in range(3000):
        times, picked = np.bincount(rng.integers(5, size=5), minlength=5), rng.integers(3, size=3)
        draws = [
            metrics_from_ranks(np.repeat(i2t, times), np.repeat(t2i, times[owner]))["mR"] * sign
            for side, sign in ((ours, 1), (base, -1))
            for i2t, t2i in (side[number] for number in picked)
        ]
        values.append(sum(draws) / 3)
    difference, low, high = seeded_difference(ours, base, OWNER, n_resamples=3000)
    plain = [metrics_from_ranks(*a)["mR"] - metrics_from_ranks(*b)["mR"] for a, b in zip(ours, base, strict=True)]
    assert difference == pytest.approx(np.mean(plain))
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=2.5)
    assert low < difference < high


def test_equal_sides_differ_by_nothing():
    assert seeded_difference([made(0), made(1)], [made(0), made(1)], OWNER) == (0, 0, 0)


def test_what_does_not_pair_up_is_refused():
    with pytest.raises(DataError, match="2 and 1 seeds"):
        seeded_difference([made(0), made(1)], [made(0)], OWNER)
    with pytest.raises(DataError, match="5 images and 9 texts"):
        seeded_difference([(made(0)[0][:3], made(0)[1])], [made(0)], OWNER)
    with pytest.raises(ConfigError, match="n_resamples"):
        seeded_difference([made(0)], [made(0)], OWNER, n_resamples=0)


def test_several_directions_count_the_same_and_share_seeds_and_the_queries_of_a_gallery():
    ours, base = [made(0, 4), made(1, 4)], [made(10), made(11)]
    alone = seeded_difference(ours, base, OWNER)
    twice = pooled_difference([("a", ours, base, OWNER), ("a", ours, base, OWNER)])
    apart = pooled_difference([("a", ours, base, OWNER), ("b", ours, base, OWNER)])
    assert twice[0] == apart[0] == pytest.approx(alone[0])
    # The same queries twice say nothing new; other queries do: by the square root of two less, were it not for seeds.
    assert twice[2] - twice[1] == pytest.approx(alone[2] - alone[1], rel=0.1)
    assert (alone[2] - alone[1]) / 2**0.5 - 1 < apart[2] - apart[1] < 0.9 * (alone[2] - alone[1])
    one = pooled_difference([("a", ours[:1], base[:1], OWNER), ("b", ours[:1], base[:1], OWNER)])
    single = seeded_difference(ours[:1], base[:1], OWNER)
    assert one[2] - one[1] == pytest.approx((single[2] - single[1]) / 2**0.5, rel=0.1)
    back = pooled_difference([("a", ours, base, OWNER), ("b", base, ours, OWNER)])
    assert back[0] == pytest.approx(0) and back[1] < 0 < back[2]
    with pytest.raises(DataError, match="no direction"):
        pooled_difference([])
