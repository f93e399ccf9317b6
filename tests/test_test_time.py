"""Queries that move while they are answered: the losses by hand, the head as it was, shifted queries brought back."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ucore.heads import Head
from ucore.test_time import _loss, _trusted, adapt_queries, entropies


def plain_head(width: int = 16) -> Head:
    torch.manual_seed(0)
    return Head(width, width, 8, 0.0, residual=True).eval()


def test_entropy_is_that_of_the_softmax():
    found = entropies(torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)


def test_the_closest_pairs_are_trusted():
    query = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2], [0.3, -1.0]]), dim=1)
    candidates = query.clone()
    candidates[3] = -query[3]
    unsure, gap = _trusted(query, candidates, 0.1)
    rows = query[:3] @ candidates.T / 0.1
    assert unsure <= entropies(rows).max() + 1e-6  # the pair that points apart is not among them
    assert gap.item() == pytest.approx(0, abs=1e-6)


def test_unsure_queries_count_less_and_the_gap_is_held():
    query = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    most = entropies(query @ query.T / 0.1).max()
    spread = torch.exp(-0.1 * (query - query.mean(0)).norm(dim=1)).mean()
    nothing = _loss(query, query, 0.1, torch.tensor(0.0), torch.tensor(0.5))  # no entropy is below 0: all weights are 0
    assert nothing.item() == pytest.approx(spread.item() + 0.25, abs=1e-6)
    assert _loss(query, query, 0.1, most, torch.tensor(0.5)) > nothing


def test_the_head_stays_as_it_is_and_the_same_seed_gives_the_same():
    head = plain_head()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(30, 16, generator=generator), torch.randn(50, 16, generator=generator)
    gallery = F.normalize(gallery, dim=1).numpy()
    found = [adapt_queries(head, queries, gallery, 0.05, batch_size=16, seed=4) for _ in range(2)]
    assert np.array_equal(*found) and np.allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    still = adapt_queries(head, queries, gallery, 0.05, steps=0)
    with torch.no_grad():
        assert np.allclose(still, F.normalize(head(queries), dim=1).numpy(), atol=1e-6)


def test_a_batch_of_queries_moves_down_its_loss():
    generator = torch.Generator().manual_seed(2)
    gallery = F.normalize(torch.randn(40, 16, generator=generator), dim=1)
    queries = gallery + 0.25 * torch.randn(40, 16, generator=generator) + torch.ones(16)  # a shift of them all
    losses = []
    for steps in (0, 2, 20):
        found = torch.from_numpy(adapt_queries(plain_head(), queries, gallery.numpy(), 0.05, steps=steps, lr=0.003))
        start = torch.from_numpy(adapt_queries(plain_head(), queries, gallery.numpy(), 0.05, steps=0))
        trusted = _trusted(start, gallery[(start @ gallery.T).argmax(1)], 0.05)
        losses.append(_loss(found, gallery[(found @ gallery.T).argmax(1)], 0.05, *trusted).item())
    assert losses[0] > losses[1] > losses[2]
