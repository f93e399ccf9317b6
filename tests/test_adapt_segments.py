"""Adaptation of checkpoints that are more than two heads: with segments, with a sigmoid's bias, with tuned towers."""

from typing import Any

import numpy as np
import pytest
import torch
from command import ucore
from makers import make_halves
from torch.nn import functional as F

from ucore.adapt import Adapter
from ucore.adapt_ablations import ADAPT_ARMS, AdaptStudy
from ucore.adapt_config import AdaptConfig, inherited
from ucore.checkpoint import load_checkpoint
from ucore.crossing import target_ranks
from ucore.data import read_dataset
from ucore.errors import ConfigError
from ucore.evaluate import retrieval_ranks
from ucore.fusion import segment_vectors
from ucore.hubness import Bank
from ucore.losses import sigmoid_loss
from ucore.tasks import score

SMALL: dict[str, Any] = dict(head_epochs=2, head_batch_size=8, target_batch_size=4, train_views=1, test_views=1)
SEGMENTS: dict[str, Any] = dict(segments="late", segment_count=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def stores(sides, tmp_path_factory):
    """Halves of the source's pictures, and of the target's, whose samples have the same names."""
    folder = tmp_path_factory.mktemp("segments")
    return make_halves(folder / "source", sides[:1]), make_halves(folder / "target", sides[1:])


@pytest.fixture
def new_adapter(sides, stores, cache, tiny_clip_factory):
    def make(method="ucore", out=None, encoder=None, given=True, **changes):
        config = AdaptConfig.of(method, **{**SMALL, **changes})
        masks = stores if given else ()
        return Adapter(encoder or tiny_clip_factory(), *sides, config, out, cache, False, *masks)

    return make


def test_without_segments_masks_change_nothing(new_adapter):
    runs = [new_adapter("paper", given=given, head_epochs=1) for given in (False, True)]
    for adapter in runs:
        adapter.fit()
        assert adapter.encoder.segments is None
    assert [row["loss"] for row in runs[0].history] == [row["loss"] for row in runs[1].history]
    assert runs[0].start == runs[1].start and runs[0].best == runs[1].best


def test_resuming_with_segments_equals_never_stopping(new_adapter, tmp_path):
    changes = {**SEGMENTS, "segments": "attention", "adversary": "dann", "coral_weight": 1.0}
    whole = new_adapter(**changes)
    whole.fit()
    assert set(whole.history[0]["parts"]) == {
        *("image_text", "segment_text", "adversarial", "coral", "matched", "matched_segments")
    }
    broken = new_adapter(out=tmp_path, **changes)
    for stop in (1, 3):
        for _ in range(stop):
            broken.step()
        broken.save()
        broken = new_adapter(out=tmp_path, **changes)
        assert broken.resume()
    broken.fit()
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in broken.history]
    for mine, theirs in zip(whole.encoder.state_dict().values(), broken.encoder.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_segments_head_learns_its_tower_does_not_and_validation_is_evals(new_adapter, sides, stores):
    adapter = new_adapter(**SEGMENTS, head_epochs=1)
    branch = adapter.encoder.segments
    assert branch is not None and set(adapter.phase.discriminators.keys()) == {"image", "text", "segment"}
    towers = [branch.tower.state_dict(), adapter.encoder.clip.state_dict()]
    before = [{name: value.clone() for name, value in state.items()} for state in towers]
    head, temperature = branch.head.contract.weight.detach().clone(), branch.pool.log_temperature.item()
    best = adapter.fit()
    assert not torch.equal(branch.head.contract.weight, head) and branch.pool.log_temperature.item() != temperature
    for kept, state in zip(before, towers, strict=True):
        assert all(torch.equal(state[name], value) for name, value in kept.items())
    scores = score(adapter.encoder, sides[2], progress=False, segments=stores[1], config=adapter.config)
    assert scores.metrics()[0]["mR"] == pytest.approx(best["mR"])
    given = sides[2], sides[2], adapter.cache, "adapted", stores[1], adapter.config
    ranks = target_ranks(adapter.encoder, *given)
    expected = retrieval_ranks(scores.similarity, sides[2].texts[1])
    assert all(np.array_equal(*pair) for pair in zip(ranks["adapted"], expected, strict=True))
    vectors = segment_vectors(branch, scores.sets)
    corrected = scores.corrected(adapter.encoder, Bank(scores.image_features, scores.text_features, vectors))
    owner = sides[2].texts[1]
    own = 1e-4 * (owner[None, :] == np.arange(len(sides[2]))[:, None])  # what the cache's float16 rounds
    between = [retrieval_ranks(corrected.similarity + part, owner) for part in (own, -own)]
    for found, best, worst in zip(ranks["adapted, hubs corrected"], *between, strict=True):
        assert (best <= found).all() and (found <= worst).all()
    assert np.mean(np.concatenate([best < worst for best, worst in zip(*between, strict=True)])) < 0.1
    with pytest.raises(ConfigError, match="counts segments"):
        target_ranks(adapter.encoder, *given[:4])
    plain = scores.image_features @ scores.text_features.T
    assert np.abs(plain - scores.similarity).max() > 1e-3  # segments are part of it


def test_known_pairs_teach_the_segments_too(new_adapter):
    parts = new_adapter("joint", **SEGMENTS, segment_weight=0.5).step().parts
    assert set(parts) == {"image_text", "segment_text", "target_pairs", "target_segments"}
    double = new_adapter("joint", **SEGMENTS, segment_weight=1.0).step().parts
    assert double["target_segments"] == pytest.approx(2 * parts["target_segments"], rel=1e-5)
    assert double["target_pairs"] == pytest.approx(parts["target_pairs"])


def test_what_is_aligned_of_segments_is_their_mean_or_the_images_own_feature(new_adapter):
    adapter = new_adapter("coral", **SEGMENTS)
    phase, branch = adapter.phase, adapter.encoder.segments
    adapter.encoder.eval()
    rows, own = np.array([0, 1]), F.normalize(torch.ones(2, adapter.encoder.embed_dim), dim=1)
    means = phase._segment_means("finetune", rows, own)
    tower = adapter.segment_sets("finetune").features[0].float()
    halves = F.normalize(branch.head(tower), dim=1)
    torch.testing.assert_close(means[0], F.normalize(halves.mean(0), dim=0), atol=1e-5, rtol=1e-4)
    assert torch.equal(means[1], own[1])  # the second picture has no segments
    scores, some = phase.segment_scores(rows, own)
    assert some.tolist() == [True, False] and scores.shape == (1, 2)
    assert phase.segment_scores(rows[1:], own) is None


def test_a_checkpoints_branch_is_kept_and_settings_must_go_with_it(new_adapter, tiny_clip_factory):
    encoder = tiny_clip_factory()
    branch = encoder.add_segments("late")
    with torch.no_grad():
        branch.head.contract.bias.add_(1)
    assert new_adapter(encoder=encoder, **SEGMENTS).encoder.segments is branch
    assert branch.head.contract.bias.mean() > 0.5
    for changes in ({}, {"segments": "mean"}):
        with pytest.raises(ConfigError, match=r"pools segments by late.*-s segments=late"):
            new_adapter(encoder=encoder, **changes)
    with pytest.raises(ConfigError, match="needs masks"):
        new_adapter(given=False, **SEGMENTS)


def test_a_sigmoid_checkpoint_keeps_its_bias_and_its_loss(new_adapter, tiny_clip_factory):
    encoder = tiny_clip_factory()
    encoder.add_bias(8)
    bias = encoder.logit_bias
    with pytest.raises(ConfigError, match="trained with loss=sigmoid; give it"):
        new_adapter(encoder=encoder)
    with pytest.raises(ConfigError, match="trained without loss=sigmoid; leave it out"):
        new_adapter(loss="sigmoid")
    adapter = new_adapter(encoder=encoder, loss="sigmoid", regime="paired", shots=4)
    start = bias.item()
    assert set(adapter.step().parts) == {"image_text", "target_pairs", "matched"}
    assert adapter.encoder.logit_bias is bias and bias.item() != start
    similarity, certain = torch.rand(4, 6), torch.zeros(4, 6)
    certain[[0, 1, 2, 3, 0, 1], range(6)] = 1.0  # texts 0 and 4 are the first image's
    expected = sigmoid_loss(similarity, encoder.logit_scale, bias, certain > 0)
    of_texts = certain / certain.sum(1, keepdim=True)
    assert adapter._matched(similarity, of_texts, certain).item() == pytest.approx(expected.item())
    assert inherited({"loss": "sigmoid", "segments": "none"}) == {"loss": "sigmoid"}
    assert inherited({"loss": "triplet"}) == {}


def test_tuned_towers_give_the_features_and_stay_as_they_are(new_adapter, tiny_clip_factory):
    tuned, plain = tiny_clip_factory(), new_adapter("source-only")
    with torch.no_grad():
        next(tuned.clip.visual.parameters()).mul_(1.2)
    before = {name: value.clone() for name, value in tuned.clip.state_dict().items()}
    adapter = new_adapter("source-only", encoder=tuned, head_epochs=1)  # with the cache of the others
    assert not torch.equal(adapter.phase.target_image, plain.phase.target_image)
    assert torch.equal(adapter.target_text, plain.target_text)
    adapter.fit()
    assert all(torch.equal(before[name], value) for name, value in tuned.clip.state_dict().items())


def test_an_arm_with_segments_starts_from_the_same_model(sides, stores, cache, tiny_clip_factory, tmp_path):
    store = make_halves(tmp_path / "one", (sides[1], sides[2]))
    parts = sides[1], sides[1], sides[2]
    study = AdaptStudy(tiny_clip_factory(), *parts, tmp_path / "runs", cache, progress=False, store=store,
                       **{**SMALL, "head_epochs": 1})  # fmt: skip
    assert study.config("base").segments == "none" and not study.lacking("segments=late")
    assert "segments=late" in ADAPT_ARMS
    rows = study.table(["segments=late"], [0])
    assert rows[1]["mR"] != rows[0]["mR"] or rows[1]["difference"] == 0


def test_the_command_adapts_a_checkpoint_with_segments(tiny_rsicd, tiny_clip, sides, tmp_path):
    from makers_geo import make_geotiles

    make_geotiles(tmp_path / "tiles", side=16, columns=("x", "y", "z"))
    home = read_dataset(tiny_rsicd)
    away = read_dataset(tmp_path / "tiles")
    masks = [make_halves(tmp_path / "masks" / name, [part]).folder for name, part in (("a", home), ("b", away))]
    short = ("--cache", tmp_path / "cache", "-s", "head_epochs=1", "-s", "head_batch_size=8")
    done = ucore("train", "--data", tiny_rsicd, "--encoder", tiny_clip, "--scale", "tiny", "--segments", masks[0],
                 "-s", "segment_count=2", *short, "--out", tmp_path / "run")  # fmt: skip
    assert done.status == 0, done.err
    given = ("adapt", "--source", tiny_rsicd, "--target", tmp_path / "tiles", "--checkpoint", tmp_path / "run",
             "--scale", "tiny", *short, "--out", tmp_path / "out")  # fmt: skip
    done = ucore(*given)
    assert done.status == 2 and "trained with segments: name the masks" in done.err and "Traceback" not in done.err
    done = ucore(*given, "--target-segments", masks[1])
    assert done.status == 2 and "of the source by --segments, too" in done.err
    done = ucore(*given, "--segments", masks[0])
    assert done.status == 2 and "ucore segment" in done.err and "Traceback" not in done.err
    done = ucore(*given, "--segments", masks[0], "--target-segments", masks[1])
    assert done.status == 0, done.err
    encoder, card = load_checkpoint(tmp_path / "out")
    assert encoder.segments is not None and card["train"]["segment_count"] == 2
    done = ucore("eval", "--checkpoint", tmp_path / "out", "--data", tmp_path / "tiles", "--segments", masks[1],
                 "--splits", tmp_path / "out" / "split.json", "--out", tmp_path / "scores.npz")  # fmt: skip
    assert done.status == 0, done.err
