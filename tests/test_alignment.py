"""Sets of segments against texts, on cases that can be worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from ucore import alignment
from ucore.alignment import SegmentPool, has_segments, present_of
from ucore.errors import ConfigError

KINDS = ("mean", "attention", "late")


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_places_beyond_the_count_are_empty():
    present = present_of(torch.tensor([0, 2, 3]), 3)
    assert present.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert has_segments(present).tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_counts_nowhere(kind):
    pool, texts = SegmentPool(kind, 8), unit(5, 8, seed=2)
    if kind == "attention":
        torch.nn.init.normal_(pool.attend[2].weight, generator=torch.Generator().manual_seed(3))
    segments, present = unit(3, 4, 8, seed=1), present_of(torch.tensor([2, 4, 0]), 4)
    scores = pool(segments, present, texts)
    for padding in (torch.nan, torch.inf, 7.0):
        other = torch.where(present[..., None], segments, padding)
        torch.testing.assert_close(pool(other, present, texts), scores)
    torch.testing.assert_close(pool(segments[:1, :2], present[:1, :2], texts), scores[:1])
    assert (scores[2] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_segment_is_its_cosine(kind):
    segments, texts = unit(4, 1, 8, seed=1), unit(5, 8, seed=2)
    scores = SegmentPool(kind, 8)(segments, torch.ones(4, 1, dtype=torch.bool), texts)
    torch.testing.assert_close(scores, segments[:, 0] @ texts.T)


def test_the_mean_and_the_best_by_hand():
    segments, present = torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool)
    text = torch.tensor([[1.0, 0.0]])
    assert SegmentPool("mean")(segments, present, text).item() == pytest.approx(math.sqrt(0.5))
    assert SegmentPool("attention", 2)(segments, present, text).item() == pytest.approx(math.sqrt(0.5))  # untrained
    assert SegmentPool("late", temperature=1e-3)(segments, present, text).item() == pytest.approx(1)
    assert SegmentPool("late", temperature=1e4)(segments, present, text).item() == pytest.approx(0.5, abs=1e-3)
    share = math.e / (math.e + 1)
    assert SegmentPool("late", temperature=1.0)(segments, present, text).item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up_and_gradients_are_finite(kind):
    pool = SegmentPool(kind, 8)
    segments, texts = unit(3, 4, 8, seed=1).requires_grad_(), unit(5, 8, seed=2).requires_grad_()
    present = present_of(torch.tensor([2, 4, 0]), 4)
    shares = pool.attention(segments, present, texts)
    torch.testing.assert_close(shares.sum(dim=1), torch.tensor([1.0, 1.0, 0.0])[:, None].expand(3, 5))
    pool(segments, present, texts).sum().backward()
    for leaf in (segments, texts, *pool.parameters()):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert (segments.grad[0, 2:] == 0).all() and (segments.grad[2] == 0).all()


def test_many_texts_are_scored_in_parts(monkeypatch):
    pool, segments, texts = SegmentPool("late"), unit(3, 4, 8, seed=1), unit(50, 8, seed=2)
    present = torch.ones(3, 4, dtype=torch.bool)
    whole = pool(segments, present, texts)
    monkeypatch.setattr(alignment, "SCORES_AT_ONCE", 100)
    torch.testing.assert_close(pool(segments, present, texts), whole)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ConfigError, match="mean, attention, late"):
        SegmentPool("max")  # type: ignore[arg-type]


def test_attention_learns_within_an_epoch_which_segments_tell():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    texts = F.normalize(torch.randn(64, 128, generator=generator), dim=1)
    mark = F.normalize(torch.randn(128, generator=generator), dim=0)
    told = F.normalize(texts + mark, dim=1)  # the one segment of five that shows what the text says, and how such look
    others = F.normalize(torch.randn(64, 4, 128, generator=generator), dim=2)
    segments, present = torch.cat([told[:, None], others], dim=1), torch.ones(64, 5, dtype=torch.bool)
    pool = SegmentPool("attention", 128)
    assert torch.allclose(pool.attention(segments, present, texts), torch.tensor(0.2))
    optimizer = torch.optim.AdamW(pool.parameters(), 1e-3)
    for _ in range(30):
        loss = F.cross_entropy(10 * pool(segments, present, texts), torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert pool.attention(segments, present, texts)[:, 0].mean() > 0.35
