"""Probes say what validation would say, and training does not notice them."""

import numpy as np
import pytest
import torch

from ucore.config import TrainConfig
from ucore.crop_features import image_keys
from ucore.data import read_dataset
from ucore.images import load_image
from ucore.masks import Segments
from ucore.model import load_encoder
from ucore.probes import BatchProbe, QueryProbe
from ucore.query_figures import attention_html, found_html, plot_attention, plot_found
from ucore.segment_store import SegmentStore, row_of
from ucore.train import Trainer
from ucore.widgets import TrainingStepper


@pytest.fixture(scope="module")
def manifest(tiny_rsicd):
    return read_dataset(tiny_rsicd, split=("train", "val"))


@pytest.fixture(scope="module")
def store(manifest, tmp_path_factory):
    """The left half of every picture, and its upper half."""
    folder = SegmentStore(tmp_path_factory.mktemp("segments") / "halves", {"generator": "halves"})
    with folder.parts.writing():
        keys = image_keys(manifest)
        folder.note(dict(zip(manifest.frame["sample_id"], keys, strict=True)))
        for key, path in zip(keys, manifest.image_paths, strict=True):
            height, width = np.asarray(load_image(path)).shape[:2]
            masks = np.zeros((2, height, width), bool)
            masks[0, :, : width // 2] = masks[1, : height // 2] = True
            folder.parts.append([row_of(key, Segments.from_masks(masks), 0.1)])
    return folder


@pytest.fixture
def make(manifest, tiny_clip, store, tmp_path):
    def make_trainer(segments="none", **changes):
        torch.manual_seed(0)
        settings = {"head_epochs": 2, "tune_epochs": 1, "head_batch_size": 12, "tune_batch_size": 12, "train_views": 1}
        config = TrainConfig.at("small", **{**settings, "segments": segments, "seed": 5, "segment_count": 3, **changes})
        parts = (load_encoder(tiny_clip), manifest.split("train"), manifest.split("val"), config)
        return Trainer(*parts, cache=tmp_path, progress=False, segments=store)

    return make_trainer


def recall(probe: QueryProbe, k: int) -> float:
    """Share of the offered captions whose own image is among the first k now, percent."""
    return 100 * np.mean([probe(number).own_ranks[1] <= k for number in range(len(probe.texts))])


@pytest.mark.parametrize("segments", ["none", "late"])
def test_ranks_are_those_of_validation_in_both_phases(make, segments):
    trainer = make(segments, tune_epochs=2, patience=10)
    query = QueryProbe(trainer)
    assert query.texts == list(dict.fromkeys(trainer.val.texts[0]))
    assert len(query.texts) == len(trainer.val.texts[0])  # so that every query counts once, as in the metrics
    compared = set()
    while (result := trainer.step()) is not None:
        query(0)
        if result.metrics is None or trainer.finished or trainer.phase.name != result.phase:
            continue  # only here are the weights those that were validated
        compared.add(result.phase)
        assert query(0).steps == (0, trainer.step_count)
        for k in (1, 5):
            assert recall(query, k) == pytest.approx(result.metrics[f"text_to_image_R@{k}"])
    assert compared == {"heads", "towers"}
    assert trainer.finished
    kept = trainer.validated["step"]
    assert query(0).steps == (0, kept)  # the towers were tuned: what the last validation saw


def test_after_a_reset_then_is_the_start_again(make):
    trainer = make(tune_epochs=0)
    query = QueryProbe(trainer)
    first = [query(number).best.tolist() for number in range(8)]
    while trainer.step() is not None:
        pass
    trainer.reset()
    query.restart()
    assert [query(number).best.tolist() for number in range(8)] == first
    assert query(3).steps == (0, 0)
    assert query(3).own_ranks[0] == query(3).own_ranks[1]


def test_attention_is_the_share_of_each_segment_of_the_own_tile(make):
    trainer = make("late", tune_epochs=0, ema=0)
    query = QueryProbe(trainer)
    trainer.step()
    found, segments = query(2), query.segments(2)
    assert segments is not None and len(segments) == 2 and segments is query.segments(2)
    assert found.shares.shape == (2, 3)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1, rtol=1e-5)
    assert (found.shares[:, 2] == 0).all()  # no third segment
    branch, phase = trainer.encoder.segments, trainer.phase
    with torch.no_grad():
        trainer.encoder.eval()
        tower, present = trainer.segment_sets("val").take(np.array([found.own]))
        text = torch.nn.functional.normalize(trainer.encoder.text_head(phase.val_text[query.rows[[2]]]), dim=1)
        cosines = (branch.features(tower, present)[0, :2] @ text[0]) / branch.pool.log_temperature.exp()
    np.testing.assert_allclose(found.shares[1, :2], torch.softmax(cosines, 0).numpy(), rtol=1e-4)
    assert "Tile with 2 segments" in attention_html(found, trainer.val, segments)
    alt = plot_attention(found, trainer.val, segments).alt
    assert f"1: {found.shares[1, 0]:.0%}, 2: {found.shares[1, 1]:.0%}" in alt


def test_without_segments_there_is_no_attention(make):
    query = QueryProbe(make(tune_epochs=0))
    assert query(0).shares is None
    assert query.segments(0) is None


def test_training_does_not_notice_that_it_is_watched(make):
    watched, alone = make("late"), make("late")
    batch, query = BatchProbe(watched, size=6), QueryProbe(watched)
    while watched.step() is not None:
        similarity, positives = batch()
        assert similarity.shape == positives.shape == (6, 6)
        assert positives.diagonal().all()
        assert np.array_equal(similarity, batch()[0])  # no dropout
        query(1)
    alone.fit()
    assert [row["loss"] for row in watched.history] == [row["loss"] for row in alone.history]
    pairs = zip(watched.encoder.state_dict().values(), alone.encoder.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_is_that_of_the_whole_encoder_also_after_the_towers_moved(make):
    trainer = make()
    probe, encoder = BatchProbe(trainer, size=6), trainer.encoder
    for _ in range(6):  # into the second phase
        trainer.step()
        similarity, _ = probe()
        with encoder.evaluating():
            expected = encoder.encode_image(probe.pixels) @ encoder.encode_text(probe.tokens).T
        np.testing.assert_array_equal(similarity, expected.numpy())
    assert trainer.history[-1]["phase"] == "towers"


def test_the_own_image_is_marked_also_where_it_is_not_found(make):
    query = QueryProbe(make(tune_epochs=0), k=2)
    found = [query(number) for number in range(len(query.texts))]
    missed = next(one for one in found if one.own not in one.best)
    for one, pictures in ((missed, 3), (next(one for one in found if one.own in one.best), 2)):
        page = found_html(one, query.trainer.val)
        assert page.count("<img") == pictures and page.count("the right one</figcaption>") == 1
        assert len([axes for axes in plot_found(one, query.trainer.val).axes if axes.images]) == pictures
    assert f"rank {missed.own_ranks[0]} → {missed.own_ranks[1]}" in found_html(missed, query.trainer.val)


def test_reset_and_the_rate_of_the_stepper_reach_the_trainer(make):
    trainer = make("late", tune_epochs=0)
    stepper = TrainingStepper(trainer, probe=BatchProbe(trainer, 6), query=QueryProbe(trainer))
    start = stepper.found.value, stepper.attention.value, stepper.matrix.value
    stepper.rate.value = 10.0
    stepper.run(3)
    assert [row["lr_factor"] for row in trainer.history] == [10.0] * 3
    assert all(now != then for now, then in zip((stepper.found.value, stepper.attention.value), start, strict=False))
    stepper.reset()
    assert (stepper.found.value, stepper.attention.value, stepper.matrix.value) == start
    losses = []
    for _ in range(2):
        stepper.run(3)
        losses.append([row["loss"] for row in trainer.history])
        stepper.reset()
    assert losses[0] == losses[1]
    assert "2 segments" in stepper.attention_figure().alt and "0 → 0" in stepper.query_figure().alt
