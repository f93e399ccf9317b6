"""Segments in the score, in numpy, as torch learned them."""

import numpy as np
import pytest
import torch
from command import ucore
from makers_maps import make_places
from makers_search import save_checkpoint, unit

from ucore.alignment import SegmentPool
from ucore.config import TrainConfig
from ucore.embedding import build_index
from ucore.errors import ConfigError
from ucore.explain import explain
from ucore.features import embed_images, embed_texts
from ucore.fusion import fused, segment_sets, segment_vectors, vector_scores
from ucore.late import pool_scores
from ucore.retrieve import Searcher
from ucore.segments import segment_dataset


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


def test_a_query_weighs_images_with_their_segments_as_the_encoder_does(encoder_factory, tmp_path):
    manifest, encoder = make_places(tmp_path / "data", 6), encoder_factory()
    settings = dict(segments="late", segment_count=2, segment_share=0.4)
    encoder.add_segments("late")
    checkpoint = save_checkpoint(tmp_path / "checkpoint", encoder, manifest, **settings)
    masks = segment_dataset(manifest, "felzenszwalb", tmp_path / "masks", workers=1, progress=False)
    build_index(checkpoint, manifest, tmp_path / "index", masks, 6, progress=False)  # more than count in the score
    config = TrainConfig.at("tiny", precision="float32", **settings)
    sets = segment_sets(encoder, manifest, masks, config, progress=False)
    images, text = embed_images(encoder, manifest, progress=False), embed_texts(encoder, ["a red house"], False)
    segments = vector_scores(encoder.segments, segment_vectors(encoder.segments, sets), text)
    expected = fused(images @ text.T, segments, sets.present.numpy(), 0.4)[:, 0]
    searcher, names = Searcher(tmp_path / "index"), manifest.frame["sample_id"]
    answer = searcher.text("a red house", k=18, late=True, correct_hubs=False, group=False)
    order = np.argsort(-expected, kind="stable")
    assert [hit.sample_id for hit in answer.hits] == [names[row] for row in order]
    assert [hit.score for hit in answer.hits] == pytest.approx(expected[order], abs=1e-5)
    plain = searcher.text("a red house", k=18, correct_hubs=False, group=False)
    assert [hit.score for hit in plain.hits] != pytest.approx(expected[order], abs=1e-3)
    why = explain(searcher, answer, answer.hits[0])
    with torch.inference_mode():
        row, vectors = [order[0]], segment_vectors(encoder.segments, sets)
        parts = [embed_texts(encoder, [text], False) for text in ("a red house", "red house", "a house", "a red")]
        kept = [fused(images[row] @ text.T, vector_scores(encoder.segments, vectors, text)[row],
                      sets.present.numpy()[row], 0.4)[0, 0] for text in parts]  # fmt: skip
    assert [weight for _, weight in why.words] == pytest.approx([kept[0] - one for one in kept[1:]], abs=2e-4)
    typed = ucore("search", "a red house", "--late", "--index", tmp_path / "index", "--k", 3)
    assert typed.status == 0 and typed.out.count("image:") == 3, typed.err
    with pytest.raises(ConfigError, match="leave it out where segments"):
        searcher.text("a red house", late=True, find="segment")
