"""Losses between domains against hand calculation and other implementations' values, and the gradient's reversal."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ucore.adversary import (
    DomainDiscriminator,
    balanced_accuracy,
    gradient_penalty,
    reversal_strength,
    reverse_gradient,
)
from ucore.losses import contrastive_loss
from ucore.transfer import (
    adversarial_loss,
    conditional_features,
    coral_loss,
    domain_triplet_loss,
    matched_loss,
    mmd_loss,
    normalised,
    random_maps,
)


def test_weights_are_normalised_once_whatever_the_batch() -> None:
    assert normalised(torch.tensor([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert normalised(torch.zeros(4)).tolist() == [0.25] * 4
    logits = torch.zeros(7)
    small = adversarial_loss(logits[:2], logits[:2], torch.full((2,), 0.5), torch.full((2,), 0.5))
    large = adversarial_loss(logits, logits, torch.full((7,), 1 / 7), torch.full((7,), 1 / 7))
    assert small.item() == pytest.approx(2 * math.log(2)) == large.item()


def test_adversarial_loss_is_the_papers_with_one_logit() -> None:
    source, target = torch.tensor([0.3, -1.2]), torch.tensor([2.0, 0.1, -0.4])
    w, v = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    by_hand = -(w * torch.sigmoid(source).log()).sum() - (v * (1 - torch.sigmoid(target)).log()).sum()
    assert adversarial_loss(source, target, w, v).item() == pytest.approx(by_hand.item(), rel=1e-6)
    even = F.binary_cross_entropy_with_logits(source, torch.ones(2)) + F.binary_cross_entropy_with_logits(
        target, torch.zeros(3)
    )
    assert adversarial_loss(source, target).item() == pytest.approx(even.item(), rel=1e-6)


def test_adversarial_loss_stays_finite_where_a_sigmoid_would_not() -> None:
    far = torch.tensor([2000.0, -2000.0], requires_grad=True)
    loss = adversarial_loss(far, far)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(far.grad).all()


def test_the_gradient_is_reversed_and_scaled_and_the_value_is_not() -> None:
    features = torch.tensor([1.0, -2.0], requires_grad=True)
    out = reverse_gradient(features, 0.3)
    assert out.tolist() == features.tolist()
    (out * torch.tensor([5.0, 7.0])).sum().backward()
    assert features.grad.tolist() == pytest.approx([-1.5, -2.1])


def test_reversal_begins_at_nothing_and_ends_near_one() -> None:
    values = [reversal_strength(done) for done in (0, 0.1, 0.5, 1)]
    assert values[0] == 0 and values == sorted(values) and 0.999 < values[-1] < 1


def test_a_discriminator_learns_and_an_encoder_against_it_hides_the_domain() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(400, 4) + 0.6, torch.randn(400, 4) - 0.6

    def accuracies(strength: float) -> list[float]:
        torch.manual_seed(1)
        encoder, judge = torch.nn.Linear(4, 4), DomainDiscriminator(4, hidden=16, dropout=0.0)
        torch.nn.init.eye_(encoder.weight)
        learning, judging = (torch.optim.Adam(part.parameters(), lr=3e-3) for part in (encoder, judge))
        found = []
        for _ in range(400):
            features = [encoder(part) for part in (source, target)]
            for _ in range(3):
                fixed = torch.cat(features).detach().requires_grad_()
                judging.zero_grad()
                logits = judge(fixed)
                (adversarial_loss(*logits.split(400)) + 0.1 * gradient_penalty(logits, fixed, 400)).backward()
                judging.step()
            logits = [judge(reverse_gradient(part, strength)) for part in features]
            learning.zero_grad()
            adversarial_loss(*logits).backward()
            learning.step()
            found.append(balanced_accuracy(*logits))
        return found[-100:]

    assert np.mean(accuracies(0.0)) > 85  # the encoder stands still: the domains are told apart
    assert np.mean(accuracies(1.0)) < 65


def test_the_gradient_penalty_of_a_plane_is_its_slope() -> None:
    features = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slope = torch.tensor([3.0, 4.0])
    assert gradient_penalty(features @ slope, features, 5).item() == pytest.approx(25.0)  # 25 / 2 at each side
    bowl = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 1.0]], requires_grad=True)  # slopes 2, 6 and 2
    assert gradient_penalty((bowl**2).sum(dim=1), bowl, 1).item() == pytest.approx(2 + (18 + 2) / 2)
    judge = DomainDiscriminator(2)
    gradient_penalty(judge(features), features, 5).backward()
    assert judge.layers[0].weight.grad.abs().max() > 0


def test_balanced_accuracy_counts_both_domains_alike() -> None:
    assert balanced_accuracy(torch.ones(1000), torch.tensor([1.0, -1.0])) == 75
    assert balanced_accuracy(torch.ones(10), torch.ones(3)) == 50


def test_coral_is_the_distance_of_covariances() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(9, 4)), 2 * rng.normal(size=(7, 4))
    by_numpy = ((np.cov(source.T) - np.cov(target.T)) ** 2).sum() / (4 * 4**2)
    assert coral_loss(torch.from_numpy(source), torch.from_numpy(target)).item() == pytest.approx(by_numpy)
    assert coral_loss(torch.from_numpy(source), torch.from_numpy(source + 5)).item() == pytest.approx(0, abs=1e-12)


def test_mmd_is_the_kernels_means_and_0_for_equal_sets() -> None:
    rng = np.random.default_rng(0)
    source, target = torch.from_numpy(rng.normal(size=(6, 3))), torch.from_numpy(rng.normal(size=(5, 3)) + 1)
    both = torch.cat([source, target])
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    middle = squared.sum() / (11 * 10)
    kernel = sum(torch.exp(-squared / (middle * 2.0**power)) for power in (-2, -1, 0, 1, 2)) / 5
    w = torch.tensor([1 / 6] * 6 + [-1 / 5] * 5, dtype=torch.float64)
    assert mmd_loss(source, target).item() == pytest.approx((w @ kernel @ w).item())
    assert mmd_loss(source, source.clone()).item() == pytest.approx(0, abs=1e-12)
    assert mmd_loss(source, target + 3) > mmd_loss(source, target) > 0


def test_conditional_features_are_outer_products() -> None:
    seen = conditional_features(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]]))
    assert seen.tolist() == [[0.25, 0.5, 0.75, 1.5]]


def test_triplet_takes_the_hardest_negative_of_the_same_domain() -> None:
    images = torch.tensor([[0.0, 0.0], [3.0, 0.0], [9.0, 9.0]])
    texts = torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
    positives = torch.eye(3, dtype=torch.bool)
    positives[0, 2] = positives[2, 0] = True  # equal texts: no negatives of each other
    # image 0: own text at 1, nearest negative at 3; image 1: 0, sqrt(10); image 2: sqrt(81 + 64), sqrt(36 + 81)
    expected = [max(0, 2.5 + 1 - 3), 0.0, 2.5 + math.sqrt(145) - math.sqrt(117)]
    loss = domain_triplet_loss(images, texts, positives, 2.5)
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-6)
    weights = torch.tensor([0.5, 0.5, 0.0])
    assert domain_triplet_loss(images, texts, positives, 2.5, weights).item() == pytest.approx(0.25, rel=1e-6)
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert domain_triplet_loss(images, texts, everything, 2.5).item() == 0


def test_chances_count_by_what_of_them_lies_in_the_batch() -> None:
    torch.manual_seed(0)
    similarity, scale = torch.randn(3, 3), torch.tensor(1.3)
    certain = torch.eye(3)
    assert matched_loss(similarity, scale, certain, certain).item() == pytest.approx(
        contrastive_loss(similarity, scale).item(), rel=1e-6
    )
    elsewhere = torch.cat([similarity, torch.randn(3, 1)], dim=1)  # a text whose image is not in the batch
    chances = torch.cat([certain, torch.full((3, 1), 1e-9)], dim=1)
    with_text = matched_loss(elsewhere, scale, chances, chances).item()
    forth = F.cross_entropy(scale.exp() * elsewhere, torch.arange(3)).item()
    back = F.cross_entropy(scale.exp() * similarity.T, torch.arange(3)).item()
    assert with_text == pytest.approx((forth + back) / 2, rel=1e-5)


def test_the_randomised_map_has_the_outer_products_inner_products() -> None:
    generator = torch.Generator().manual_seed(4)
    features = F.normalize(torch.randn(6, 16, generator=generator), dim=1)
    memberships = torch.softmax(2 * torch.randn(6, 5, generator=generator), dim=1)
    whole = conditional_features(features, memberships)
    mapped = conditional_features(features, memberships, random_maps(16, 5, 200_000, seed=0))
    assert mapped.shape == (6, 200_000)
    assert torch.allclose(mapped @ mapped.T, whole @ whole.T, atol=0.02)
    assert (whole @ whole.T).diagonal().min() > 0.1  # so that the bound is of something
    small = [random_maps(16, 5, 8, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(small[0][0], small[1][0]) and not torch.equal(small[0][1], small[2][1])


@pytest.fixture(scope="module")
def skada() -> Any:
    pytest.importorskip("skada", reason="skada, the independent oracle, is not installed: pip install skada skorch")
    from skada.deep import _adversarial, losses

    return losses, _adversarial


def test_losses_equal_skadas_on_the_same_features(skada: Any) -> None:
    losses, adversarial = skada
    generator = torch.Generator().manual_seed(3)
    source, target = torch.randn(9, 5, generator=generator), 0.5 + 2 * torch.randn(7, 5, generator=generator)
    assert coral_loss(source, target).item() == pytest.approx(losses.deepcoral_loss(source, target).item(), rel=1e-5)

    both = torch.cat([source, target])
    middle = torch.pdist(both).square().mean()

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(x, y).square()
        return torch.stack([torch.exp(-distances / (middle * scale)) for scale in (0.25, 0.5, 1, 2, 4)]).mean(0)

    expected = losses._maximum_mean_discrepancy(source, target, kernel)
    assert mmd_loss(source, target).item() == pytest.approx(expected.item(), rel=1e-4)

    logits = torch.randn(9, generator=generator), torch.randn(7, generator=generator)
    chances = [torch.sigmoid(-part) for part in logits]  # skada's label of the source is 0
    expected = adversarial.DANNLoss()(*chances)
    assert adversarial_loss(*logits).item() == pytest.approx(expected.item(), rel=1e-5)
    expected = adversarial.CDANLoss()(*chances, source, target)
    assert adversarial_loss(*logits).item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_cdans_discriminator_sees_is_skadas_multilinear_map(skada: Any) -> None:
    seen: list[torch.Tensor] = []

    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.classes = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.classes(self.features(rows)), dim=1)

    class Watching(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(rows)
            return rows.sum(1)

    torch.manual_seed(0)
    module = skada[1].CDANModule(Base(), "features", Watching())
    memberships, _, features, _, _ = module.train()(torch.randn(8, 4))
    assert torch.allclose(conditional_features(features, memberships), seen[0], atol=1e-6)
