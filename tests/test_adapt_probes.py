"""What is seen of an adaptation: planes that follow, domains told apart, what was offered and taken."""

from typing import Any

import numpy as np
import pytest
import torch

from ucore.adapt import Adapter
from ucore.adapt_config import AdaptConfig
from ucore.adapt_probes import Cycle, DomainProbe, SmoothPlane
from ucore.adversary import fresh_accuracy

SMALL: dict[str, Any] = dict(head_epochs=2, head_batch_size=8, target_batch_size=4, train_views=1, test_views=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def new_adapter(sides, cache, tiny_clip_factory):
    def make(method="paper", **changes):
        config = AdaptConfig.of(method, **{**SMALL, **changes})
        return Adapter(tiny_clip_factory(), *sides, config, None, cache, progress=False)

    return make


# --- planes ---------------------------------------------------------------------------------------------------


def spread(seed: int, widths: list[float], n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, len(widths))) * widths


def test_the_first_plane_is_that_of_the_principal_components():
    from scipy.linalg import subspace_angles

    source, target = spread(0, [1, 3, 1, 2]), spread(1, [1, 3, 1, 2], 50) + np.array([0, 0, 0, 4])
    plane = SmoothPlane()
    points = plane(source, target)
    both = np.concatenate([source, np.repeat(target, 6, axis=0)])  # both domains count alike
    expected = np.linalg.eigh(np.cov(both.T))[1][:, -2:]
    assert np.degrees(subspace_angles(plane.basis, expected)).max() < 0.5
    assert np.allclose(plane.basis.T @ plane.basis, np.eye(2))
    assert np.linalg.norm(points[1].mean(axis=0) - points[0].mean(axis=0)) == pytest.approx(4, abs=0.4)


def test_points_of_features_that_stay_stay_and_a_mirrored_plane_is_never_shown():
    source, target = spread(2, [3, 2.9, 1, 1]), spread(3, [3, 2.9, 1, 1])
    plane = SmoothPlane()
    before = plane(source, target)
    for seed in range(10):  # noise that would swap and mirror nearly equal components
        noise = np.random.default_rng(seed).normal(size=(2, 300, 4)) * 0.05
        after = plane(source + noise[0], target + noise[1])
        assert np.linalg.norm(after[0] - before[0], axis=1).max() < 0.6
        before = after


def test_the_plane_swings_to_another_widest_direction_step_by_step():
    old, new = spread(4, [3, 2, 0.1]), spread(4, [3, 0.1, 2.5])
    plane = SmoothPlane()
    plane(old, old)
    assert np.abs(plane.basis[2]).max() < 0.05
    moved = []
    for _ in range(12):
        basis = plane.basis.copy()
        plane(0.95 * new + 0.05 * old, new)
        moved.append(np.linalg.norm(plane.basis - basis))
    assert np.abs(plane.basis[2]).max() > 0.99
    assert max(moved) < 1.5 and moved[-1] < 0.01  # a jump to an orthogonal direction would be the root of 2


# --- told apart -----------------------------------------------------------------------------------------------


def test_a_fresh_classifier_tells_what_differs_and_guesses_where_nothing_does():
    alike = [fresh_accuracy(spread(seed, [1] * 20), spread(seed + 50, [1] * 20, 100)) for seed in range(5)]
    assert 45 < np.mean(alike) < 55
    assert fresh_accuracy(spread(0, [1] * 20), spread(1, [1] * 20, 60) + 2) > 97
    far = np.zeros(20)
    far[0] = 1.683  # half of this from the middle: Phi(0.8416) = 0.80
    assert fresh_accuracy(spread(0, [1] * 20, 4000), spread(1, [1] * 20, 4000) + far) == pytest.approx(80, abs=2)


def test_a_fresh_classifier_finds_the_same_direction_from_either_matrix():
    sides = [spread(0, [1] * 20), spread(1, [1] * 20, 60) + 0.4]
    wide = [np.pad(part, ((0, 0), (0, 480))) for part in sides]  # more columns than samples, and nothing in them
    told = fresh_accuracy(*sides)
    assert 60 < told < 95 and fresh_accuracy(*wide) == told


def test_a_fresh_classifier_makes_do_with_very_few_samples():
    few = np.eye(3)[:2]
    assert fresh_accuracy(few, few[:1]) == 50
    assert 0 <= fresh_accuracy(few, few + 1) <= 100


# --- an adapter -----------------------------------------------------------------------------------------------


def test_what_was_offered_and_taken_is_counted_pass_by_pass(new_adapter):
    adapter = new_adapter(head_epochs=3)
    probe = DomainProbe(adapter)
    assert probe.cycles == [] and len(probe.told) == 1
    while adapter.step():
        probe.observe()
        probe.observe()  # a second look at the same step
    assert [cycle.number for cycle in probe.cycles] == [0, 1, 2]  # 9 steps, three a pass
    assert [cycle.steps for cycle in probe.cycles] == [3, 3, 3]
    assert [int(cycle.offered.sum()) for cycle in probe.cycles] == [24, 24, 24]
    assert [int(cycle.taken.sum()) for cycle in probe.cycles] == [3 * 2, 3 * 3, 3 * 4]  # of 8: 0.2, 0.4, 0.6
    assert all(cycle.weight.sum() == pytest.approx(3) for cycle in probe.cycles)
    assert all((cycle.taken <= cycle.offered).all() for cycle in probe.cycles)
    assert probe.cycles[2].share == 50


def test_both_domains_are_told_apart_at_every_step_and_asked_anew_at_an_epochs_end(new_adapter):
    adapter = new_adapter("dann")
    probe = DomainProbe(adapter)
    adapter.fit(on_step=probe.observe)
    assert [row["step"] for row in probe.told] == list(range(7))
    assert [row["step"] for row in probe.told if "fresh_image" in row] == [0, 3, 6]
    assert [row["step"] for row in probe.told if "text" in row] == list(range(6))  # 6: the weights kept are others
    assert all(0 <= value <= 100 for row in probe.told for key, value in row.items() if key != "step")
    plain = new_adapter("source-only")
    probe = DomainProbe(plain)
    plain.step()
    probe.observe()
    assert set(probe.told[0]) == {"step", "fresh_image", "fresh_text"} and set(probe.told[1]) == {"step"}


def test_the_discriminators_share_is_what_their_logits_say(new_adapter):
    adapter = new_adapter("dann")
    probe = DomainProbe(adapter)
    with torch.no_grad():
        adapter.phase.discriminators["image"].layers[-1].bias.fill_(100.0)  # says source of everything
    adapter.step()
    probe.observe()
    assert probe.told[-1]["image"] == 50


def test_looking_on_changes_nothing(new_adapter):
    watched, alone = new_adapter(), new_adapter()
    probe = DomainProbe(watched)
    watched.fit(on_step=probe.observe)
    alone.fit()
    losses = [[row["loss"] for row in adapter.history] for adapter in (watched, alone)]
    assert losses[0] == losses[1]
    weights = [adapter.encoder.image_head.contract.weight for adapter in (watched, alone)]
    assert torch.equal(*weights)


def test_a_restart_forgets_and_a_finished_adapter_can_be_looked_at(new_adapter):
    adapter = new_adapter()
    probe = DomainProbe(adapter)
    first = probe.first
    adapter.fit(on_step=probe.observe)
    late = DomainProbe(adapter)
    assert late.cycles == [] and set(late.told[0]) == {"step", "fresh_image", "fresh_text"}
    adapter.reset()
    probe.restart()
    assert probe.cycles == [] and [row["step"] for row in probe.told] == [0]
    assert np.array_equal(probe.first.source["image"], first.source["image"])


def test_a_cycle_without_offers_has_a_share_of_zero():
    assert Cycle(0, np.zeros(3, int), np.zeros(3, int), np.zeros(3)).share == 0
