"""Segments in the score, in numpy, as torch learned them."""

import numpy as np
import pytest
import torch
from makers_search import unit

from ucore.alignment import SegmentPool
from ucore.fusion import fused
from ucore.late import pool_score


@pytest.mark.parametrize("kind", ["mean", "attention", "late"])
def test_pooling_is_that_of_torch(kind):
    torch.manual_seed(0)
    pool = SegmentPool(kind, 16)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    rng = np.random.default_rng(0)
    segments, text = unit(rng, 5, 16), unit(rng, 1, 16)
    present = torch.ones(1, 5, dtype=torch.bool)
    with torch.inference_mode():
        expected = pool(torch.from_numpy(segments[None]), present, torch.from_numpy(text)).item()
    weights = {name: value.detach().numpy() for name, value in pool.state_dict().items()}
    assert pool_score(kind, weights, segments, text[0]) == pytest.approx(expected, abs=1e-6)


def test_hits_are_reranked_by_the_fused_score(search_place):
    from ucore.index import GalleryIndex
    from ucore.late import LateScores

    index = GalleryIndex.open(search_place.index)
    late = LateScores.__new__(LateScores)
    late.index, late.kind, late.share, late._weights = index, "mean", 0.25, {}
    rows = index.rows(index.select("segment"))
    late._of = {name: index.select("segment")[(rows["sample_id"] == name).to_numpy()].tolist()
                for name in set(rows["sample_id"])}  # fmt: skip
    images = index.select("image")
    text = index.features(index.select("text")[:1])[0]
    plain = index.scores(text[None], images)[0]
    bias = index.rows(images)["hub_bias"].to_numpy(np.float32)
    positions, scores = late.rerank(text, images, plain + bias)
    names = index.rows(images)["sample_id"]
    pooled = np.array([pool_score("mean", {}, index.features(np.array(late._of[name])), text) for name in names])
    expected = fused(plain[:, None], pooled[:, None].astype(np.float32), np.ones((len(images), 1), bool), 0.25)[:, 0]
    order = np.argsort(-(expected + bias), kind="stable")
    assert positions.tolist() == images[order].tolist()
    assert scores == pytest.approx((expected + bias)[order], abs=1e-5)
