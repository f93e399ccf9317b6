"""Segments in the score, in numpy, as torch learned them."""

import numpy as np
import pytest
import torch
from makers_search import unit

from ucore.alignment import SegmentPool
from ucore.fusion import fused
from ucore.late import pool_scores


@pytest.mark.parametrize("kind", ["mean", "attention", "late"])
def test_pooling_is_that_of_torch(kind):
    torch.manual_seed(0)
    pool = SegmentPool(kind, 16)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    rng = np.random.default_rng(0)
    segments, texts = unit(rng, 5, 16), unit(rng, 3, 16)
    present = torch.ones(1, 5, dtype=torch.bool)
    with torch.inference_mode():
        expected = pool(torch.from_numpy(segments[None]), present, torch.from_numpy(texts))[0].numpy()
    weights = {name: value.detach().numpy() for name, value in pool.state_dict().items()}
    assert pool_scores(kind, weights, segments, texts) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["mean", "late"])
def test_hits_are_reranked_by_the_fused_score_with_the_bias_of_just_that_score(search_place, kind):
    from ucore.index import GalleryIndex
    from ucore.late import LateScores

    index, share, temperature = GalleryIndex.open(search_place.index), 0.25, 0.05
    weights = {"log_temperature": np.log(np.float32(0.1))}
    rng = np.random.default_rng(3)
    late = LateScores.__new__(LateScores)
    late.index, late.kind, late.share, late._weights = index, kind, share, weights
    late.temperature, late._biases = temperature, {}
    late.texts = unit(rng, 9, index.dim)
    rows = index.rows(index.select("segment"))
    late._of = {name: index.select("segment")[(rows["sample_id"] == name).to_numpy()].tolist()
                for name in set(rows["sample_id"])}  # fmt: skip
    images = index.select("image")
    names = index.rows(images)["sample_id"]
    del late._of[names[4]]  # one without segments: its own score and hub_bias
    texts = np.concatenate([index.features(index.select("text")[:1]), late.texts])
    pooled = np.zeros((len(images), len(texts)), np.float32)
    for row, name in enumerate(names):
        if name in late._of:
            pooled[row] = pool_scores(kind, weights, index.features(np.array(late._of[name])), texts)
    present = np.array([[name in late._of] for name in names])
    scores = fused(index.scores(texts, images).T, pooled, present, share).astype(np.float64)
    bias = -temperature * np.log(np.exp(scores[:, 1:] / temperature).mean(axis=1))  # `hubness`, written out
    bias[4] = index.rows(images)["hub_bias"][4]
    for correct in (False, True):
        expected = scores[:, 0] + correct * bias
        order = np.argsort(-expected, kind="stable")
        for _ in range(2):  # once more, with what was kept
            positions, found = late.rerank(texts[0], images, correct)
            assert positions.tolist() == images[order].tolist()
            assert found == pytest.approx(expected[order], abs=1e-5)
