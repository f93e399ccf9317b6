"""Training: resuming equals never stopping, positives are right, what is kept is the best."""

import copy
import dataclasses
import functools
import gc
import itertools
import json
import shutil
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from makers import make_halves, make_rsicd
from PIL import Image

from ucore.checkpoint import load_bank, load_checkpoint, load_state
from ucore.config import ModelConfig, TrainConfig
from ucore.data import read_dataset
from ucore.errors import CheckpointError, ConfigError, DataError, UserError
from ucore.files import only_writer
from ucore.fusion import fused
from ucore.hubness import correct_hubs
from ucore.manifest import Manifest, subset
from ucore.model import load_encoder
from ucore.progress import training_folder
from ucore.segment_store import SegmentStore
from ucore.splits import load_split
from ucore.tasks import forget_run, keep_split, score, train_checkpoint
from ucore.tower_phase import augment, image_stages
from ucore.train import Trainer

SMALL = dict(head_epochs=2, tune_epochs=1, head_batch_size=8, tune_batch_size=8, train_views=2, test_views=1)


@pytest.fixture(scope="module")
def parts(tiny_rsicd):
    manifest = read_dataset(tiny_rsicd, split=("train", "val"))
    return manifest.split("train"), manifest.split("val")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def new_trainer(parts, cache, tiny_clip_factory):
    """Makes trainers of a CLIP that costs nothing, or of what `factory` gives."""

    def make(out=None, factory=tiny_clip_factory, **changes):
        config = TrainConfig.at("small", **{**SMALL, **changes})
        return Trainer(factory(), *parts, config, out, cache, progress=False)

    return make


def same(a: Trainer, b: Trainer) -> None:
    assert [row["loss"] for row in a.history] == [row["loss"] for row in b.history]
    assert a.best == b.best
    for (name, mine), theirs in zip(a.encoder.state_dict().items(), b.encoder.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_resuming_equals_never_stopping_in_both_phases(new_trainer, encoder_factory, tmp_path):
    new_trainer = functools.partial(new_trainer, factory=encoder_factory)
    whole = new_trainer(tmp_path / "whole")
    whole.fit()
    assert {row["phase"] for row in whole.history} == {"heads", "towers"}
    assert len(whole.history) == whole.total_steps == 2 * 3 + 3

    broken = new_trainer(tmp_path / "broken")
    for stop in (2, 2, 4):  # within phase one, within its second epoch, within phase two
        for _ in range(stop):
            broken.step()
        broken.save()
        broken = new_trainer(tmp_path / "broken")
        assert broken.resume()
    broken.fit()
    same(whole, broken)
    finished = new_trainer(tmp_path / "broken")
    assert finished.resume()
    assert finished.finished
    assert finished.step() is None


def test_resuming_is_exact_without_the_first_phase(new_trainer, tmp_path):
    whole = new_trainer(head_epochs=0)
    whole.fit()
    broken = new_trainer(tmp_path, head_epochs=0)
    broken.step()
    broken.save()
    again = new_trainer(tmp_path, head_epochs=0)
    assert again.resume()
    again.fit()
    same(whole, again)


def test_a_step_that_was_not_completed_is_made_again_with_its_own_images(new_trainer, monkeypatch):
    whole = new_trainer(head_epochs=0)
    whole.fit()
    trainer = new_trainer(head_epochs=0)
    trainer.step()
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "losses", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.step()
    trainer.fit()
    same(whole, trainer)


def test_the_same_seed_gives_the_same_run_and_another_does_not(new_trainer):
    runs = [new_trainer(tune_epochs=0, seed=seed) for seed in (3, 3, 4)]
    for run in runs:
        run.fit()
    same(runs[0], runs[1])
    assert runs[0].history[0]["loss"] != runs[2].history[0]["loss"]


def test_the_kept_checkpoint_is_the_best_epoch(new_trainer, parts, tmp_path):
    trainer = new_trainer(tmp_path, tune_epochs=0, head_epochs=4)
    trainer.fit()
    by_epoch = [row["metrics"]["mR"] for row in trainer.history if "metrics" in row]
    encoder, card = load_checkpoint(tmp_path)
    assert card["validation"]["mR"] == max(by_epoch)
    for mine, stored in zip(trainer.encoder.state_dict().values(), encoder.state_dict().values(), strict=True):
        assert torch.equal(mine, stored)


def test_what_a_phase_leaves_alone_is_copied_once(new_trainer, monkeypatch):
    trainer = new_trainer(head_epochs=3)
    monkeypatch.setattr(trainer, "criterion", "step")  # every epoch is better than the last
    monkeypatch.setattr(trainer, "validate", lambda: {"mR": 0.0, "step": float(trainer.step_count)})
    start = {name: value.clone() for name, value in trainer.encoder.state_dict().items()}
    names = [f"clip.{name}" for name, _ in trainer.encoder.clip.named_parameters() if "logit" not in name]
    heads = [name for name, _ in trainer.encoder.named_parameters() if "_head." in name]
    kept: dict[str, list] = {"heads": [], "towers": []}
    while (result := trainer.step()) is not None:
        kept[result.phase].append(trainer.best_state)
    first, last, tuned = kept["heads"][0], kept["heads"][-1], kept["towers"][-1]
    assert names and all(last[name] is first[name] and torch.equal(last[name], start[name]) for name in names)
    assert heads and all(last[name] is not first[name] and not torch.equal(last[name], first[name]) for name in heads)
    assert sum(not torch.equal(tuned[name], last[name]) for name in names) > len(names) / 4
    assert all(torch.equal(tuned[name], value) for name, value in trainer.encoder.state_dict().items())


def test_early_stopping_ends_a_phase_and_the_next_starts_from_the_best(new_trainer):
    trainer = new_trainer(head_epochs=50, patience=1, head_lr=1e-9, ema=0)  # nothing moves, so nothing gets better
    while trainer.phase.name == "heads":
        trainer.step()
    assert trainer.step_count == 3  # the model as it came is best, the first epoch is stale
    assert trainer.best["epoch"] == 0


def test_positives_are_own_and_identical_captions(new_trainer):
    trainer = new_trainer()
    groups, owner = trainer.pairs.groups, trainer.train.texts[1]
    rows, texts = trainer.phase.next_batch()
    expected = [[groups[text] in groups[owner == row] for text in texts] for row in rows]
    np.testing.assert_array_equal(trainer.positives(rows, texts), expected)
    assert (owner[texts] == rows).all()


def test_an_epoch_shows_every_image_once(new_trainer):
    trainer = new_trainer(tune_epochs=0)
    seen = []
    for _ in range(3):
        seen.extend(trainer.phase.next_batch()[0])
        trainer.step()
    assert sorted(seen) == list(range(24))


def test_frozen_parts_stay_and_tuned_parts_move(new_trainer, encoder_factory):
    trainer = new_trainer(factory=encoder_factory, head_epochs=0)
    before = {name: p.detach().clone() for name, p in trainer.encoder.named_parameters()}
    trainer.step()
    moved = {name for name, p in trainer.encoder.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("clip.visual.trunk.blocks.6") for name in moved)
    assert any(name.startswith("clip.text.transformer.encoder.layer.5") for name in moved)
    assert any(name.startswith("image_head") for name in moved)
    frozen = (
        "clip.visual.trunk.conv_stem",
        "clip.visual.trunk.blocks.2",
        "clip.text.transformer.embeddings.word_embeddings",
    )
    assert not [name for name in moved if name.startswith(frozen)]


def test_every_loss_learns(new_trainer):
    for loss in ("clip", "triplet", "sigmoid"):
        trainer = new_trainer(tune_epochs=0, head_epochs=15, loss=loss, patience=15, ema=0)
        trainer.fit()
        losses = [row["loss"] for row in trainer.history]
        assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3]), loss


def test_gradients_are_clipped_after_backward(new_trainer):
    trainer = new_trainer(tune_epochs=0, clip_norm=1e-4)
    result = trainer.step()
    left = torch.stack([p.grad.norm() for p in trainer.phase.parameters if p.grad is not None]).norm()
    assert result.grad_norm > 1e-3
    assert left == pytest.approx(1e-4, rel=1e-2)


def test_resume_refuses_another_configuration(new_trainer, tmp_path):
    trainer = new_trainer(tmp_path, tune_epochs=0)
    trainer.step()
    trainer.save()
    with pytest.raises(ConfigError, match=r"head_lr 0\.001 -> 0\.01.*another --out"):
        new_trainer(tmp_path, tune_epochs=0, head_lr=0.01).resume()


def test_a_damaged_state_is_named(new_trainer, tmp_path):
    trainer = new_trainer(tmp_path, tune_epochs=0)
    trainer.step()
    trainer.save()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged.*--restart"):
        new_trainer(tmp_path, tune_epochs=0).resume()


def test_a_loss_that_is_not_finite_stops_with_the_step(new_trainer, tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, tune_epochs=0)
    for _ in range(4):
        trainer.step()
    first = trainer.train.frame["sample_id"].iloc[trainer.phase.next_batch()[0][0]]
    monkeypatch.setattr(trainer, "losses", lambda *_: {"image_text": torch.tensor(float("nan"))})
    with pytest.raises(UserError, match=f"nan at step 5 .*the batch begins with {first}, .*last checkpoint is kept"):
        trainer.step()
    kept = new_trainer(tmp_path, tune_epochs=0)
    assert kept.resume() and kept.step_count == 3


def test_a_gradient_that_is_not_finite_stops_before_it_moves_a_weight(new_trainer, tmp_path):
    trainer = new_trainer(tmp_path, tune_epochs=0)
    trainer.step()
    before = {name: value.clone() for name, value in trainer.encoder.state_dict().items()}
    rows = trainer.phase.next_batch()[0]
    weight = trainer.phase.parameters[0]
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"norm of the gradient is nan at step 2 .*last checkpoint is kept"):
        trainer.step()
    hook.remove()
    assert all(torch.equal(before[name], value) for name, value in trainer.encoder.state_dict().items())
    listed = (tmp_path / "stopped_at.txt").read_text().splitlines()
    assert listed == list(trainer.train.frame["sample_id"].iloc[rows])
    assert trainer.step().step == 2  # made again, nothing lost


def test_a_run_does_not_write_over_another_that_went_on_in_its_folder(new_trainer, tmp_path):
    first = new_trainer(tmp_path, tune_epochs=0)
    for _ in range(2):
        first.step()
    first.save()
    other = new_trainer(tmp_path, tune_epochs=0)
    assert other.resume()
    other.fit()
    with pytest.raises(UserError, match=r"Another run has trained into .* since this one stopped there"):
        first.fit()
    assert load_state(tmp_path)["finished"]
    assert first.resume() and first.finished


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"dropout": 0.0}, r"dropout 0.3 -> 0.0"), ({"hidden": 64}, r"hidden 1024 -> 64")],
)
def test_resuming_with_other_heads_names_them(parts, cache, tmp_path, changes, told):
    config = TrainConfig.at("small", **{**SMALL, "tune_epochs": 0})
    Trainer(load_encoder(config=ModelConfig()), *parts, config, tmp_path, cache, progress=False).save()
    other = load_encoder(config=ModelConfig(**changes))
    with pytest.raises(ConfigError, match=f"other settings .*{told}.*another --out, or --restart"):
        Trainer(other, *parts, config, tmp_path, cache, progress=False).resume()


def test_resuming_with_another_picture_under_its_name_is_refused(tiny_rsicd, tiny_clip_factory, tmp_path):
    shutil.copytree(tiny_rsicd, tmp_path / "data")

    def trainer() -> Trainer:
        manifest = read_dataset(tmp_path / "data", split=("train", "val"))
        config = TrainConfig.at("small", **{**SMALL, "tune_epochs": 0})
        return Trainer(tiny_clip_factory(), manifest.split("train"), manifest.split("val"), config, tmp_path / "run",
                       progress=False)  # fmt: skip

    trainer().save()
    assert trainer().resume()
    Image.new("RGB", (90, 80), "red").save(trainer().train.image_path(0))
    with pytest.raises(ConfigError, match="other training images"):
        trainer().resume()


def test_a_stopped_step_leaves_the_statistics_of_normalising_layers_alone(parts, cache, tiny_resnet, monkeypatch):
    torch.manual_seed(0)
    original = load_encoder(tiny_resnet)
    config = TrainConfig.at("small", **{**SMALL, "head_epochs": 0, "frozen_image_stages": 0, "precision": "float32"})
    trainer, other = (Trainer(copy.deepcopy(original), *parts, config, None, cache, progress=False) for _ in range(2))
    trainer.step()
    other.step()
    losses = trainer.losses
    monkeypatch.setattr(trainer, "losses", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    monkeypatch.setattr(trainer, "losses", losses)
    trainer.step()
    other.step()
    same(trainer, other)
    statistics = [name for name in trainer.encoder.state_dict() if name.endswith("running_mean")]
    assert any(not torch.equal(trainer.encoder.state_dict()[name], original.state_dict()[name]) for name in statistics)


def raising(error: type[BaseException]):
    def instead(*_: Any) -> Any:
        raise error

    return instead


def test_a_frozen_tower_that_would_normalise_may_be_trained_in_chunks(parts, cache, tiny_resnet):
    def trainer(stages: int) -> Trainer:
        config = TrainConfig.at("small", **{**SMALL, "head_epochs": 0, "chunk": 4, "frozen_image_stages": stages})
        return Trainer(load_encoder(tiny_resnet), *parts, config, None, cache, progress=False)

    with pytest.raises(ConfigError, match=r"normalises over the batch.*frozen_image_stages"):
        trainer(2).step()
    assert trainer(4).step().loss > 0


def test_descriptions_alone_are_learned_from_and_known_to_the_bank(parts, encoder_factory, cache, tmp_path):
    train, val = parts
    frame = train.frame.copy()
    frame["description"] = [of[0] for of in frame["captions"]]
    frame["captions"] = [[] for _ in range(len(frame))]
    described = Manifest(frame, train.root)
    config = TrainConfig.at("tiny", head_epochs=1, description_share=0.5)
    train_checkpoint(encoder_factory(), described, val, config, tmp_path, cache, progress=False)
    bank = load_bank(tmp_path)
    assert bank is not None and len(bank.texts) > 0
    config = TrainConfig.at("tiny", description_share=0.5, soft_share=0.1)
    with pytest.raises(ConfigError, match="soft_share compares captions"):
        Trainer(encoder_factory(), described, val, config, None, cache, progress=False)


def test_the_sigmoid_loss_starts_from_the_bias_and_the_scale_that_a_model_comes_with(parts, cache, tiny_clip_factory):
    encoder = tiny_clip_factory()
    encoder.clip.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    encoder.logit_scale.data.fill_(np.log(117))
    config = TrainConfig.at("small", **{**SMALL, "loss": "sigmoid", "tune_epochs": 0, "head_lr": 1e-6})
    trainer = Trainer(encoder, *parts, config, None, cache, progress=False)
    assert encoder.logit_bias is not None and encoder.logit_bias.item() == -10
    trainer.step()
    assert encoder.logit_scale.exp().item() == pytest.approx(117, rel=1e-3)


def test_a_set_smaller_than_a_batch_is_one_batch(new_trainer):
    trainer = new_trainer(head_batch_size=512, tune_batch_size=64)
    trainer.fit()
    assert [row["phase"] for row in trainer.history] == ["heads", "heads", "towers"]


def test_one_image_has_nothing_to_be_told_from(parts, encoder_factory):
    train, val = parts
    with pytest.raises(ConfigError, match="has 1 image; contrastive training needs at least 2"):
        Trainer(encoder_factory(), subset(train, 1), val, TrainConfig.at("tiny"), progress=False)


def test_a_folder_that_another_process_trains_into_is_refused(new_trainer, tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError, match=r"Another process is writing into .*another --out"):
        new_trainer(tmp_path, tune_epochs=0).fit()
    with only_writer(tmp_path), pytest.raises(UserError, match="Another process is writing into"):
        forget_run(tmp_path)


def test_interrupt_keeps_the_state_and_the_run_ends_the_same(new_trainer, tmp_path):
    whole = new_trainer(tune_epochs=0)
    whole.fit()
    trainer = new_trainer(tmp_path, tune_epochs=0)

    def interrupt(result):
        if result.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="Stopped at step 4 of 6"):
        trainer.fit(interrupt)
    again = new_trainer(tmp_path, tune_epochs=0)
    again.resume()
    again.fit()
    same(whole, again)


@pytest.mark.parametrize("where", ["kept_weights", "save_encoder"])
def test_an_interrupt_in_the_first_validation_is_recovered_from(new_trainer, tmp_path, monkeypatch, where):
    whole = new_trainer(tmp_path / "whole", tune_epochs=0, head_lr=1e-9)  # nothing will be better than the start
    whole.fit()

    def stop(*_):
        raise KeyboardInterrupt

    trainer = new_trainer(tmp_path / "run", tune_epochs=0, head_lr=1e-9)
    monkeypatch.setattr(f"ucore.train.{where}", stop)
    with pytest.raises(UserError, match="Stopped at step 0 of 6"):
        trainer.fit()
    monkeypatch.undo()
    again = new_trainer(tmp_path / "run", tune_epochs=0, head_lr=1e-9)
    again.resume()
    again.fit()
    same(whole, again)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_steps_go_on_from_the_last_epoch_where_its_end_was_interrupted(new_trainer, tmp_path, monkeypatch):
    whole = new_trainer(tune_epochs=0)
    whole.fit()
    for out in (tmp_path, None):
        trainer, seen, validate = new_trainer(out, tune_epochs=0), [], Trainer.validate

        def stop(self, seen=seen, validate=validate):
            seen.append(self.step_count)
            if len(seen) == 3:  # at the start, after the first epoch, after the last
                raise KeyboardInterrupt
            return validate(self)

        monkeypatch.setattr(Trainer, "validate", stop)
        with pytest.raises(KeyboardInterrupt):
            list(iter(trainer.step, None))
        assert trainer.step_count == 6
        if out is None:
            with pytest.raises(UserError, match="half done, and no state was written"):
                trainer.step()
            trainer.reset()
        while trainer.step() is not None:
            assert trainer.step_count <= 6
        same(whole, trainer)
        monkeypatch.undo()


def test_numbers_of_numpy_among_the_settings_can_be_read_again(new_trainer, tmp_path):
    for rate in np.geomspace(1e-4, 1e-3, 2):
        trainer = new_trainer(tmp_path / f"{rate}", tune_epochs=0, head_lr=rate)
        trainer.step()
        trainer.save()
        assert new_trainer(tmp_path / f"{rate}", tune_epochs=0, head_lr=float(rate)).resume()


def test_any_open_clip_model_trains(parts, tiny_clip, cache):
    config = TrainConfig.at("full", head_epochs=1, tune_epochs=1, tune_batch_size=8, head_batch_size=8, test_views=1)
    trainer = Trainer(load_encoder(tiny_clip), *parts, config, None, cache, progress=False)
    trainer.fit()
    assert trainer.step_count == 6
    assert np.isfinite([row["loss"] for row in trainer.history]).all()


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_training_beats_chance_by_far(parts, cache, encoder_factory, precision):
    train, val = parts
    scores = []
    for seed in range(3):  # of eight images a single one more or less is an eighth
        encoder = encoder_factory()
        torch.manual_seed(seed)
        encoder.new_heads()
        config = TrainConfig.at("tiny", seed=seed, head_batch_size=24, head_epochs=30, patience=30, precision=precision)
        scores.append(Trainer(encoder, train, val, config, None, cache, progress=False).fit())
    for direction in ("image_to_text_R@1", "text_to_image_R@1"):
        assert np.mean([score[direction] for score in scores]) > 40, direction  # chance: 12.5


def test_augmentation_leaves_no_black_corner_and_keeps_the_size():
    bright = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    for seed in range(50):
        image = augment(bright, np.random.default_rng(seed), 0.3)
        assert image.shape == (3, 40, 40)
        assert image.dtype == torch.uint8
        assert image.min() >= 199


def test_a_subset_is_spread_evenly(parts):
    train, _ = parts
    chosen = subset(train, 5).frame["sample_id"].tolist()
    ids = train.frame["sample_id"].tolist()
    assert [ids.index(one) for one in chosen] == [0, 6, 12, 17, 23]
    assert len(subset(train, None)) == len(train)


def test_history_is_plain_json(new_trainer):
    trainer = new_trainer(tune_epochs=0)
    trainer.fit()
    assert json.loads(json.dumps(trainer.history)) == trainer.history
    for row in trainer.history:
        assert sum(row["parts"].values()) == pytest.approx(row["loss"])


def test_after_a_reset_training_is_bitwise_that_of_a_new_trainer(new_trainer, tmp_path):
    whole = new_trainer()
    whole.fit()
    trainer = new_trainer(tmp_path)
    for stop in (2, 7, None):  # within phase one, within phase two, at the end
        trainer.lr_factor = 2.0
        while trainer.step_count != stop and trainer.step() is not None:
            pass
        trainer.reset()
        assert (trainer.step_count, trainer.history, trainer.finished, trainer.lr_factor) == (0, [], False, 1.0)
    trainer.fit()
    same(whole, trainer)
    resumed = new_trainer(tmp_path)  # whose first weights are not those it was resumed to
    assert resumed.resume()
    resumed.reset()
    resumed.fit()
    same(whole, resumed)


def test_a_phase_that_is_over_is_forgotten_at_once(new_trainer):
    trainer = new_trainer()
    gc.disable()  # what only the collector finds stays for long, features and state of the optimiser with it
    try:
        trainer.step()
        phases = [weakref.ref(trainer.phase)]
        while trainer.phase is phases[0]():
            trainer.step()
        phases.append(weakref.ref(trainer.phase))
        assert phases[0]() is None
        trainer.reset()
        assert phases[1]() is None
    finally:
        gc.enable()


def test_a_reset_brings_back_the_start_without_the_first_phase(new_trainer):
    trainer = new_trainer(head_epochs=0)
    before = {name: value.clone() for name, value in trainer.encoder.state_dict().items()}
    trainer.step()
    trainer.reset()
    assert all(torch.equal(value, before[name]) for name, value in trainer.encoder.state_dict().items())


def test_the_saved_state_outlives_a_reset_until_the_next_step(new_trainer, tmp_path):
    trainer = new_trainer(tmp_path, tune_epochs=0)
    for _ in range(3):
        trainer.step()
    trainer.reset()
    assert trainer.resume()
    assert trainer.step_count == 3
    trainer.reset()
    trainer.step()
    trainer.resume()
    assert trainer.step_count == 0  # as saved before the first step


def test_a_changed_learning_rate_is_recorded_and_survives_resuming(new_trainer, tmp_path):
    def run(out, stops):
        trainer = new_trainer(out)
        for factor, steps in ((1.0, 2), (np.float64(0.5), 2), (3.0, 5)):  # of a sweep, numbers are numpy's
            trainer.lr_factor = factor
            if stops and trainer.step_count:  # as Ctrl-C may do, right after the change
                trainer.save()
                trainer = new_trainer(out)
                assert trainer.resume()
                assert trainer.lr_factor == factor
            for number in range(steps):
                if number == 1 and stops:
                    trainer.save()
                    trainer = new_trainer(out)
                    assert trainer.resume()
                    assert trainer.lr_factor == factor
                trainer.step()
        return trainer

    whole, broken = run(tmp_path / "whole", False), run(tmp_path / "broken", True)
    same(whole, broken)
    assert [row["lr_factor"] for row in whole.history] == [1.0] * 2 + [0.5] * 2 + [3.0] * 5
    plain = new_trainer()
    plain.fit()
    ratios = [a["learning_rate"] / b["learning_rate"] for a, b in zip(whole.history, plain.history, strict=True)]
    assert ratios == pytest.approx([1] * 2 + [0.5] * 2 + [3] * 5)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_train_is_refused(new_trainer, factor):
    trainer = new_trainer(tune_epochs=0)
    trainer.lr_factor = factor
    with pytest.raises(ConfigError, match="give a number above 0"):
        trainer.step()


def test_a_disk_that_is_full_for_the_curves_is_a_sentence_without_a_traceback(tmp_path):
    """In a process of its own: pytest looks after the errors of threads itself."""
    code = f"""
from unittest.mock import patch
from tensorboard.summary.writer.record_writer import RecordWriter
from ucore.errors import UserError
from ucore.progress import Curves, StepResult

with patch.object(RecordWriter, "write", side_effect=OSError(28, "No space left on device", "events")):
    curves = Curves({str(tmp_path)!r})
    try:
        for step in range(1, 10_000):
            curves.add(StepResult(step, "heads", 0, 1.0, 1e-3, 1.0, 0.05))
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "The disk is full" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_state_is_kept_only_when_its_curves_are(new_trainer, tmp_path):
    from tensorboard.summary.writer.record_writer import RecordWriter

    trainer, write, written = new_trainer(tmp_path), RecordWriter.write, itertools.count()

    def late(writer: RecordWriter, data: bytes) -> None:  # the thread that writes is behind
        if next(written) < 2:  # what begins a file
            return write(writer, data)
        time.sleep(0.5)
        raise OSError(28, "No space left on device", "events")

    def step_and_save() -> None:
        trainer.step()
        trainer.save()

    with patch.object(RecordWriter, "write", late), pytest.raises(UserError, match="The disk is full"):
        step_and_save()
    state = load_state(tmp_path)
    assert state is not None and state["step_count"] == 0


def test_tensorboard_has_the_parts_and_the_rate(new_trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = new_trainer(tmp_path, tune_epochs=0)
    trainer.fit()
    trainer.reset()  # closes the file
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/loss_image_text", "train/lr_factor", "val/mR"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss_image_text")] == list(range(1, 7))


# --- settings that are off by default ---------------------------------------------------------------------------


def test_resuming_is_exact_with_soft_positives_hard_batches_and_the_sigmoid_loss(new_trainer, tmp_path):
    changes = dict(soft_share=0.2, hard_share=0.5, loss="sigmoid")
    whole = new_trainer(**changes)
    whole.fit()
    broken = new_trainer(tmp_path, **changes)
    for _ in range(7):  # into the second phase
        broken.step()
    broken.save()
    again = new_trainer(tmp_path, **changes)
    assert again.resume()
    again.fit()
    same(whole, again)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.logit_bias is not None and torch.equal(loaded.logit_bias, whole.best_state["logit_bias"])


def test_hard_batches_show_every_image_once_and_differ_from_epoch_to_epoch(new_trainer):
    trainer = new_trainer(tune_epochs=0, hard_share=0.5, head_epochs=3)
    epochs = []
    for _ in range(2):
        epochs.append([])
        for _ in range(3):
            epochs[-1].extend(trainer.phase.next_batch()[0].tolist())
            trainer.step()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]


def test_descriptions_are_learned_from_and_captions_are_asked_for(parts, cache, encoder_factory):
    train, val = (subset(part, None) for part in parts)
    frame = train.frame.assign(description=[f"Scene {n}. It is one of a kind." for n in range(len(train))])
    described = dataclasses.replace(train, frame=frame)
    config = TrainConfig.at("small", **{**SMALL, "tune_epochs": 0, "description_share": 1.0})
    trainer = Trainer(encoder_factory(), described, val, config, cache=cache, progress=False)
    rows, texts = trainer.phase.next_batch()
    shown = {trainer.texts[text] for text in texts}
    assert all("Scene" in text or text == "It is one of a kind." for text in shown)
    assert trainer.positives(rows, texts).diagonal().all()
    trainer.fit()
    with pytest.raises(ConfigError, match="run ucore caption"):
        Trainer(encoder_factory(), train, val, config, cache=cache, progress=False)


def test_flips_alone_leave_the_rows_where_they_are():
    rows = torch.arange(30, dtype=torch.uint8).view(1, 30, 1).expand(3, 30, 30)
    for seed in range(20):
        assert torch.equal(augment(rows, np.random.default_rng(seed), 1.0, "flip"), rows)
    columns = rows.transpose(1, 2)
    seen = {augment(columns, np.random.default_rng(seed), 1.0, "flip")[0, 0, 0].item() for seed in range(20)}
    assert seen == {0, 29}


def test_frozen_stages_are_not_tuned_and_stay_in_evaluation_mode(parts, cache, tiny_clip_factory):
    config = TrainConfig.at("small", **{**SMALL, "head_epochs": 0, "frozen_image_stages": 1})
    trainer = Trainer(tiny_clip_factory(), *parts, config, cache=cache, progress=False)
    visual = trainer.encoder.clip.visual
    stages = image_stages(trainer.encoder)
    frozen, tuned = {name: value.clone() for name, value in visual.named_parameters()}, set()
    trainer.step()
    for name, value in visual.named_parameters():
        if not torch.equal(value, frozen[name]):
            tuned.add(name)
    stem = {"class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
    assert not tuned & (stem | {name for name in frozen if name.startswith("transformer.resblocks.0.")})
    assert {"proj", "ln_post.weight"} <= tuned
    assert [part.training for part in (visual.ln_pre, stages[1], visual.ln_post)] == [False, False, True]


def test_stages_of_trunks_and_resnets_are_found_with_their_stem():
    class Trunk(torch.nn.Module):
        def __init__(self, **stages: torch.nn.Module) -> None:
            super().__init__()
            self.stem, self.bn = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.pos_embed, self.scale = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
            for name, stage in stages.items():
                setattr(self, name, stage)

    def linear():
        return torch.nn.Linear(2, 2)

    listed, named = Trunk(stages=torch.nn.Sequential(linear(), linear())), Trunk(layer1=linear(), layer2=linear())
    wrapped = torch.nn.ModuleDict({"trunk": listed})
    for visual in (SimpleNamespace(trunk=listed), wrapped["trunk"], named):
        encoder: Any = SimpleNamespace(name="another", clip=SimpleNamespace(visual=visual))
        stem, *stages = image_stages(encoder)
        names = ["pos_embed", "0.weight", "0.bias", "1.weight", "1.bias"]
        assert len(stages) == 2 and [name for name, _ in stem.named_parameters()] == names
    with pytest.raises(ConfigError, match="set frozen_image_stages=0"):
        image_stages(SimpleNamespace(name="another", clip=SimpleNamespace(visual=Trunk())))  # type: ignore[arg-type]


def test_splits_are_written_before_the_weights_learn(parts, cache, tiny_clip_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("stopped at once"))
    config, everything = TrainConfig.at("small", **SMALL), parts[0]
    with pytest.raises(pytest.fail.Exception, match="stopped at once"):
        train_checkpoint(tiny_clip_factory(), *parts, config, tmp_path, cache, progress=False, everything=everything)
    assert set(load_split(everything, tmp_path / "split.json").frame["split"]) == {"train"}
    with only_writer(tmp_path), pytest.raises(UserError, match="Another process"):
        keep_split(parts[1], tmp_path)
    assert set(load_split(everything, tmp_path / "split.json").frame["split"]) == {"train"}


# --- segments -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(parts, tmp_path_factory):
    """Halves of every picture; one picture of each split has none."""
    return make_halves(tmp_path_factory.mktemp("segments") / "halves", parts)


@pytest.fixture
def segment_trainer(parts, cache, tiny_clip_factory, store):
    def make(out=None, **changes):
        config = TrainConfig.at("small", **{**SMALL, "segments": "late", "segment_count": 3, **changes})
        return Trainer(tiny_clip_factory(), *parts, config, out, cache, progress=False, segments=store)

    return make


def test_training_with_segments_goes_on_as_if_it_had_not_stopped(segment_trainer, tmp_path):
    whole = segment_trainer(tmp_path / "whole")
    tower = {name: value.clone() for name, value in whole.encoder.clip.visual.state_dict().items()}
    whole.fit()
    broken = segment_trainer(tmp_path / "broken")
    for _ in range(7):  # into the second phase
        broken.step()
    broken.save()
    broken = segment_trainer(tmp_path / "broken")
    assert broken.resume()
    broken.fit()
    same(whole, broken)
    branch = whole.encoder.segments
    assert branch is not None
    assert all(torch.equal(value, tower[name]) for name, value in branch.tower.state_dict().items())  # frozen
    loaded, _ = load_checkpoint(tmp_path / "whole")
    assert loaded.segments is not None and loaded.segments.pool.kind == "late"
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), whole.best_state.values(), strict=True))


@pytest.mark.parametrize("pooling", ["mean", "attention", "late"])
@pytest.mark.parametrize("loss", ["clip", "triplet", "sigmoid"])
def test_segments_add_a_part_to_the_loss_and_learn(segment_trainer, pooling, loss):
    trainer = segment_trainer(segments=pooling, loss=loss, tune_epochs=0, head_epochs=8)
    phase = trainer.phase
    rows, texts = phase.next_batch()
    image, text = phase.forward(rows, texts)
    positives = torch.from_numpy(trainer.positives(rows, texts))
    parts = trainer.losses(rows, image, text, positives)
    assert set(parts) == {"image_text", "segment_text"} and all(part > 0 for part in parts.values())
    double = segment_trainer(segments=pooling, loss=loss, tune_epochs=0, segment_weight=2.0)
    torch.testing.assert_close(double.segment_sets("train").features, trainer.segment_sets("train").features)
    trainer.fit()
    for row in trainer.history:
        assert set(row["parts"]) == set(parts) and sum(row["parts"].values()) == pytest.approx(row["loss"])
    course = [row["parts"]["segment_text"] for row in trainer.history]
    assert np.mean(course[-4:]) < np.mean(course[:4])


@pytest.mark.parametrize("pooling", ["mean", "late"])
def test_segments_are_drawn_to_their_image_with_the_weight_given(segment_trainer, pooling):
    changes = dict(segments=pooling, tune_epochs=0, loss="triplet")
    losses = []
    for weight in (0.0, 1.0, 3.0):
        trainer = segment_trainer(**changes, image_segment_weight=weight)
        rows, texts = trainer.phase.next_batch()
        trainer.encoder.eval()
        image, text = trainer.phase.forward(rows, texts)
        parts = trainer.losses(rows, image, text, torch.from_numpy(trainer.positives(rows, texts)))
        losses.append(parts.get("image_segment", torch.tensor(0.0)).item())
    assert losses[0] == 0
    assert losses[2] == pytest.approx(3 * losses[1], rel=1e-5)
    branch = trainer.encoder.segments
    tower, present = trainer.segment_sets("train").take(rows)
    some = present.any(dim=1)
    scores = branch.pool(branch.features(tower, present), present, image)[some][:, some]
    own = scores.diagonal()
    others = ~torch.eye(len(scores), dtype=torch.bool)
    expected = ((0.2 + scores - own[:, None]).clamp(min=0) + (0.2 + scores - own).clamp(min=0))[others].sum() / len(own)
    assert losses[1] == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_any_segments_learns_from_images_alone(segment_trainer):
    trainer = segment_trainer(loss="triplet", tune_epochs=0, image_segment_weight=1.0)
    rows = np.array([1])  # the one picture without segments
    image, text = trainer.phase.forward(rows, trainer.first_text[rows])
    parts = trainer.losses(rows, image, text, torch.ones(1, 1, dtype=torch.bool))
    assert set(parts) == {"image_text"} and torch.isfinite(parts["image_text"])


def test_the_papers_method_trains_with_a_frozen_tower_for_segments(segment_trainer):
    paper = TrainConfig.at("small", method="paper").to_dict()
    changes = {k: v for k, v in paper.items() if k not in SMALL} | {"train_views": 1, "segment_count": 2}
    trainer = segment_trainer(**{k: v for k, v in changes.items() if k not in ("scale", "method")}, method="paper")
    assert trainer.config.loss == "triplet" and not trainer.phase.average
    trainer.fit()
    assert np.isfinite([row["loss"] for row in trainer.history]).all()


def test_an_image_without_segments_is_scored_by_itself(segment_trainer):
    trainer = segment_trainer(tune_epochs=0)
    present = trainer.segment_sets("val").present.numpy()
    assert present.sum(1).tolist() == [2, 0, *[2] * (len(present) - 2)]
    images, segments = np.full((len(present), 3), 0.2, np.float32), np.full((len(present), 3), 0.6, np.float32)
    scores = fused(images, segments, present, 0.25)
    assert scores[1] == pytest.approx([0.2] * 3) and scores[0] == pytest.approx([0.3] * 3)


def test_a_checkpoints_bank_knows_the_segments_that_its_scores_hold(parts, cache, encoder_factory, store, tmp_path):
    changes = {"segments": "late", "segment_count": 3, "tune_epochs": 0}
    config = TrainConfig.at("small", **{**SMALL, **changes})
    _, plain, corrected = train_checkpoint(
        encoder_factory(), *parts, config, tmp_path, cache, progress=False, segments=store
    )  # fmt: skip
    encoder, _ = load_checkpoint(tmp_path)
    bank = load_bank(tmp_path)
    assert bank is not None and bank.segments is not None
    assert (bank.segments != 0).any(axis=2).sum(axis=1).tolist() == [2, 0, *[2] * 22]
    again = score(encoder, parts[1], 1, False, store, config)
    np.testing.assert_array_equal(again.similarity, plain.similarity)
    np.testing.assert_array_equal(again.corrected(encoder, bank).similarity, corrected.similarity)
    as_if_alone = correct_hubs(
        plain.similarity,
        plain.image_features,
        plain.text_features,
        bank,
        float(torch.exp(-encoder.logit_scale.detach())),
    )
    assert np.abs(as_if_alone - corrected.similarity).max() > 1e-4


def test_segments_that_are_lacking_are_asked_for(parts, cache, encoder_factory, store, tmp_path):
    config = TrainConfig.at("small", **{**SMALL, "segments": "mean"})
    with pytest.raises(ConfigError, match="needs masks: run ucore segment, then"):
        Trainer(encoder_factory(), *parts, config, cache=cache, progress=False)
    empty = SegmentStore(tmp_path / "empty", {"generator": "none"})
    with pytest.raises(DataError, match="Run ucore segment on this data"):
        Trainer(encoder_factory(), *parts, config, cache=cache, progress=False, segments=empty).step()


@pytest.mark.parametrize("head_epochs", [2, 0])
def test_a_training_set_with_hardly_a_segment_is_refused(segment_trainer, head_epochs):
    trainer = segment_trainer(head_epochs=head_epochs)
    sets = trainer.segment_sets("train")
    sets.present.view(-1)[sets.present.view(-1).nonzero()[1:]] = False
    with pytest.raises(ConfigError, match=r"have 1 segments? in all.*or train without --segments"):
        trainer.step()


def test_a_training_of_other_code_data_or_settings_has_another_folder(tmp_path, monkeypatch):
    make_rsicd(tmp_path / "data", 8, 4, 4)
    manifest, config = read_dataset(tmp_path / "data"), TrainConfig.at("tiny")

    def folder(config=config, start=None, segments=None):
        return training_folder(
            tmp_path, "rsicd", config, read_dataset(tmp_path / "data"), start=start, segments=segments
        )

    first = folder()
    assert folder() == first and first.parent == tmp_path and first.name.startswith("rsicd-")
    others = [folder(TrainConfig.at("tiny", seed=1)), folder(start="openai")]
    others += [folder(segments=SegmentStore(tmp_path / of, {"generator": of})) for of in ("slic", "vit_h")]
    image = manifest.image_path(0)
    image.write_bytes(manifest.image_path(1).read_bytes())  # under its old name
    others.append(folder())
    monkeypatch.setattr("ucore.progress.code_key", lambda sources: "other code")
    others.append(folder())
    assert len({first, *others}) == 7
